"""Packs decoded images, not yet resized, into a `Batch` of one bucket."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diou_jax.data.buckets import Bucket, round_up
from diou_jax.data.outlines import from_parts
from diou_jax.data.taps import recolour, resample, taps
from diou_jax.data.view import View, flip_points, whole
from diou_jax.structures import Batch, GroundTruth, Placement, Polygons


class Annotations(NamedTuple):
    """The n objects of an image.

    Attributes:
      boxes: (n, 4), inclusive pixels of the image.
      classes: (n,).
      crowd: (n,) bool.
      masks: the objects' outlines with points (n, P, 2) float64 and parts (n, P), or None where no head needs them.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    masks: Polygons | None = None


NO_ANNOTATIONS = Annotations(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))


def visible(annotations: Annotations, view: View, *, least: float) -> Annotations:
    """Leaves out an object if the view shows a smaller share of its box than `least`; crowd regions stay.

    The class of an object can hardly be told by a sliver of it.
    """
    if not least or not view.cuts:
        return annotations
    boxes, _ = view.boxes(annotations.boxes)
    areas, shown = ((x[:, 2:] - x[:, :2] + 1).clip(0).prod(1) for x in (annotations.boxes, boxes))
    kept = annotations.crowd | (shown >= least * areas)
    return jax.tree.map(lambda column: column[kept], annotations)


def example(
    image: np.ndarray,
    view: View,
    bucket: Bucket,
    *,
    stride: int = 32,
    annotations: Annotations | tuple[np.ndarray, np.ndarray, np.ndarray] = NO_ANNOTATIONS,
    max_boxes: int = 1,
    index: int = 0,
) -> dict[str, Any]:
    """The fields of a `Batch` for one image, without the leading axis and with pixels not yet on a canvas.

    Args:
      image: (H, W, 3) uint8, BGR; it is resized here if the bucket's canvas cannot hold it.
      view: the network's view of the image.
      bucket: a bucket that holds the view.
      stride: the padded size is rounded up to a multiple of this.
      annotations: the image's objects; those whose boxes lie outside the view are left out.
      max_boxes: G; if there are more boxes, the largest are kept, in their order.
      index: the image's row in its data set.
    """
    image, shown = recolour(image, view), view
    if image.shape[0] > bucket.canvas_height or image.shape[1] > bucket.canvas_width:
        image, shown = resample(image, view), whole(view.size)
    rows, columns = taps(shown, bucket.shape)
    truth = Annotations(*annotations)
    boxes, seen = view.boxes(truth.boxes)
    truth = truth._replace(boxes=boxes, masks=_mirrored(truth.masks, view))
    truth = jax.tree.map(lambda column: column[seen], truth)
    return {
        "image": image,
        "rows": rows,
        "columns": columns,
        "image_size": np.array(view.size, np.int32),
        "padded_size": round_up(np.array(view.size, np.int32), stride),
        "placement": Placement(
            np.array(view.scale, np.float32), np.array(view.offset, np.float32), np.array(view.mirrored)
        ),
        "original_size": np.array(view.source, np.int32),
        "gt": _padded(truth, max_boxes),
        "index": np.int32(index),
        "present": np.True_,
    }


def blank(
    bucket: Bucket, *, stride: int = 32, max_boxes: int = 1, max_vertices: int | None = None, index: int = 0
) -> dict[str, Any]:
    """As `example`, for a black image that fills up a batch and is not present.

    Its ground truth has outlines of `max_vertices` vertices, P, as the other images of the batch have, or none if this
    is None.
    """
    view = whole((stride, stride))
    side = np.zeros((*view.size, 3), np.uint8)
    annotations = NO_ANNOTATIONS
    if max_vertices is not None:
        annotations = annotations._replace(masks=from_parts([]).padded(max_vertices))
    filling = example(side, view, bucket, stride=stride, annotations=annotations, max_boxes=max_boxes, index=index)
    return filling | {"present": np.False_}


def pack(examples: Sequence[dict[str, Any]], bucket: Bucket) -> Batch:
    """Packs B examples of a bucket into a batch of numpy arrays."""
    # The canvas starts with zeros, so that every process makes the same bits of a step's batch.
    canvas = np.zeros((len(examples), *bucket.canvas, 3), np.uint8)
    for row, one in zip(canvas, examples):
        height, width = one["image"].shape[:2]
        row[:height, :width] = one["image"]
    columns = jax.tree.map(
        lambda *leaves: np.stack(leaves), *({k: v for k, v in one.items() if k != "image"} for one in examples)
    )
    return Batch(image=canvas, **columns)


def _mirrored(masks: Polygons | None, view: View) -> Polygons | None:
    if masks is None or not view.mirrored:
        return masks
    points = flip_points(np.asarray(masks.points), view.source[1])
    return dataclasses.replace(masks, points=np.where(masks.part[..., None] < 0, 0, points))


def _padded(truth: Annotations, max_boxes: int) -> GroundTruth:
    """The ground truth with `max_boxes` rows; the largest boxes are kept, in their order."""
    if len(truth.boxes) > max_boxes:
        boxes = truth.boxes
        area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
        largest = np.sort(np.argsort(-area, kind="stable")[:max_boxes])
        truth = jax.tree.map(lambda column: column[largest], truth)

    def pad(values, dtype, filling=0):
        padded = np.full((max_boxes, *values.shape[1:]), filling, dtype)
        padded[: len(values)] = values
        return padded

    masks = truth.masks
    return GroundTruth(
        boxes=pad(truth.boxes, np.float32),
        classes=pad(truth.classes, np.int32),
        crowd=pad(truth.crowd, bool),
        valid=np.arange(max_boxes) < len(truth.boxes),
        masks=None if masks is None else Polygons(pad(masks.points, np.float32), pad(masks.part, np.int32, -1)),
    )
