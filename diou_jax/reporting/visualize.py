"""Pictures of detections beside ground truth."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from diou_jax.masks import Rle, decode
from diou_jax.structures import Array

# Limits of a picture's longer side, in pixels: small images are enlarged until labels are legible, large ones reduced.
SMALLEST, LARGEST = 720, 1024

# In pixels of the picture: thickness of borders, space around text, area below which a label would hide a box.
LINE, PADDING, SMALL_AREA = 2, 2, 3000
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42

# Share of its colour in the picture inside a mask.
OPACITY = 0.45

DARK, LIGHT = (24, 24, 24), (240, 240, 240)


def class_color(number: int) -> tuple[int, int, int]:
    """A bright BGR colour for a class; classes with neighbouring numbers have very different colours."""
    # Steps of the golden angle never repeat a hue; saturation and value distinguish similar hues.
    saturation, value = ((0.4, 1.0), (0.75, 1.0), (0.75, 0.85))[number % 3]
    rgb = colorsys.hsv_to_rgb((number * 0.6180339887 + 0.35) % 1.0, saturation, value)
    red, green, blue = (round(255 * channel) for channel in rgb)
    return blue, green, red


class Objects(NamedTuple):
    """N objects of an image, detected or annotated.

    Attributes:
      boxes: float (N, 4), inclusive pixels of the image; labels are placed in this order.
      classes: int (N,), indices of the names of classes.
      scores: (N,), shown in the labels if given.
      crowd: (N,) bool; crowd regions are dashed and hatched.
      rles: N masks of the image, which are filled and outlined; None in the place of an object without a mask.
    """

    boxes: Array
    classes: Array | Sequence[int]
    scores: Array | Sequence[float] | None = None
    crowd: Array | Sequence[bool] | None = None
    rles: Sequence[Rle | None] | None = None


class _Pen(NamedTuple):
    """Sizes in pixels of the picture: thickness of borders and letters, space around text; and the font's scale."""

    line: int = LINE
    stroke: int = 1
    padding: int = PADDING
    font_scale: float = FONT_SCALE


def draw(
    image: np.ndarray, objects: Objects, *, class_names: Sequence[str] | Mapping[int, str], fit: bool = True
) -> np.ndarray:
    """Draws objects with their labels into a copy of an image.

    Args:
      image: uint8 (H, W, 3), BGR.
      objects: the boxes, their labels and masks.
      class_names: names by class.
      fit: whether the copy is enlarged or reduced, so that its longer side lies between `SMALLEST` and `LARGEST`. If
        not, lines and letters grow with an image that is larger than `LARGEST`.

    Returns:
      The picture, uint8 (H', W', 3), BGR.
    """
    boxes, classes, scores, crowd, rles = objects
    canvas = _fit(image) if fit else image.copy()
    height, width = canvas.shape[:2]
    pen = _pen(height, width)
    factor = np.array([width / image.shape[1], height / image.shape[0]] * 2)
    # A box reaches from the near edge of its first pixel to the far edge of its last.
    edges = (np.asarray(boxes, np.float64).reshape(-1, 4) + np.array([0, 0, 1, 1])) * factor
    rectangles = np.clip(np.round(edges), 0, [width - 1, height - 1, width, height]).astype(int)
    rectangles[:, 2:] = np.maximum(rectangles[:, 2:], rectangles[:, :2] + 1)
    crowd = np.zeros(len(rectangles), bool) if crowd is None else np.asarray(crowd, bool)
    colors = [class_color(int(number)) for number in classes]

    # Small objects are drawn last, so that no border crosses them and no mask covers them.
    order = np.argsort(-(rectangles[:, 2:] - rectangles[:, :2]).prod(1), kind="stable").tolist()
    for i in order:
        if rles is not None and (rle := rles[i]) is not None:
            _fill(canvas, rle, colors[i])
    for i in order:
        _outline(canvas, rectangles[i], colors[i], hatched=crowd[i], line=pen.line)
    # A label should cover neither other labels nor objects of about its own size.
    taken = [box for box in rectangles if (box[2] - box[0]) * (box[3] - box[1]) < SMALL_AREA]
    for i, rectangle in enumerate(rectangles):
        text = class_names[int(classes[i])] + ("" if scores is None else f" {scores[i]:.2f}")
        text = text.encode("utf-8", "backslashreplace").decode()  # OpenCV rejects lone surrogates
        _label(canvas, rectangle, text + (" (crowd)" if crowd[i] else ""), colors[i], taken, pen)
    return canvas


