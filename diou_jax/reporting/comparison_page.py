"""The page that compares evaluations of the same images: which is better, how sure that is, and where they differ."""

import math
import os
import time
from collections.abc import Mapping, Sequence

import numpy as np

from diou_jax.analysis.comparison import Comparison, Difference, Side
from diou_jax.analysis.curves import precision_recall
from diou_jax.analysis.intervals import Interval
from diou_jax.analysis.matches import Matches
from diou_jax.analysis.suppression import SideBySide
from diou_jax.reporting.charts import RIGHT, WRONG, Axis, Bar, Frame, Line, bar_chart, line_chart
from diou_jax.reporting.comparison_images import image_blocks
from diou_jax.reporting.curves import COLORS
from diou_jax.reporting.document import (
    NBSP,
    Cell,
    Column,
    Document,
    Fact,
    Figures,
    Heading,
    Part,
    Section,
    Table,
    Text,
    count,
    count_cell,
    number,
    number_cell,
    plural,
    signed,
)
from diou_jax.reporting.gallery import Album
from diou_jax.reporting.rendering import write
from diou_jax.reporting.report_sections import meaning_of_statistic
from diou_jax.reporting.suppression_section import suppression_blocks

# The pages of `--mode compare`, in the current folder, and of `--sweep`, in a run's folder.
COMPARISON_FILE, SWEEP_FILE = "compare.html", "sweep.html"

# Classes in the chart of those that gain or lose most; the table has all.
CHARTED = 16


def write_comparison(
    path: str | os.PathLike,
    comparisons: Sequence[Comparison],
    *,
    albums: Mapping[str, Album] | None = None,
    suppressions: Mapping[str, SideBySide] | None = None,
) -> None:
    """Writes the page; raises OSError.

    Args:
      path: path of the page.
      comparisons: one for each data set and kind.
      albums: the images by name of the data set; without one, images that differ are named but not shown.
      suppressions: greedy NMS and DIoU-NMS side by side, by name of the data set.
    """
    write(path, comparison_document(comparisons, albums=albums or {}, suppressions=suppressions or {}))


def comparison_document(
    comparisons: Sequence[Comparison],
    *,
    albums: Mapping[str, Album],
    suppressions: Mapping[str, SideBySide],
) -> Document:
    """The page of comparisons."""
    several = len(comparisons) > 1
    parts = []
    for place, one in enumerate(comparisons, start=1):
        title = f"{one.dataset}, {'boxes' if one.kind == 'bbox' else 'masks'}" if several else ""
        side_by_side = suppressions.get(one.dataset) if one.kind == "bbox" else None
        parts.append(_part(f"part{place}", title, one, album=albums.get(one.dataset), suppression=side_by_side))
    names = list(dict.fromkeys(side.name for one in comparisons for side in one.sides))
    sets = ", ".join(dict.fromkeys(one.dataset for one in comparisons))
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return Document(
        "Comparison of " + " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names),
        f"Paired by image, evaluated on {sets} · {written}",
        parts,
        written=f"Written by diou-jax on {written}. This page needs no server and asks none for anything.",
    )


def _part(name: str, title: str, one: Comparison, *, album: Album | None, suppression: SideBySide | None) -> Part:
    first, *others = one.sides
    main = [Fact(number(_value(first, "AP")), f"AP of {first.name}")]
    for side, difference in zip(others, one.differences, strict=True):
        change = difference.intervals.statistics["AP"]
        main.append(Fact(number(_value(side, "AP")), f"AP of {side.name}", f"{signed(change.value)} ({_span(change)})"))
    matches = first.matches
    crowds = int(matches.true.crowd.sum())
    facts = [
        Fact(count(len(matches.image_ids)), "images"),
        Fact(count(len(matches.true) - crowds), "objects"),
        Fact(count(len(matches.class_names)), "classes"),
    ]
    sections = [
        Section("numbers", "The numbers", _numbers(one, name), _INTERVALS),
        Section("options", "Options that differ", _options(one)),
        Section("classes", "Classes that gain or lose", _classes(one, name)),
    ]
    if suppression is not None:
        blocks = suppression_blocks(suppression, name)
        sections.append(Section("suppression", "Greedy NMS and DIoU-NMS side by side", blocks))
    sections.append(Section("images", "Images that differ most", image_blocks(one, album, name), _IMAGES))
    return Part(name, title, sections, [main], facts, _sentence(one))


_INTERVALS = (
    "The intervals belong to the differences: images are drawn anew for both together, so that an image which "
    "is difficult for both does not count. A difference is shown where its interval leaves out 0. The intervals cover "
    "the choice of images from the same source; two training runs differ by more."
)
_IMAGES = (
    "The gain is the AP that the data set loses in the image with the first, less that with the other: positive where "
    "the other is better."
)


