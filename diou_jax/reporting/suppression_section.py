"""Greedy NMS and DIoU-NMS side by side: the detections that only one keeps, and which of the two was right."""

from diou_jax.analysis.average_precision import score
from diou_jax.analysis.suppression import OnlyKept, SideBySide, Verdict
from diou_jax.reporting.charts import RIGHT, WRONG, Axis, Bar, Frame, bar_chart
from diou_jax.reporting.document import (
    Cell,
    Column,
    Figures,
    Table,
    Terms,
    Text,
    count,
    count_cell,
    number,
    number_cell,
    signed,
)

NAMES = {
    Verdict.RIGHT: "right",
    Verdict.EXCHANGED: "exchanged",
    Verdict.DUPLICATE: "duplicate",
    Verdict.BACKGROUND: "background",
    Verdict.IGNORED: "ignored",
    Verdict.LIMIT: "beyond the limit",
}

MEANINGS = {
    Verdict.RIGHT: "It finds an object that the other kind of suppression misses: it was rightly kept.",
    Verdict.EXCHANGED: "It finds an object that the other kind finds, too, by another detection.",
    Verdict.DUPLICATE: "Its object is found already: it was wrongly kept.",
    Verdict.BACKGROUND: "It fits no object of its class: it was wrongly kept.",
    Verdict.IGNORED: "It lies in a region to ignore.",
    Verdict.LIMIT: "The other kind may have kept it as well, but has the full number of better detections.",
}


def suppression_sentence(found: SideBySide) -> str:
    """The answer in a sentence."""
    greedy, diou = (score(matches, areas=False).statistics["AP"][0] for matches in (found.greedy, found.diou))
    return (
        f"AP is {number(diou, 4)} with DIoU-NMS and {number(greedy, 4)} with greedy NMS, a difference of "
        f"{signed(diou - greedy, 4)}. DIoU-NMS alone rightly keeps {count(found.only_diou.right)} detections and "
        f"wrongly keeps {count(found.only_diou.wrong)}; greedy NMS alone rightly keeps "
        f"{count(found.only_greedy.right)} and wrongly keeps {count(found.only_greedy.wrong)}."
    )


def suppression_blocks(found: SideBySide, prefix: str) -> list:
    """The blocks of the section."""
    sides = (
        ("greedy NMS", found.greedy, found.only_greedy),
        ("DIoU-NMS", found.diou, found.only_diou),
    )
    columns = [Column("suppression", False), Column("AP"), Column("AP50"), Column("AP75"), Column("kept by it alone")]
    columns += [Column(NAMES[verdict], meaning=MEANINGS[verdict]) for verdict in Verdict]
    rows = []
    for name, matches, kept in sides:
        statistics = score(matches, areas=False).statistics
        numbers = [number_cell(float(statistics[key][0]), 4) for key in ("AP", "AP50", "AP75")]
        counts = [count_cell(value) for value in kept.counts.sum(0).tolist()]
        rows.append([Cell(name), *numbers, count_cell(len(kept.rows)), *counts])
    summary = Table(
        f"{count(found.both)} detections are kept by both. Those that only one keeps, by their kind at IoU 0.5",
        columns,
        rows,
        sortable=False,
    )
    blocks: list = [Text(suppression_sentence(found)), summary]
    if len(found.only_greedy.rows) or len(found.only_diou.rows):
        most = max(float(kept.counts.sum(0).max(initial=0)) for _, _, kept in sides)
        charts = [
            _chart(name, kept, most=most, prefix=prefix, place=place) for place, (name, _, kept) in enumerate(sides)
        ]
        blocks += [Figures(charts)]
        blocks += [_classes(found)]
    return [*blocks, Terms([(NAMES[verdict], MEANINGS[verdict]) for verdict in Verdict])]


def _chart(name: str, kept: OnlyKept, *, most: float, prefix: str, place: int):
    counts = kept.counts.sum(0)
    bars = [
        Bar(
            NAMES[verdict],
            float(counts[verdict]),
            note=count(int(counts[verdict])),
            color=RIGHT if verdict == Verdict.RIGHT else WRONG if verdict in _WRONG else "#8a8a8a",
        )
        for verdict in Verdict
    ]
    listed = ", ".join(f"{bar.label} {bar.note}" for bar in bars)
    title = f"Kept by {name} alone"
    return bar_chart(
        Frame(f"{prefix}nms{place}", x=Axis("detections", (0, 1.05 * most)), title=title, alt=f"{title}: {listed}"),
        bars,
    )


_WRONG = (Verdict.DUPLICATE, Verdict.BACKGROUND)


def _classes(found: SideBySide) -> Table:
    columns = [
        Column("class", False),
        Column("DIoU right", meaning="rightly kept by DIoU-NMS alone"),
        Column("DIoU wrong", meaning="wrongly kept by DIoU-NMS alone"),
        Column("greedy right", meaning="rightly kept by greedy NMS alone"),
        Column("greedy wrong", meaning="wrongly kept by greedy NMS alone"),
    ]
    rows = []
    for row, name in enumerate(found.diou.class_names):
        counts = [
            int(value)
            for kept in (found.only_diou, found.only_greedy)
            for value in (kept.counts[row, Verdict.RIGHT], kept.counts[row, list(_WRONG)].sum())
        ]
        if any(counts):
            rows.append((sum(counts), [Cell(name), *map(count_cell, counts)]))
    rows.sort(key=lambda pair: -pair[0])
    return Table("By class", columns, [row for _, row in rows], narrow=True)
