"""Overlaps of two boxes: IoU, GIoU, DIoU, CIoU.

`pairwise_iou` counts inclusive pixels, as all matching of boxes does. The element-wise functions measure continuous
boxes (width ``x2 - x1``); the losses differentiate them. `OVERLAPS` holds them by name. To add one, write a function of
two boxes and enter it there: the box losses of RPN and box head accept its name.

Values and gradients of the element-wise functions are finite for any finite boxes. A box with ``x2 < x1`` counts as
zero pixels wide at ``x1``, likewise along y; a box without area overlaps nothing, so that its IoU is 0.

References:
  Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
  Zheng et al., Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression, AAAI 2020.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Real

from diou_jax.kernels.iou import iou as inclusive_iou
from diou_jax.structures import Array

# As in the original: the quotients of empty boxes become 0; boxes of real size lose it in rounding.
EPSILON = 1e-7

# Larger than any image. Beyond it the squares of areas, by which gradients divide, overflow float32.
COORDINATE_LIMIT = 1e9


def pairwise_iou(a: Real[Array, "N 4"], b: Real[Array, "M 4"]) -> Float32[jax.Array, "N M"]:
    """IoU of every box of `a` (N, 4) with every box of `b` (M, 4), inclusive pixels: float32 (N, M).

    It equals the original's ``bbox_overlaps``. The IoU is 0 where boxes do not meet or have no area.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return inclusive_iou([a[:, None, i] for i in range(4)], [b[None, :, i] for i in range(4)])


class _Pair(NamedTuple):
    """Measures of a pair of continuous boxes, from which every overlap is computed; float32 (...)."""

    intersection: jax.Array
    union: jax.Array
    enclosing_size: jax.Array  # (..., 2)
    offset: jax.Array  # (..., 2), difference of the centres
    size: jax.Array  # (..., 2)
    target_size: jax.Array  # (..., 2)


def _measure(boxes, targets) -> _Pair:
    boxes, targets = (
        jnp.clip(corners.astype(jnp.float32), -COORDINATE_LIMIT, COORDINATE_LIMIT) for corners in (boxes, targets)
    )
    low, high = boxes[..., :2], boxes[..., 2:]
    target_low, target_high = targets[..., :2], targets[..., 2:]
    size, target_size = jnp.maximum(high - low, 0.0), jnp.maximum(target_high - target_low, 0.0)
    high, target_high = jnp.maximum(high, low), jnp.maximum(target_high, target_low)

    shared = jnp.minimum(high, target_high) - jnp.maximum(low, target_low)
    meet = (shared > 0).all(-1)
    shared = jnp.where(meet[..., None], shared, 0.0)
    intersection = shared[..., 0] * shared[..., 1]
    union = size.prod(-1) + target_size.prod(-1) - intersection + EPSILON
    enclosing_size = jnp.maximum(high, target_high) - jnp.minimum(low, target_low)
    # Corners are subtracted, not centres: far from the origin the centres themselves round too coarsely.
    offset = 0.5 * ((low - target_low) + (high - target_high))
    return _Pair(intersection, union, enclosing_size, offset, size, target_size)


def _distance_penalty(pair: _Pair) -> jax.Array:
    """Squared distance of the centres over the squared diagonal of the enclosing box, in [0, 1] (DIoU, eq. 6)."""
    diagonal = (pair.enclosing_size**2).sum(-1) + EPSILON
    return (pair.offset**2).sum(-1) / diagonal


def _angle(size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """arctan(width / height) of sizes (..., 2), and a mask of the sizes for which it is defined: all but points."""
    longer = jax.lax.stop_gradient(size.max(-1, keepdims=True))
    proper = longer >= jnp.finfo(size.dtype).tiny
    # Sides are divided by the longer one: atan2's gradient divides by the sum of their squares, which could underflow.
    sides = jnp.where(proper, size / jnp.where(proper, longer, 1.0), 1.0)
    return jnp.arctan2(sides[..., 0], sides[..., 1]), proper[..., 0]


def _aspect_penalty(pair: _Pair, overlap: jax.Array) -> jax.Array:
    """The weighted difference of aspect ratios, alpha v (CIoU, eq. 9 to 11); alpha receives no gradient."""
    (angle, proper), (target_angle, target_proper) = _angle(pair.size), _angle(pair.target_size)
    difference = jnp.where(proper & target_proper, target_angle - angle, 0.0)
    v = 4 / math.pi**2 * difference**2
    denominator = 1 - overlap + v
    # For identical boxes the formula of the paper and the original is 0 / 0.
    alpha = jnp.where(denominator > 0, v / jnp.where(denominator > 0, denominator, 1.0), 0.0)
    return jax.lax.stop_gradient(alpha) * v


def iou(boxes: Float[Array, "*#batch 4"], targets: Float[Array, "*#batch 4"]) -> Float32[jax.Array, "*#batch"]:
    """Intersection over union of continuous boxes (..., 4) with (..., 4): float32 (...), in [0, 1]."""
    pair = _measure(boxes, targets)
    return pair.intersection / pair.union


def giou(boxes: Float[Array, "*#batch 4"], targets: Float[Array, "*#batch 4"]) -> Float32[jax.Array, "*#batch"]:
    """IoU minus the share of the enclosing box that neither covers: float32 (...), in [-1, 1] (GIoU, algorithm 1)."""
    pair = _measure(boxes, targets)
    enclosing = pair.enclosing_size.prod(-1) + EPSILON
    return pair.intersection / pair.union - (enclosing - pair.union) / enclosing


def diou(boxes: Float[Array, "*#batch 4"], targets: Float[Array, "*#batch 4"]) -> Float32[jax.Array, "*#batch"]:
    """IoU minus the normalised squared distance of the centres: float32 (...), in [-1, 1] (DIoU, eq. 7)."""
    pair = _measure(boxes, targets)
    return pair.intersection / pair.union - _distance_penalty(pair)


def ciou(boxes: Float[Array, "*#batch 4"], targets: Float[Array, "*#batch 4"]) -> Float32[jax.Array, "*#batch"]:
    """DIoU minus the weighted difference of aspect ratios: float32 (...), in [-1.5, 1] (CIoU, eq. 10)."""
    pair = _measure(boxes, targets)
    overlap = pair.intersection / pair.union
    return overlap - (_distance_penalty(pair) + _aspect_penalty(pair, overlap))


OVERLAPS = {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou}
