"""The sections of a report on the detections of one kind in one test set, each a function of its findings."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from diou_jax.analysis.crowding import Bins
from diou_jax.analysis.errors import ERRORS
from diou_jax.reporting.charts import (
    RIGHT,
    Axis,
    Bar,
    Frame,
    bar_chart,
    histogram,
)
from diou_jax.reporting.document import (
    NBSP,
    Cell,
    Column,
    Figures,
    Heading,
    Table,
    Text,
    count,
    count_cell,
    number,
    number_cell,
    share,
    signed,
)
from diou_jax.reporting.error_words import NAMES
from diou_jax.reporting.findings import Findings

MEANING_OF_STATISTICS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "boxes that overlap an object by half count",
    "AP75": "only boxes that fit well count",
    "APs": "objects below 32² pixels",
    "APm": "objects from 32² to 96² pixels",
    "APl": "objects above 96² pixels",
    "AR1": "recall with one detection per image and class",
    "AR10": "recall with ten",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}


def meaning_of_statistic(name: str) -> str:
    """The meaning of one of COCOeval's twelve numbers; the name of the ninth holds the limit of detections."""
    return MEANING_OF_STATISTICS.get(name, f"recall with {name.removeprefix('AR')} detections")


def numbers(found: Sequence[tuple[str, Findings]]) -> list:
    """The twelve numbers of each kind side by side, with intervals."""
    columns = [Column("number", False), Column("meaning", False)]
    for kind, _ in found:
        columns += [Column(kind), Column("95 % interval", False, "percentile interval of a bootstrap over images")]
    rows = []
    for name in found[0][1].intervals.statistics:
        row = [Cell(name), Cell(meaning_of_statistic(name))]
        for _, findings in found:
            one = findings.intervals.statistics[name]
            row += [number_cell(one.value, bar=_bar(one.value)), Cell(_interval(one))]
        rows.append(row)
    table = Table("COCO's twelve numbers, in [0, 1]", columns, rows, sortable=False, narrow=True)
    return [table]


def classes(findings: Findings, name: str) -> list:
    """The table of classes, those with most objects first."""
    matches, gains = findings.matches, findings.gains
    objects = matches.objects()
    columns = [
        Column("class", False),
        Column("objects"),
        Column("AP"),
        Column("95 % interval", meaning="sorted by its width"),
        Column("AP50"),
        Column("best score", meaning="the score threshold with the best F1 at IoU 0.5"),
        Column("F1", meaning="at the best score"),
        Column("precision", meaning="at the best score"),
        Column("recall", meaning="at the best score"),
        Column("mean IoU", meaning="of matched boxes"),
        Column("largest loss", False, "the kind of error whose mending would give the class most AP"),
    ]
    rows = []
    for row in findings.by_objects:
        interval, best = findings.intervals.classes[row], findings.thresholds[row]
        kind = max(ERRORS, key=lambda one: np.nan_to_num(gains.class_ap[one][row], nan=-1))
        gain = gains.class_ap[kind][row]
        lost = f"{NAMES[kind]} {signed(gain)}".replace(" ", NBSP) if gain >= 0.0005 else "–"
        rows.append(
            [
                Cell(matches.class_names[row]),
                count_cell(int(objects[row])),
                number_cell(interval.value, bar=_bar(interval.value)),
                Cell(_interval(interval), value=float(interval.high - interval.low)),
                number_cell(findings.intervals.classes50[row].value),
                number_cell(best.threshold, 2),
                number_cell(best.f1),
                number_cell(best.precision),
                number_cell(best.recall),
                number_cell(float(findings.ious.mean[row])),
                Cell(lost),
            ]
        )
    return [Table(f"{name}: {len(rows)} classes, most objects first", columns, rows, filterable=len(rows) > 20)]


