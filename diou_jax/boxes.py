"""Boxes and conversions between their representations.

This is the convention of the whole package. A box is ``[x1, y1, x2, y2]`` in pixels, and both corner pixels belong to
it: its width is ``x2 - x1 + 1``, its height ``y2 - y1 + 1``, its centre ``x1 + width / 2`` on the axis where pixel i
spans [i, i + 1]. In an image W pixels wide x runs from 0 to W - 1. Only the box losses of `diou_jax.overlaps` use
continuous boxes, of width ``x2 - x1``.

Deltas ``[dx, dy, dw, dh]`` describe a box relative to a reference box: the shift of the centre in units of the
reference's size and the logarithm of the ratio of sizes, each multiplied by a weight (R-CNN, appendix C).
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Real

from diou_jax.structures import Array, Placement

T = TypeVar("T", jax.Array, np.ndarray)

# A decoded box is at most 1000 / 16 times as large as its reference, as in the original; the limit keeps exp finite.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def width_height(boxes: Float[T, "*batch 4"]) -> Float[T, "*batch 2"]:
    """(..., 4) boxes to (..., 2) widths and heights in pixels; not positive for a box without area."""
    return boxes[..., 2:] - boxes[..., :2] + 1


def area(boxes: Float[T, "*batch 4"]) -> Float[T, "*batch"]:
    """(..., 4) boxes to (...) areas in square pixels."""
    size = width_height(boxes)
    return size[..., 0] * size[..., 1]


def encode(
    boxes: Float[Array, "*#batch 4"],
    targets: Float[Array, "*#batch 4"],
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Float32[jax.Array, "*#batch 4"]:
    """Deltas that lead from `boxes` to `targets`; the inverse of `decode` within its limit.

    It equals the original's ``bbox_transform_inv``. A side that is not positive, for which the formula has no value,
    counts as one pixel.

    Args:
      boxes: float (..., 4), reference boxes, pixels.
      targets: float (..., 4), pixels.
      weights: weights of the four deltas: MODEL.BBOX_REG_WEIGHTS for the box head, ones for the RPN.

    Returns:
      Deltas (..., 4), always float32, since bfloat16 holds whole pixels up to 256 only.
    """
    boxes, targets = jnp.asarray(boxes, jnp.float32), jnp.asarray(targets, jnp.float32)
    size, target_size = width_height(boxes), width_height(targets)
    centre = boxes[..., :2] + 0.5 * size
    target_centre = targets[..., :2] + 0.5 * target_size
    size = jnp.where(size > 0, size, 1.0)
    target_size = jnp.where(target_size > 0, target_size, 1.0)
    shift = (target_centre - centre) / size
    return jnp.concatenate([shift, jnp.log(target_size / size)], -1) * jnp.asarray(weights, jnp.float32)


def decode(
    boxes: Float[Array, "*#batch 4"],
    deltas: Float[Array, "*#batch 4"],
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Float32[jax.Array, "*#batch 4"]:
    """The boxes that `deltas` lead to from `boxes`; the inverse of `encode` from references with area.

    It equals the original's ``bbox_transform``: growth is limited to `MAX_LOG_RATIO`, shrinking is not.

    Args:
      boxes: float (..., 4), reference boxes, pixels.
      deltas: float (..., 4), broadcast against `boxes`.
      weights: weights of the four deltas, as for `encode`.

    Returns:
      Boxes (..., 4), always float32, not clipped.
    """
    boxes, deltas = jnp.asarray(boxes, jnp.float32), jnp.asarray(deltas, jnp.float32)
    size = width_height(boxes)
    centre = boxes[..., :2] + 0.5 * size
    deltas = deltas / jnp.asarray(weights, jnp.float32)
    new_centre = deltas[..., :2] * size + centre
    new_size = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_RATIO)) * size
    return jnp.concatenate([new_centre - 0.5 * new_size, new_centre + 0.5 * new_size - 1], -1)


# Distance in pixels from the corner pixels' coordinates to the edges of a box.
_EDGES = (0.0, 0.0, 1.0, 1.0)


def clip(
    boxes: Float[Array, "*batch 4"],
    height: Real[ArrayLike, "*#batch"],
    width: Real[ArrayLike, "*#batch"],
    *,
    edges: bool = False,
) -> Float[jax.Array, "*batch 4"]:
    """Moves the corners of (..., 4) boxes into an image of `height` and `width` pixels (scalars, or shape (...)).

    Both corner pixels of a clipped box lie in the image. With `edges`, as in torchvision, its edges do, and a box
    beyond the image has no area.
    """
    boxes = jnp.asarray(boxes)
    limit = jnp.stack([jnp.asarray(width), jnp.asarray(height)] * 2, -1).astype(boxes.dtype)
    beyond = jnp.array(_EDGES if edges else (1.0, 1.0, 1.0, 1.0), boxes.dtype)
    return jnp.maximum(jnp.minimum(boxes, limit - beyond), 0 - beyond if edges else 0)


def to_input(
    boxes: Float[Array, "B *rows 4"], placement: Placement, *, edges: bool = False
) -> Float[Array, "B *rows 4"]:
    """Boxes of B images, from pixels of the original images, mirrored if `placement` is, to pixels of the input.

    The original maps the coordinates of the corner pixels. With `edges`, as in torchvision, the edges of a box are
    mapped; the right and lower ones lie one pixel beyond its last pixel.

    Args:
      boxes: float (B, ..., 4), pixels.
      placement: the maps of the images.
      edges: whether edges are mapped, or corner pixels.
    """
    scale, offset = _of_corners(placement, boxes.ndim)
    return to_edges(boxes) * scale + offset - jnp.array(_EDGES, boxes.dtype) if edges else boxes * scale + offset


def to_original(
    boxes: Float[Array, "B *rows 4"], placement: Placement, *, edges: bool = False
) -> Float[Array, "B *rows 4"]:
    """The inverse of `to_input`."""
    scale, offset = _of_corners(placement, boxes.ndim)
    return (to_edges(boxes) - offset) / scale - jnp.array(_EDGES, boxes.dtype) if edges else (boxes - offset) / scale


def mirror(
    boxes: Float[Array, "B *rows 4"], width: Real[Array, "B"], where: Bool[Array, "B *rows"]
) -> Float[jax.Array, "B *rows 4"]:
    """Mirrors boxes of B images `where` it is asked for.

    Args:
      boxes: float (B, ..., 4), inclusive pixels.
      width: (B,), widths of the images in pixels.
      where: bool (B, ...).
    """
    width = jnp.reshape(width, (-1,) + (1,) * (boxes.ndim - 2))
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return jnp.where(where[..., None], jnp.stack([width - x2 - 1, y1, width - x1 - 1, y2], -1), boxes)


def _of_corners(placement, rank):
    """Scale and offset of x1, y1, x2, y2, each (B, 1, ..., 4) of `rank` axes."""
    shape = (-1,) + (1,) * (rank - 2) + (4,)
    return (jnp.tile(values[:, ::-1], 2).reshape(shape) for values in (placement.scale, placement.offset))


def to_edges(boxes: Float[Array, "*batch 4"]) -> Float[jax.Array, "*batch 4"]:
    """Boxes (..., 4) as coordinates of their edges, so that the width is ``x2 - x1``."""
    return jnp.array(_EDGES, boxes.dtype) + boxes