def side_by_side(
    image: np.ndarray,
    found: Objects,
    truth: Objects,
    *,
    class_names: Sequence[str],
    captions: tuple[str, str] = ("detections", "ground truth"),
) -> np.ndarray:
    """Detections on the left, ground truth on the right, both as by `draw`, under captions with their numbers."""
    left = _captioned(draw(image, found, class_names=class_names), f"{captions[0]}: {len(found.boxes)}")
    right = _captioned(draw(image, truth, class_names=class_names), f"{captions[1]}: {len(truth.boxes)}")
    gap = np.full((len(left), 4, 3), DARK, np.uint8)
    return np.hstack([left, gap, right])


def _fit(image):
    """A copy whose longer side lies within the limits."""
    height, width = image.shape[:2]
    factor = float(np.clip(max(height, width), SMALLEST, LARGEST)) / max(height, width)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def _pen(height, width):
    """The pen for a picture; it grows with pictures beyond `LARGEST`."""
    factor, usual = max(height, width) / LARGEST, _Pen()
    if factor <= 1:
        return usual
    line, stroke, padding = (round(size * factor) for size in (usual.line, usual.stroke, usual.padding))
    return _Pen(line, stroke, padding, usual.font_scale * factor)


def _fill(canvas, rle, color):
    """Draws a mask of the image, scaled to the canvas: its inside translucent, its outline solid."""
    height, width = rle["size"]
    mask = decode([rle], height=height, width=width)[0].view(np.uint8)
    # Blurring by the interpolation and cutting at one half rounds the corners of enlarged pixels.
    scaled = cv2.resize(255 * mask, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    inside = scaled > 127
    canvas[inside] = (canvas[inside] * (1 - OPACITY) + np.array(color) * OPACITY).astype(np.uint8)
    canvas[inside & ~cv2.erode(inside.view(np.uint8), np.ones((3, 3))).view(bool)] = color


def _outline(canvas, rectangle, color, *, hatched, line):
    """Draws the border of x1, y1, x2, y2 (x2 and y2 exclusive) inside it; dashed and hatched if `hatched`."""
    x1, y1, x2, y2 = rectangle
    region = canvas[y1:y2, x1:x2]
    y, x = np.ogrid[: y2 - y1, : x2 - x1]
    depth = np.minimum(np.minimum(x, x2 - x1 - 1 - x), np.minimum(y, y2 - y1 - 1 - y))
    border = depth < line
    if hatched:
        border &= (x + y) // 8 % 2 == 0
        stripes = (x + y) % 12 < 1
        region[stripes] = region[stripes] // 2 + np.array(color, np.uint8) // 2
    # A dark line inside keeps the border visible on a background of its colour.
    shadow = depth == line
    region[shadow] = region[shadow] // 2
    region[border] = color


def _label(canvas, rectangle, text, color, taken, pen):
    """Writes a label at the corner of its rectangle where it covers least of `taken`, and adds its place to `taken`."""
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, pen.font_scale, pen.stroke)
    width, height = text_width + 2 * pen.padding, text_height + baseline + 2 * pen.padding - 1
    x1, y1, x2, y2 = rectangle
    corners = [(x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2), (x1, y1), (x1, y2 - height)]
    limit = np.maximum([canvas.shape[1] - width, canvas.shape[0] - height], 0)
    places = [(x, y, x + width, y + height) for x, y in np.clip(corners, 0, limit).tolist()]
    left, top, right, bottom = min(places, key=lambda place: sum(_shared_area(place, other) for other in taken))
    taken.append((left, top, right, bottom))
    canvas[top:bottom, left:right] = color
    blue, green, red = color
    ink = DARK if 0.114 * blue + 0.587 * green + 0.299 * red > 110 else LIGHT
    origin = left + pen.padding, top + pen.padding + text_height
    cv2.putText(canvas, text, origin, FONT, pen.font_scale, ink, pen.stroke, cv2.LINE_AA)


def _shared_area(a, b):
    """The shared area of two rectangles x1, y1, x2, y2, in pixels."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _captioned(picture, text):
    bar = np.full((30, picture.shape[1], 3), DARK, np.uint8)
    cv2.putText(bar, text, (8, 20), FONT, 1.2 * FONT_SCALE, LIGHT, 1, cv2.LINE_AA)
    return np.vstack([bar, picture])
