"""Packs decoded images, not yet resized, into a `Batch` of one bucket."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from diou_jax.data.buckets import Bucket, round_up
from diou_jax.data.taps import recolour, resample, taps
from diou_jax.data.view import View, whole
from diou_jax.structures import Batch, GroundTruth, Placement

Annotations = tuple[np.ndarray, np.ndarray, np.ndarray]
NO_ANNOTATIONS: Annotations = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)


def example(
    image: np.ndarray,
    view: View,
    bucket: Bucket,
    *,
    stride: int = 32,
    annotations: Annotations = NO_ANNOTATIONS,
    max_boxes: int = 1,
    index: int = 0,
) -> dict[str, Any]:
    """The fields of a `Batch` for one image, without the leading axis and with pixels not yet on a canvas.

    Args:
      image: (H, W, 3) uint8, BGR; it is resized here if the bucket's canvas cannot hold it.
      view: the network's view of the image.
      bucket: a bucket that holds the view.
      stride: the padded size is rounded up to a multiple of this.
      annotations: boxes (n, 4), classes (n,) and crowd flags (n,); boxes outside the view are left out.
      max_boxes: G; if there are more boxes, the largest are kept, in their order.
      index: the image's row in its data set.
    """
    image, shown = recolour(image, view), view
    if image.shape[0] > bucket.canvas_height or image.shape[1] > bucket.canvas_width:
        image, shown = resample(image, view), whole(view.size)
    rows, columns = taps(shown, bucket.shape)
    boxes, seen = view.boxes(annotations[0])
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
        "gt": _padded(boxes[seen], annotations[1][seen], annotations[2][seen], max_boxes=max_boxes),
        "index": np.int32(index),
        "present": np.True_,
    }


def blank(bucket: Bucket, *, stride: int = 32, max_boxes: int = 1, index: int = 0) -> dict[str, Any]:
    """As `example`, for a black image that fills up a batch and is not present."""
    view = whole((stride, stride))
    side = np.zeros((*view.size, 3), np.uint8)
    return example(side, view, bucket, stride=stride, max_boxes=max_boxes, index=index) | {"present": np.False_}


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


def _padded(boxes, classes, crowd, *, max_boxes) -> GroundTruth:
    if len(boxes) > max_boxes:
        area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
        largest = np.sort(np.argsort(-area, kind="stable")[:max_boxes])
        boxes, classes, crowd = boxes[largest], classes[largest], crowd[largest]

    def pad(values, dtype):
        padded = np.zeros((max_boxes, *values.shape[1:]), dtype)
        padded[: len(values)] = values
        return padded

    return GroundTruth(
        boxes=pad(boxes, np.float32),
        classes=pad(classes, np.int32),
        crowd=pad(crowd, bool),
        valid=np.arange(max_boxes) < len(boxes),
    )
