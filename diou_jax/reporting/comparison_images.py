"""The images that differ most, as parts of a comparison page."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from diou_jax.analysis.comparison import Comparison, Difference, ImageDifference, Side
from diou_jax.analysis.curves import best_threshold
from diou_jax.reporting.document import (
    Cell,
    Column,
    Gallery,
    Heading,
    Panel,
    Photograph,
    Shape,
    Table,
    Text,
    count_cell,
    number,
    plural,
    signed,
)
from diou_jax.reporting.findings import USUAL_THRESHOLD
from diou_jax.reporting.gallery import MOST, Album, found_shape, true_shape, with_tags

KEYS = (
    ("found", "object that only this one finds"),
    ("missed", "object that only the other one finds"),
    ("wrong", "wrong detection"),
    ("same", "right detection"),
)


def image_blocks(one: Comparison, album: Album | None, prefix: str) -> list:
    """The images in which the evaluations differ most, drawn if there is an album, else as tables."""
    blocks: list = []
    for place, (side, difference) in enumerate(zip(one.sides[1:], one.differences, strict=True)):
        if len(one.sides) > 2:
            blocks.append(Heading(f"{side.name} against {one.sides[0].name}"))
        if not difference.images:
            blocks.append(Text("No image differs."))
        elif album is None:
            blocks.append(_image_table(difference))
        else:
            photographs = [
                _photograph(f"{prefix}image{place}n{number}", one.sides[0], side, image, album)
                for number, image in enumerate(difference.images)
            ]
            blocks.append(Gallery(photographs, KEYS))
    return blocks


def _image_table(difference: Difference) -> Table:
    columns = [
        Column("image", False),
        Column("gain of AP"),
        Column("objects gained"),
        Column("objects lost"),
        Column("wrong before"),
        Column("wrong after"),
    ]
    rows = [
        [
            Cell(str(one.image_id)),
            Cell(signed(one.gain, 4), value=one.gain),
            *(count_cell(len(rows)) for rows in (one.gained, one.lost, one.false, one.other_false)),
        ]
        for one in difference.images
    ]
    return Table("Images that differ most", columns, rows)


def _photograph(name: str, first: Side, other: Side, one: ImageDifference, album: Album) -> Photograph:
    photo = album.photo(one.image_id)
    gained, lost = one.gained.tolist(), one.lost.tolist()
    panels = [
        _panel(first, one, finds=lost, misses=gained, album=album),
        _panel(other, one, finds=gained, misses=lost, album=album),
    ]
    note = (
        f"gain {signed(one.gain, 4)} AP: {plural(len(gained), 'object')} gained, {len(lost)} lost; wrong detections "
        f"{len(one.false)} before, {len(one.other_false)} after"
    )
    alt = f"{photo.title}: {note}"
    return with_tags(Photograph(name, photo.title, photo.link, photo.source, photo.size, alt, note, panels))


def _panel(side: Side, one: ImageDifference, *, finds: Sequence[int], misses: Sequence[int], album: Album) -> Panel:
    matches = side.matches
    true, row50 = matches.true, matches.threshold(0.5)
    here = matches.found.images == one.image

    def shape(row: int, style: str) -> Shape:
        key = matches.image_ids[true.images[row]]
        mask = album.true_mask(key, true.boxes[row]) if matches.kind == "segm" else None
        return true_shape(matches, row, style=style, found=None, mask=mask)

    best = best_threshold(matches).threshold
    least = best if math.isfinite(best) else USUAL_THRESHOLD
    good = matches.found.scores >= least
    wrong, right = (np.flatnonzero(here & rows[row50]).tolist() for rows in (matches.wrong(), matches.right()))
    drawn = [row for row in wrong if good[row]][: MOST // 2]
    shapes = [
        dataclasses.replace(found_shape(matches, row, style="same", meaning="right", mask=None), label="")
        for row in right
        if good[row]
    ]
    shapes += [found_shape(matches, row, style="wrong", meaning="wrong", mask=None) for row in drawn]
    shapes += [shape(row, "found") for row in list(finds)[:MOST]] + [
        shape(row, "missed") for row in list(misses)[:MOST]
    ]
    left = len(wrong) - len(drawn)
    more = f"; {left} with lower scores not drawn" if left else ""
    return Panel(f"{side.name}: {len(drawn)} wrong from score {number(least, 2)}{more}", shapes)
