"""Photographs of a page, on which right and wrong detections, found and missed objects are drawn as vectors."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

from diou_jax.analysis.errors import ERRORS, Kind
from diou_jax.analysis.matches import Matches
from diou_jax.analysis.worst_images import ImageErrors
from diou_jax.masks import Rle, decode
from diou_jax.reporting import picture_files
from diou_jax.reporting.charts import letters
from diou_jax.reporting.document import Gallery, Panel, Photograph, Shape, count, number, plural, signed
from diou_jax.reporting.error_words import NAMES
from diou_jax.reporting.findings import Findings

# Longer side in pixels and JPEG quality of the photographs inside a page.
LONGEST, QUALITY = 640, 80

# Detections, and objects, that are drawn on a photograph at most; a caption counts the rest.
MOST = 60

KEYS = (
    ("right", "right, or found"),
    ("wrong", "wrong"),
    ("duplicate", "duplicate"),
    ("missed", "missed"),
    ("crowd", "region to ignore"),
)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photograph: its title, its file's address or an empty text, its data URI, and width and height of its file."""

    title: str
    link: str
    source: str
    size: tuple[int, int]


class Album(Protocol):
    """The images of a test set, with masks of objects where there are any."""

    def photo(self, image_id: int | str) -> Photo:
        """The photograph of an image; its source is empty if the file cannot be read."""

    def found_mask(self, kind: str, result: int) -> Rle | None:
        """The mask of a detection, by its row in the results of a kind."""

    def true_mask(self, image_id: int | str, box: Sequence[float]) -> Rle | None:
        """The mask of an object, by its image and its box x, y, width, height."""


def data_uri(image: np.ndarray) -> str:
    """A uint8 BGR (H, W, 3) image as a small JPEG inside an address."""
    encoded = picture_files.encode(image, quality=QUALITY, longest_side=LONGEST)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def worst_gallery(findings: Findings, album: Album, prefix: str) -> Gallery:
    """The images with the largest losses of AP: detections on the left, objects on the right."""
    photographs = [
        _photograph(f"{prefix}worst{place}", findings, one, album) for place, one in enumerate(findings.worst, start=1)
    ]
    return Gallery(photographs, KEYS)


def _photograph(name: str, findings: Findings, one: ImageErrors, album: Album) -> Photograph:
    matches, least = findings.matches, findings.shown_from
    found, true = matches.found, matches.true
    photo = album.photo(one.image_id)
    styles = dict.fromkeys(one.false.tolist(), "wrong")
    styles |= dict.fromkeys(one.duplicates.tolist(), "duplicate") | dict.fromkeys(one.right.tolist(), "right")
    shown = [row for row in sorted(styles, key=lambda row: -found.scores[row]) if found.scores[row] >= least]
    row50 = matches.threshold(0.5)
    kinds = findings.errors.found[row50]
    shapes = [
        found_shape(
            matches,
            row,
            style=styles[row],
            meaning="right" if styles[row] == "right" else NAMES[Kind(int(kinds[row]))],
            mask=album.found_mask(matches.kind, int(found.results[row])),
        )
        for row in shown[:MOST]
    ]
    objects = np.flatnonzero(true.images == one.image).tolist()
    missed = set(one.missed.tolist())

    def style(row):
        return "crowd" if true.crowd[row] else "missed" if row in missed else "found"

    order = sorted(objects, key=lambda row: ("missed", "found", "crowd").index(style(row)))
    truths = [
        true_shape(
            matches,
            row,
            style=style(row),
            found=float(found.scores[matched]) if (matched := int(true.matched[0, row50, row])) >= 0 else None,
            mask=album.true_mask(one.image_id, true.boxes[row]),
        )
        for row in order[:MOST]
    ]
    below = len(styles) - len(shown)
    left = f"{plural(len(shown), 'detection')} from score {number(least, 2)}" + _more(shown)
    left += f"; {count(below)} below it not drawn" if below else ""
    right = f"{plural(len(objects), 'object')}, {len(missed)} missed" + _more(objects)
    kinds_here = [Kind(int(kinds[row])) for row in [*one.false.tolist(), *one.duplicates.tolist()]]
    parts = [f"{kinds_here.count(kind)} {NAMES[kind]}" for kind in ERRORS if kind in kinds_here]
    note = f"costs {signed(one.loss, 4).lstrip('+')} AP. At any score: " + ", ".join(
        [f"{len(one.right)} right", *parts, f"{len(missed)} missed"]
    )
    alt = f"{photo.title}: {note}"
    panels = [Panel(left, shapes), Panel(right, truths)]
    return with_tags(Photograph(name, photo.title, photo.link, photo.source, photo.size, alt, note, panels))


