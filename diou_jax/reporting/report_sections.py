"""The sections of a report on the detections of one kind in one test set, each a function of its findings."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from diou_jax.analysis.crowding import Bins
from diou_jax.analysis.errors import ERRORS
from diou_jax.reporting.charts import (
    RIGHT,
    SMALL,
    WRONG,
    Axis,
    Bar,
    Frame,
    Line,
    bar_chart,
    bar_strip,
    curve_strip,
    histogram,
    line_chart,
)
from diou_jax.reporting.curves import COLORS
from diou_jax.reporting.document import (
    NBSP,
    Cell,
    Column,
    Figures,
    Folded,
    Heading,
    Matrix,
    Table,
    Terms,
    Text,
    count,
    count_cell,
    number,
    number_cell,
    share,
    signed,
)
from diou_jax.reporting.error_words import LOSSES, MEANINGS, NAMES
from diou_jax.reporting.findings import Findings

# Classes that get a chart of their own; tables have a small one of all.
CHARTED = 12

# The largest side of a confusion matrix, and the confusions that its table lists.
MATRIX, CONFUSIONS = 20, 100

# IoU thresholds of the curves over all classes, and of those of single classes.
IOUS, CLASS_IOUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95), (0.5, 0.75, 0.9)

# Blues from dark to light, for thresholds that rise.
RAMP = ("#08306b", "#0b4a8a", "#1f6fb3", "#3f8fc5", "#6bacd6", "#98c6e3", "#bfd8ea")

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


def by_objects(findings: Findings) -> list[int]:
    """Rows of the classes, those with most objects first."""
    return np.argsort(-findings.matches.objects(), kind="stable").tolist()


def loss_sentence(findings: Findings) -> str:
    """The sentence that says where most AP is lost."""
    ap = findings.intervals.statistics["AP"].value
    if not math.isfinite(ap):
        return "There are no objects to find, so there is no AP."
    gains = {kind: gain for kind, gain in findings.gains.ap.items() if math.isfinite(gain)}
    kind = max(gains, key=lambda one: gains[one], default=None)
    if kind is None or gains[kind] < 0.0005:
        return "No kind of error costs AP."
    what, mended = LOSSES[kind]
    return f"Most AP is lost to {what}: {mended}, AP would be {number(ap + gains[kind])} instead of {number(ap)}."


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
    for row in by_objects(findings):
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


def precision_recall_curves(findings: Findings, name: str, prefix: str) -> list:
    """Curves over all classes by IoU, and those of single classes."""
    matches, curves = findings.matches, findings.precision_recall
    some = matches.objects() > 0
    if not some.any():
        return []
    lines = [
        Line(f"IoU {iou:.2f}", curves.recalls, curves.precision[matches.threshold(iou)][some].mean(0), color=color)
        for iou, color in zip(IOUS, RAMP, strict=True)
    ]
    axes = Axis("recall", (0, 1)), Axis("precision", (0, 1.02))
    mean = line_chart(
        Frame(
            f"{prefix}pr",
            *axes,
            title=f"{name}: mean over classes",
            alt=f"Precision over recall, mean over classes, one curve for each IoU; AP at IoU 0.5 is "
            f"{number(findings.intervals.statistics['AP50'].value)}, at 0.75 "
            f"{number(findings.intervals.statistics['AP75'].value)}",
        ),
        lines,
    )
    reading = (
        "The area below a curve is the AP at its IoU. A curve that ends before recall 1 lacks the objects that no "
        "detection finds; one that sinks early has wrong detections with high scores; wide gaps between the curves "
        "mean that boxes are found but do not fit."
    )
    ordered = [row for row in by_objects(findings) if some[row]]

    def chart(row):
        own = [
            Line(f"IoU {iou:g}", curves.recalls, curves.precision[matches.threshold(iou), row], color=RAMP[2 * place])
            for place, iou in enumerate(CLASS_IOUS)
        ]
        label = matches.class_names[row]
        ap = number(findings.intervals.classes[row].value)
        title = f"{label}, AP {ap}"
        return line_chart(
            Frame(f"{prefix}pr{row}", *axes, size=SMALL, title=title, alt=f"Precision over recall: {title}"), own
        )

    def row_of(row):
        own = [(curves.precision[matches.threshold(iou), row], RAMP[2 * place]) for place, iou in enumerate(CLASS_IOUS)]
        numbers = [findings.intervals.classes[row].value, *(_ap_at(findings, row, iou) for iou in CLASS_IOUS)]
        cells = [number_cell(value) for value in numbers]
        return [Cell(matches.class_names[row]), Cell("", strip=curve_strip(curves.recalls, own)), *cells]

    blocks: list = [Figures([mean], reading), Figures([chart(row) for row in ordered[:CHARTED]])]
    if len(ordered) > CHARTED:
        columns = [
            Column("class", False),
            Column("precision over recall", False, "from dark to light: IoU 0.5, 0.75, 0.9"),
            Column("AP"),
            *(Column(f"AP at {iou:g}") for iou in CLASS_IOUS),
        ]
        rows = [row_of(row) for row in ordered]
        caption = f"{name}: precision over recall of each class at IoU 0.5, 0.75 and 0.9, from dark to light"
        blocks.append(Folded(f"All {len(rows)} classes", [Table(caption, columns, rows, filterable=True, narrow=True)]))
    return blocks


def _ap_at(findings: Findings, row: int, iou: float) -> float:
    return float(findings.precision_recall.precision[findings.matches.threshold(iou), row].mean())


def scores(findings: Findings, name: str, prefix: str) -> list:
    """Histograms of scores, and F1 over the threshold."""
    matches, found, best = findings.matches, findings.scores, findings.threshold
    if not len(matches.found):
        return [Text("There are no detections.")]
    right, wrong = found.right.sum(0), found.wrong.sum(0)
    marks = [(best.threshold, f"best F1: {number(best.threshold, 2)}")] if math.isfinite(best.threshold) else []
    chart = histogram(
        Frame(
            f"{prefix}score",
            x=Axis("score", (0, 1)),
            y=Axis("detections"),
            title=f"{name}: detections by score",
            alt=f"Histogram of scores: {count(int(right.sum()))} right and {count(int(wrong.sum()))} wrong detections",
        ),
        found.edges,
        [("right", right, RIGHT), ("wrong", wrong, WRONG)],
        marks=marks,
    )
    charts = [chart]
    if matches.objects().sum() and right.sum():
        thresholds, precision, recall, f1 = _over_thresholds(findings)
        lines = [
            Line("F1", thresholds, f1, color=COLORS[0]),
            Line("precision", thresholds, precision, color=COLORS[2], style="--"),
            Line("recall", thresholds, recall, color=COLORS[1], style=":"),
        ]
        charts.append(
            line_chart(
                Frame(
                    f"{prefix}f1",
                    x=Axis("score threshold", (0, 1)),
                    y=Axis("at IoU 0.5", (0, 1.02)),
                    title="What a score threshold keeps",
                    alt=f"F1, precision and recall over the score threshold; F1 is best at {number(best.threshold, 2)}",
                ),
                lines,
            )
        )
    reading = (
        "Right and wrong at IoU 0.5. Scores are good if blue lies on the right and orange on the left. AP needs the "
        "many detections with low scores; a user wants a threshold."
    )
    if math.isfinite(best.threshold):
        reading += (
            f" With the one threshold {number(best.threshold, 2)} for all classes, {number(best.precision)} of the "
            f"detections are right and {number(best.recall)} of the objects are found. The table of classes has the "
            "best threshold of each."
        )
    some = [row for row in by_objects(findings) if (found.right[row] + found.wrong[row]).any()]

    def class_chart(row):
        own = findings.thresholds[row]
        label = matches.class_names[row]
        return histogram(
            Frame(
                f"{prefix}score{row}",
                x=Axis("score", (0, 1)),
                y=Axis("detections"),
                size=SMALL,
                title=label,
                alt=f"Histogram of scores of {label}",
            ),
            found.edges,
            [("right", found.right[row], RIGHT), ("wrong", found.wrong[row], WRONG)],
            marks=[(own.threshold, number(own.threshold, 2))] if math.isfinite(own.threshold) else [],
        )

    blocks: list = [Figures(charts, reading), Figures([class_chart(row) for row in some[:CHARTED]])]
    if len(some) > CHARTED:
        columns = [
            Column("class", False),
            Column("detections by score", False, "from score 0 to 1; blue: right, orange: wrong"),
            Column("best score"),
            Column("F1"),
            Column("right"),
            Column("wrong"),
        ]
        rows = [
            [
                Cell(matches.class_names[row]),
                Cell("", strip=bar_strip([(found.right[row], RIGHT), (found.wrong[row], WRONG)])),
                number_cell(findings.thresholds[row].threshold, 2),
                number_cell(findings.thresholds[row].f1),
                count_cell(int(found.right[row].sum())),
                count_cell(int(found.wrong[row].sum())),
            ]
            for row in some
        ]
        caption = f"{name}: detections of each class by score, from 0 to 1; blue: right, orange: wrong"
        blocks.append(Folded(f"All {len(rows)} classes", [Table(caption, columns, rows, filterable=True, narrow=True)]))
    return blocks


def _over_thresholds(findings: Findings, points: int = 101):
    """Thresholds (n,), and precision, recall and F1 at IoU 0.5 of all detections with at least these scores."""
    matches = findings.matches
    row = matches.threshold(0.5)
    right, wrong = matches.right()[row], matches.wrong()[row]
    thresholds = np.linspace(0, 1, points)
    order = np.sort(matches.found.scores[right]), np.sort(matches.found.scores[wrong])
    true, false = (len(one) - np.searchsorted(one, thresholds, "left") for one in order)
    objects = matches.objects().sum()
    kept = true + false
    precision = np.where(kept > 0, true / np.maximum(kept, 1), np.nan)
    recall = true / max(objects, 1)
    return thresholds, precision, recall, 2 * true / np.maximum(kept + objects, 1)


def confusion_matrix(findings: Findings, name: str) -> list:
    """The matrix of the classes with most objects, and a table of the largest confusions of all."""
    found = findings.confusion
    counts, labels = found.counts, [*found.class_names, "background"]
    last = len(found.class_names)
    kept = [row for row in by_objects(findings) if counts[row].any() or counts[:, row].any()][:MATRIX]
    rows = [*kept, last]
    totals = counts.sum(1)

    def cell(true, label):
        value = int(counts[true, label])
        if true == last and label == last:
            return Cell("")
        part = value / totals[true] if totals[true] else 0.0
        return Cell(count(value) if value else "·", value=value, tint=part, tone="" if true == label else "bad")

    cells = [[cell(true, label) for label in rows] for true in rows]
    more = f"; the {len(kept)} classes with most objects" if last > len(kept) else ""
    matrix = Matrix(
        f"{name}: true class by row, class of the detection by column{more}",
        "true ↓  detected →",
        [labels[row] for row in kept] + ["background"],
        [labels[row] for row in kept] + ["missed"],
        cells,
    )
    pairs = [(int(counts[a, b]), a, b) for a, b in np.argwhere(counts > 0).tolist() if a != b]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    table_rows = [
        [
            Cell(labels[true] if true < last else "background"),
            Cell(labels[label] if label < last else "missed"),
            count_cell(value),
            Cell(share(value, totals[true]), value=value / totals[true]),
        ]
        for value, true, label in pairs[:CONFUSIONS]
    ]
    columns = [Column("true", False), Column("detected as", False), Column("number"), Column("of the row")]
    more = f", the largest {CONFUSIONS} of {len(pairs)}" if len(pairs) > CONFUSIONS else ""
    reading = Text(
        f"Detections with a score of at least {number(found.score_threshold, 2)}, each with the object that it "
        f"overlaps most, by an IoU of {found.iou:g} or more. Blue cells are right, orange ones are errors; "
        "a cell is as dark as its share of the row. The last row holds detections without an object, the last column "
        "objects without a detection."
    )
    table = Table(f"Confusions{more}", columns, table_rows, narrow=True)
    listed = [Folded(f"The {len(table_rows)} largest errors as a table", [table])] if table_rows else []
    return [reading, matrix, *listed]


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


def losses(findings: Findings, name: str, prefix: str) -> list:
    """Why AP is lost: the kinds of errors, what mending them gives, and the classes."""
    matches, gains = findings.matches, findings.gains
    ordered = sorted(ERRORS, key=lambda kind: -np.nan_to_num(gains.ap[kind]))
    most = max([0.01, *(np.nan_to_num(max(gains.ap[kind], gains.ap50[kind])) for kind in ERRORS)])
    charts = [
        bar_chart(
            Frame(
                f"{prefix}gain{title}",
                x=Axis(f"gain of {title} (number at IoU 0.5)", (min(0.0, *values.values()), 1.05 * most)),
                title=f"{name}: {title} that mending gives",
                alt=f"Gain of {title} by kind of error: "
                + ", ".join(f"{NAMES[kind]} {signed(values[kind])}" for kind in ordered),
            ),
            [
                Bar(
                    NAMES[kind],
                    values[kind],
                    note=f"{signed(values[kind])}  ({count(int(gains.counts[kind].sum()))})",
                    color=WRONG,
                )
                for kind in ordered
            ],
        )
        for title, values in (("AP", gains.ap), ("AP50", gains.ap50))
    ]
    reading = (
        "Each bar is the AP that mending all errors of one kind would give while the others stay. The gains of two "
        "kinds do not add up. Place errors cost AP more than AP50, as a box must fit better at higher IoU."
    )
    objects = matches.objects()
    largest = max([1e-9, *(float(np.nanmax(gains.class_ap[kind], initial=0)) for kind in ERRORS)])
    rows = [
        [
            Cell(matches.class_names[row]),
            count_cell(int(objects[row])),
            *(
                Cell(
                    signed(float(gains.class_ap[kind][row])),
                    value=float(gains.class_ap[kind][row]),
                    tint=float(np.clip(np.nan_to_num(gains.class_ap[kind][row]) / largest, 0, 1)) * 0.75,
                )
                for kind in ordered
            ),
        ]
        for row in by_objects(findings)
    ]
    columns = [Column("class", False), Column("objects"), *(Column(NAMES[kind]) for kind in ordered)]
    table = Table(f"{name}: AP that each class would gain", columns, rows, filterable=len(rows) > 20)
    return [Figures(charts, reading), Terms([(NAMES[kind], MEANINGS[kind]) for kind in ordered]), table]


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