def bins(findings: Findings, name: str, prefix: str) -> list:
    """AP by size and by crowdedness."""
    sizes = _bin_labels(findings.sizes, unit=" px")
    crowds = ["touches none", *_bin_labels(findings.crowdedness)[1:]]
    blocks: list = []
    charts = [
        _bin_chart(f"{prefix}size", findings.sizes, sizes, f"{name}: AP by size", "square root of the area"),
        _bin_chart(
            f"{prefix}crowd",
            findings.crowdedness,
            crowds,
            f"{name}: AP by crowdedness",
            "largest IoU with a neighbour of the class",
        ),
    ]
    blocks.append(
        Figures(
            charts,
            "Left: the size of an object is the square root of its area in pixels of the file. Right: an object is "
            "crowded if its box overlaps another of its class; the more, the harder a suppression can tell both apart.",
        )
    )
    columns = [
        Column("objects that", False),
        Column("objects"),
        Column("AP"),
        Column("AP50"),
        Column("recall", meaning="mean over IoU 0.50 to 0.95"),
        Column("recall at 0.5"),
        Column("duplicates", meaning="per object at IoU 0.5"),
    ]
    for caption, found, labels in (
        ("By size", findings.sizes, sizes),
        ("By crowdedness", findings.crowdedness, crowds),
    ):
        rows = [
            [
                Cell(label),
                count_cell(int(found.objects[place])),
                *(
                    number_cell(float(values[place]))
                    for values in (found.ap, found.ap50, found.recall, found.recall50, found.duplicates)
                ),
            ]
            for place, label in enumerate(labels)
        ]
        blocks.append(Table(caption, [Column(caption.lower()[3:], False), *columns[1:]], rows, narrow=True))
    return blocks


def _bin_labels(found: Bins, unit: str = "") -> list[str]:
    edges = found.edges.tolist()
    labels = []
    for low, high in itertools.pairwise(edges):
        if math.isinf(high):
            labels.append(f"from {low:g}{unit}")
        else:
            labels.append(f"below {high:g}{unit}" if low < 1e-6 else f"{low:g} to {high:g}{unit}")
    return labels


def _bin_chart(name, found: Bins, labels, title, what):
    bars = [
        Bar(
            label,
            float(found.ap[place]),
            note=f"{number(float(found.ap[place]))}  ({count(int(found.objects[place]))})",
        )
        for place, label in enumerate(labels)
    ]
    listed = ", ".join(f"{bar.label}: {bar.note}" for bar in bars)
    return bar_chart(Frame(name, x=Axis("AP (objects)", (0, 1)), title=title, alt=f"AP by {what}, {listed}"), bars)


def placement(findings: Findings, name: str, prefix: str) -> list:
    """The histogram of the IoU of matched boxes."""
    found = findings.ious
    counts = found.counts.sum(0)
    if not counts.sum():
        return [Text("No detection is matched.")]
    middles = (found.edges[1:] + found.edges[:-1]) / 2
    mean = float((counts * middles).sum() / counts.sum())
    chart = histogram(
        Frame(
            f"{prefix}iou",
            x=Axis("IoU"),
            y=Axis("matched detections"),
            title=f"{name}: IoU of matched detections",
            alt=f"Histogram of the IoU of {count(int(counts.sum()))} matched detections, mean about {number(mean, 2)}",
        ),
        found.edges,
        [("matched", counts, RIGHT)],
        marks=[(mean, f"mean {number(mean, 2)}")],
    )
    good = share(int(counts[found.edges[:-1] >= 0.75 - 1e-9].sum()), int(counts.sum()))
    reading = (
        f"Detections matched at IoU 0.5, by the IoU that they reach; {good} of them reach 0.75. A box loss that places "
        "boxes better moves this histogram to the right. Mean IoU by class is in the table of classes."
    )
    return [Figures([chart], reading)]


def with_heading(blocks: Sequence, heading: str) -> list:
    """The blocks below a heading, if there are any."""
    return [Heading(heading), *blocks] if blocks else []


def _bar(value: float) -> float | None:
    return float(np.clip(value, 0, 1)) if math.isfinite(value) else None


def _interval(one) -> str:
    if not (math.isfinite(one.low) and math.isfinite(one.high)):
        return "–"
    return f"{number(one.low)}–{number(one.high)}"