def _value(side: Side, name: str) -> float:
    value = side.statistics[name]
    return value if value >= 0 else math.nan


def _span(one: Interval) -> str:
    if not (math.isfinite(one.low) and math.isfinite(one.high)):
        return "too few images for an interval"
    return f"95 % interval {_ends(one)}"


def _ends(one: Interval) -> str:
    finite = math.isfinite(one.low) and math.isfinite(one.high)
    return f"{signed(one.low)} to {signed(one.high)}" if finite else "–"


def _shown(one: Interval) -> int:
    """1 if an interval lies above 0, -1 if it lies below, else 0."""
    return 1 if one.low > 0 else -1 if one.high < 0 else 0


def _sentence(one: Comparison) -> str:
    first, *others = one.sides
    sentences = []
    for side, difference in zip(others[:3], one.differences, strict=False):
        change = difference.intervals.statistics["AP"]
        if not math.isfinite(change.value):
            continue
        if not change.value and not change.low and not change.high:
            sentences.append(f"{side.name} has the same AP as {first.name}.")
        elif verdict := _shown(change):
            word = "better" if verdict > 0 else "worse"
            sentences.append(f"{side.name} is {word} than {first.name}: AP {signed(change.value)}, {_span(change)}.")
        else:
            holds = ", which holds 0" if math.isfinite(change.low) and math.isfinite(change.high) else ""
            sentences.append(
                f"These images cannot tell {side.name} from {first.name}: AP {signed(change.value)}, {_span(change)}"
                f"{holds}."
            )
    return " ".join(sentences)


def _tone(one: Interval) -> str:
    return {1: "good", -1: "bad", 0: ""}[_shown(one)]


def _numbers(one: Comparison, prefix: str) -> list:
    first, *others = one.sides
    few = len(one.sides) == 2
    columns = [Column("number", False), *([Column("meaning", False)] if few else []), Column(first.name)]
    for side in others:
        columns += [Column(side.name), Column("difference"), Column("95 % interval", False)]
    rows = []
    for name in first.statistics:
        meaning = [Cell(meaning_of_statistic(name))] if few else []
        row = [Cell(name), *meaning, number_cell(_value(first, name))]
        for side, difference in zip(others, one.differences, strict=True):
            change = difference.intervals.statistics[name]
            text = _ends(change).replace(" ", NBSP)
            row += [
                number_cell(_value(side, name)),
                Cell(signed(change.value), value=change.value, tone=_tone(change)),
                Cell(text),
            ]
        rows.append(row)
    table = Table("COCO's numbers; differences in colour are shown by these images", columns, rows, sortable=False)
    charts = [*_over_option(one, prefix), _difference_chart(one, prefix), _curves(one, prefix)]
    return [table, Figures(charts)]


def _difference_chart(one: Comparison, prefix: str):
    others = one.sides[1:]
    if len(others) == 1:
        # Numbers by size are left to the table: of few objects, their intervals would stretch the axis.
        intervals = one.differences[0].intervals.statistics
        names = [name for name in intervals if name[-1] not in "sml"]
        bars = [_difference_bar(name, intervals[name]) for name in names]
        title = f"{others[0].name} less {one.sides[0].name}"
    else:
        bars = [
            _difference_bar(side.name, difference.intervals.statistics["AP"])
            for side, difference in zip(others, one.differences, strict=True)
        ]
        title = f"AP, less that of {one.sides[0].name}"
    listed = ", ".join(f"{bar.label} {bar.note}" for bar in bars)
    return bar_chart(
        Frame(f"{prefix}difference", x=Axis("difference", _limits(bars)), title=title, alt=f"{title}: {listed}"), bars
    )


def _difference_bar(label: str, one: Interval) -> Bar:
    return Bar(label, one.value, one.low, one.high, signed(one.value), color=RIGHT if one.value >= 0 else WRONG)


def _limits(bars: Sequence[Bar]) -> tuple[float, float]:
    ends = [end for bar in bars for end in (bar.value, bar.low, bar.high, 0.0) if math.isfinite(end)]
    room = 0.08 * (max(ends, default=0) - min(ends, default=0)) or 0.01
    return min(ends, default=0) - room, max(ends, default=0) + room


