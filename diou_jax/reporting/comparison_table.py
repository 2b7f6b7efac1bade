"""A comparison of evaluations as a table for the terminal."""

import math
from collections.abc import Iterator

from diou_jax.analysis.comparison import Comparison
from diou_jax.analysis.intervals import Interval

STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
KINDS = {"bbox": "boxes", "segm": "masks"}

# The number of classes that are named on each side of a difference.
CLASSES = 5


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """A row for each side, with its difference from the first; then the classes whose AP gains or loses for sure."""
    width = max(len(side.name) for side in comparison.sides)
    first = comparison.sides[0].matches
    yield f"{comparison.dataset}, {KINDS[comparison.kind]}, {len(first.image_ids)} images:"
    yield f" {'':{width}}  " + "  ".join(f"{name:>6}" for name in STATISTICS) + "  difference of AP, 95 % interval"
    differences = [None, *comparison.differences]
    for side, difference in zip(comparison.sides, differences, strict=True):
        numbers = "  ".join(_number(side.statistics[name]) for name in STATISTICS)
        end = "" if difference is None else f"  {_interval(difference.intervals.statistics['AP'])}"
        yield f" {side.name:{width}}  {numbers}{end}"
    for side, difference in zip(comparison.sides[1:], comparison.differences, strict=True):
        rows = list(zip(first.class_names, difference.intervals.classes, strict=True))
        gained = sorted((row for row in rows if row[1].low > 0), key=lambda row: -row[1].value)
        lost = sorted((row for row in rows if row[1].high < 0), key=lambda row: row[1].value)
        for word, named in (("gain", gained), ("lose", lost)):
            if named:
                listed = "; ".join(f"{name} {_interval(interval)}" for name, interval in named[:CLASSES])
                more = f"; and {len(named) - CLASSES} more" if len(named) > CLASSES else ""
                yield f" {side.name}, classes that {word}: {listed}{more}"
    yield ""


def _number(value: float) -> str:
    return f"{'-':>6}" if value < 0 or math.isnan(value) else f"{value:6.3f}"


def _interval(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    if math.isnan(interval.low) or math.isnan(interval.high):
        return f"{interval.value:+.4f} (too few images for an interval)"
    return f"{interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"