def _more(rows: Sequence) -> str:
    return f", the first {MOST} are drawn" if len(rows) > MOST else ""


def found_shape(matches: Matches, row: int, *, style: str, meaning: str, mask: Rle | None) -> Shape:
    """A detection, by its row of `FoundObjects`."""
    found = matches.found
    label = f"{matches.class_names[found.classes[row]]} {number(float(found.scores[row]), 2)}"
    text = f"{label}: {meaning}"
    if (best := _best_overlap(matches, row)) is not None:
        iou, true = best
        text += f"; IoU {number(iou, 2)} with {matches.class_names[matches.true.classes[true]]}"
    return _shape(found.boxes[row], label, text, style=style, mask=mask)


def true_shape(matches: Matches, row: int, *, style: str, found: float | None, mask: Rle | None) -> Shape:
    """An object, by its row of `TrueObjects`; `found` is the score of its detection."""
    name = matches.class_names[matches.true.classes[row]]
    meaning = {"crowd": "region to ignore", "missed": "missed"}.get(style, "found")
    if found is not None and style != "crowd":
        meaning += f" with score {number(found, 2)}"
    label = "" if style == "crowd" else name
    return _shape(matches.true.boxes[row], label, f"{name}: {meaning}", style=style, mask=mask)


def _best_overlap(matches: Matches, row: int) -> tuple[float, int] | None:
    """The largest IoU of a detection with an object, and the object's row."""
    start, stop = np.searchsorted(matches.overlaps.found, [row, row + 1])
    if start == stop:
        return None
    best = start + int(np.argmax(matches.overlaps.ious[start:stop]))
    return float(matches.overlaps.ious[best]), int(matches.overlaps.true[best])


def _shape(box: np.ndarray, label: str, meaning: str, *, style: str, mask: Rle | None) -> Shape:
    x, y, width, height = (round(float(side), 1) for side in box)
    path = "" if mask is None else outline(mask)
    return Shape(x, y, max(width, 0), max(height, 0), label, (x, y), meaning, style, path)


def with_tags(photograph: Photograph) -> Photograph:
    """The photograph with each label at the corner of its box where it covers least of other labels and small boxes."""
    size = photograph.tag_size
    panels = []
    for panel in photograph.panels:
        small = [shape for shape in panel.shapes if shape.width * shape.height < (5 * size) ** 2]
        taken = [(shape.x, shape.y, shape.x + shape.width, shape.y + shape.height) for shape in small]
        shapes = [_with_tag(shape, photograph.size, size, taken) for shape in panel.shapes]
        panels.append(dataclasses.replace(panel, shapes=shapes))
    return dataclasses.replace(photograph, panels=panels)


def _with_tag(shape: Shape, photo: tuple[int, int], size: float, taken: list) -> Shape:
    if not shape.label:
        return shape
    # A letter of the page's bold font is about 0.6 as wide as high.
    width, height = 0.6 * size * letters(shape.label), 1.2 * size
    left, right = shape.x, shape.x + shape.width - width
    above, below = shape.y - height, shape.y + shape.height
    inside = shape.y, shape.y + shape.height - height
    corners = [(x, y) for y in (above, below, *inside) for x in (left, right)]
    limit = np.maximum([photo[0] - width, photo[1] - height], 0)
    places = [(x, y, x + width, y + height) for x, y in np.clip(corners, 0, limit).tolist()]
    place = min(places, key=lambda one: sum(_shared(one, other) for other in taken))
    taken.append(place)
    return dataclasses.replace(shape, tag=(round(place[0], 1), round(place[1] + 0.95 * size, 1)))


def _shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def outline(rle: Rle) -> str:
    """The border of a mask as SVG's path data, to half a pixel, in pixels of the image."""
    height, width = rle["size"]
    mask = decode([rle], height=height, width=width)[0].view(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    paths = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.5, True).reshape(-1, 2)
        if len(points) > 2:
            # Contours run through centres of pixels, while boxes reach to their edges.
            paths.append("M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in points.tolist()) + "Z")
    return "".join(paths)
