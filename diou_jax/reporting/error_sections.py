"""The sections of a report on errors: which class is taken for which, and why AP is lost."""

import math

import numpy as np

from diou_jax.analysis.errors import ERRORS
from diou_jax.reporting.charts import (
    WRONG,
    Axis,
    Bar,
    Frame,
    bar_chart,
)
from diou_jax.reporting.document import (
    Cell,
    Column,
    Figures,
    Folded,
    Matrix,
    Table,
    Terms,
    Text,
    count,
    count_cell,
    number,
    share,
    signed,
)
from diou_jax.reporting.error_words import LOSSES, MEANINGS, NAMES
from diou_jax.reporting.findings import Findings

# The largest side of a confusion matrix, and the confusions that its table lists.
MATRIX, CONFUSIONS = 20, 100


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


def confusion_matrix(findings: Findings, name: str) -> list:
    """The matrix of the classes with most objects, and a table of the largest confusions of all."""
    found = findings.confusion
    counts, labels = found.counts, [*found.class_names, "background"]
    last = len(found.class_names)
    kept = [row for row in findings.by_objects if counts[row].any() or counts[:, row].any()][:MATRIX]
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


def losses(findings: Findings, name: str, prefix: str) -> list:
    """Why AP is lost: the kinds of errors, the gain of mending each, and the classes."""
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
        for row in findings.by_objects
    ]
    columns = [Column("class", False), Column("objects"), *(Column(NAMES[kind]) for kind in ordered)]
    table = Table(f"{name}: AP that each class would gain", columns, rows, filterable=len(rows) > 20)
    return [Figures(charts, reading), Terms([(NAMES[kind], MEANINGS[kind]) for kind in ordered]), table]
