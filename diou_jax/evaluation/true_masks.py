"""The masks of annotation files as COCO's run lengths, to evaluate against; see docs/reliability.md for faulty ones."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from diou_jax.data import rle
from diou_jax.data.annotations import id_key, integer, read
from diou_jax.data.dataset import clean_boxes
from diou_jax.masks import Rle


class UnusableMaskError(ValueError):
    """A ``"segmentation"`` that states no mask of its image; the message is the reason."""


def of_segmentation(segmentation: Any, *, height: int, width: int) -> dict:
    """The mask of an object.

    Polygons are filled by pycocotools, as in COCO's own evaluation. pycocotools takes memory for every pixel that an
    edge passes and reads beyond the end of broken strings, so that both are checked first.

    Args:
      segmentation: the json value: a list of parts ``[x1, y1, x2, y2, ...]``, or ``size`` and ``counts`` of an RLE,
        compressed or not. Parts with less than three points do not count, as in the original.
      height: height of the image in pixels.
      width: likewise.

    Returns:
      COCO's RLE, its ``counts`` as bytes.

    Raises:
      UnusableMaskError: if it is missing, empty, of another size than the image, or no such value.
    """
    if isinstance(segmentation, dict):
        return _of_runs(segmentation.get("size"), segmentation.get("counts"), height, width)
    if segmentation is None or segmentation == []:
        raise UnusableMaskError("it has none")
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise UnusableMaskError("it is neither a list of polygons nor an RLE")
    parts = [_polygon(part) for part in segmentation if len(part) >= 6]
    if not parts:
        raise UnusableMaskError("no part has three points")
    points, size = np.concatenate(parts).reshape(-1, 2), np.array([width, height])
    low, high = points.min(0), points.max(0)
    if (low >= size).any() or (high <= 0).any() or (low < -size).any() or (high > 2 * size).any():
        raise UnusableMaskError(f"it reaches from {low.tolist()} to {high.tolist()}, its image is {width}x{height}")
    return coco_mask.merge(coco_mask.frPyObjects(parts, height, width))


def of_box(xywh: Sequence[float], *, height: int, width: int) -> dict:
    """The mask that fills the part of a box inside its image."""
    x, y, w, h = xywh
    left, right = np.clip([x, x + w], 0, width)
    top, bottom = np.clip([y, y + h], 0, height)
    box = np.array([[left, top, right - left, bottom - top]], np.float64)
    return coco_mask.frPyObjects(box, height, width)[0]


def by_box(
    annotation_files: Sequence[str | os.PathLike], sizes: Mapping[int | str, tuple[int, int]]
) -> dict[tuple, Rle]:
    """The usable masks of some images' objects, to draw them.

    Args:
      annotation_files: COCO json files.
      sizes: height and width of the images by id.

    Returns:
      Masks by the key of the image and x1, y1, x2, y2 of the object's box, clipped as `clean_boxes` does.
    """
    wanted = {id_key(key): size for key, size in sizes.items()}
    found: dict[tuple, Rle] = {}
    for file in annotation_files:
        columns = read(file, segmentations=True).boxes
        for key, xywh, segmentation in zip(columns.images, columns.xywh, columns.segmentations or (), strict=True):
            if key not in wanted:
                continue
            height, width = wanted[key]
            box, *_ = clean_boxes(xywh, height, width)
            with contextlib.suppress(UnusableMaskError):
                mask = of_segmentation(segmentation, height=height, width=width)
                found[key, *box[0].tolist()] = Rle(size=[height, width], counts=mask["counts"].decode())
    return found


def _polygon(part):
    try:
        points = np.array(part, np.float64)
    except (OverflowError, TypeError, ValueError):
        raise UnusableMaskError("it has coordinates that are no numbers") from None
    if points.ndim > 1 or len(points) % 2 or not np.isfinite(points).all():
        raise UnusableMaskError("its coordinates are not pairs of finite numbers")
    return points


def _of_runs(size, counts, height, width):
    if not isinstance(size, list) or [integer(side) for side in size] != [height, width]:
        raise UnusableMaskError(f"it is an RLE of size {size!r:.99}, its image has {[height, width]}")
    try:
        lengths = rle.lengths(counts)
    except ValueError as error:
        raise UnusableMaskError(f"its RLE cannot be decoded: {error}") from None
    if lengths.sum() != height * width:
        raise UnusableMaskError(f"the runs of its RLE are {lengths.sum()} pixels long, its image has {height * width}")
    if not lengths[1::2].any():
        raise UnusableMaskError("its RLE has no pixel")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode()}
    return coco_mask.frPyObjects([{"size": [height, width], "counts": lengths}], height, width)[0]