def _over_option(one: Comparison, prefix: str) -> list:
    """A chart of AP over the one option in which all sides differ, if its values are numbers."""
    numeric = [
        name
        for name, values in one.options.items()
        if len(set(map(str, values))) == len(values)
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    ]
    if len(one.sides) < 3 or len(numeric) != 1:
        return []
    values = one.options[numeric[0]]
    order = np.argsort(values, kind="stable").tolist()
    lines = [
        Line(name, [values[row] for row in order], [_value(one.sides[row], name) for row in order], color=color)
        for name, color in zip(("AP", "AP50", "AP75"), COLORS)
    ]
    listed = ", ".join(f"{values[row]:g}: {number(_value(one.sides[row], 'AP'))}" for row in order)
    x = Axis(numeric[0])
    title = f"AP over {numeric[0]}"
    return [line_chart(Frame(f"{prefix}option", x=x, y=Axis(" "), title=title, alt=f"{title}, {listed}"), lines)]


def _curves(one: Comparison, prefix: str):
    lines = []
    some = one.sides[0].matches.objects() > 0
    for place, side in enumerate(one.sides[: len(COLORS)]):
        found = precision_recall(side.matches)
        for iou, style in ((0.5, "-"), (0.75, "--")):
            precision = found.precision[side.matches.threshold(iou)][some]
            mean = precision.mean(0) if len(precision) else np.full(len(found.recalls), np.nan)
            lines.append(Line(f"{side.name}, IoU {iou:g}", found.recalls, mean, color=COLORS[place], style=style))
    return line_chart(
        Frame(
            f"{prefix}curves",
            x=Axis("recall", (0, 1)),
            y=Axis("precision", (0, 1.02)),
            title="Precision and recall, mean over classes",
            alt=f"Precision over recall at IoU 0.5 and 0.75 of {', '.join(side.name for side in one.sides)}",
        ),
        lines,
    )


def _options(one: Comparison) -> list:
    if not one.options:
        return [Text("All options are the same.")]
    columns = [Column("option", False), *(Column(side.name, False) for side in one.sides)]
    rows = [
        [Cell(name), *(Cell("–" if value is None else str(value)) for value in values)]
        for name, values in one.options.items()
    ]
    about = [Column("", False), *(Column(side.name, False) for side in one.sides)]
    folders = [
        [Cell("step"), *(Cell("–" if side.step is None else count(side.step)) for side in one.sides)],
        [Cell("folder"), *(Cell(side.folder) for side in one.sides)],
    ]
    return [
        Table(f"{plural(len(rows), 'option')} with different values", columns, rows, sortable=False),
        Table("Weights", about, folders, sortable=False),
    ]


def _classes(one: Comparison, prefix: str) -> list:
    blocks: list = []
    for place, (side, difference) in enumerate(zip(one.sides[1:], one.differences, strict=True)):
        if len(one.sides) > 2:
            blocks.append(Heading(f"{side.name} against {one.sides[0].name}"))
        blocks += _class_blocks(one.sides[0].matches, difference, f"{prefix}class{place}")
    return blocks


def _class_blocks(matches: Matches, difference: Difference, prefix: str) -> list:
    objects = matches.objects()
    changes = difference.intervals.classes
    finite = [row for row, change in enumerate(changes) if math.isfinite(change.value)]
    order = sorted(finite, key=lambda row: -abs(changes[row].value))
    shown = sorted(order[:CHARTED], key=lambda row: -changes[row].value)
    names = matches.class_names
    gained, lost = (sum(_shown(changes[row]) == sign for row in finite) for sign in (1, -1))
    bars = [_difference_bar(names[row], changes[row]) for row in shown]
    reading = (
        f"{gained} of {len(finite)} classes gain and {lost} lose more than the choice of images explains. Each class "
        "is judged by itself: of classes that do not differ, about one in twenty seems to."
    )
    chart = bar_chart(
        Frame(
            f"{prefix}bars",
            x=Axis("difference of AP", _limits(bars)),
            size=(6.2, 0.0),
            title="Classes that change most",
            alt="Difference of AP by class: " + ", ".join(f"{bar.label} {bar.note}" for bar in bars),
        ),
        bars,
    )
    columns = [
        Column("class", False),
        Column("objects"),
        Column("difference of AP"),
        Column("95 % interval", meaning="sorted by its lower end"),
        Column("difference of AP50"),
    ]
    rows = [
        [
            Cell(names[row]),
            count_cell(int(objects[row])),
            Cell(signed(changes[row].value), value=changes[row].value, tone=_tone(changes[row])),
            Cell(_ends(changes[row]), value=changes[row].low),
            Cell(signed(difference.intervals.classes50[row].value), value=difference.intervals.classes50[row].value),
        ]
        for row in sorted(finite, key=lambda row: -changes[row].value)
    ]
    table = Table("Classes, those that gain most first", columns, rows, filterable=len(rows) > 20)
    return [Figures([chart], reading), table] if bars else [Text("No class has objects.")]
