"""The sections of a report with curves over the score: precision and recall, and histograms of scores."""

import math

import numpy as np

from diou_jax.reporting.charts import (
    RIGHT,
    SMALL,
    WRONG,
    Axis,
    Frame,
    Line,
    histogram,
    line_chart,
)
from diou_jax.reporting.curves import COLORS
from diou_jax.reporting.document import (
    Cell,
    Column,
    Figures,
    Folded,
    Table,
    Text,
    count,
    count_cell,
    number,
    number_cell,
)
from diou_jax.reporting.findings import Findings
from diou_jax.reporting.strips import bar_strip, curve_strip

# Classes that get a chart of their own; tables have a small one of all.
CHARTED = 12

# IoU thresholds of the curves over all classes, and of those of single classes.
IOUS, CLASS_IOUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95), (0.5, 0.75, 0.9)

# From dark to light, for thresholds that rise; the hue differs, too, so that the lightest need not be pale.
RAMP = ("#0d0887", "#4c02a1", "#7e03a8", "#a92395", "#cc4778", "#e56b5d", "#f48849")


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
    ordered = [row for row in findings.by_objects if some[row]]

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
        return [
            Cell(matches.class_names[row]),
            Cell("", value=numbers[0], strip=curve_strip(curves.recalls, own)),
            *cells,
        ]

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
    right, wrong = found.right.sum(0), found.wrong.sum(0)
    if not (right + wrong).any():
        why = "All detections lie in regions to ignore." if len(matches.found) else "There are no detections."
        return [Text(why)]
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
            "best threshold of each; the file thresholds_*.json beside this page gives them to --score_threshold of "
            "--mode predict."
        )
    some = [row for row in findings.by_objects if (found.right[row] + found.wrong[row]).any()]

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
                Cell(
                    "",
                    value=float((found.right + found.wrong)[row].sum()),
                    strip=bar_strip([(found.right[row], RIGHT), (found.wrong[row], WRONG)]),
                ),
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
