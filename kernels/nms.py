"""Non-maximum suppression with IoU or DIoU: many independent problems at once, exact greedy semantics.

Boxes are inclusive pixels, ``[x1, y1, x2, y2]`` with width ``x2 - x1 + 1``. This module knows arrays only.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kernels import nms_gpu
from kernels.iou import product
from kernels.order import descending
from kernels.platform import choose

TILE = 128


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: float,
    *,
    valid: jax.Array | None = None,
    overlap: str = "iou",
    beta: float = 1.0,
) -> jax.Array:
    """Which boxes greedy suppression keeps; leading axes are independent problems.

    Boxes are visited by descending score, equal scores by ascending index. A box that is reached unsuppressed is kept
    and suppresses every later one whose overlap with it is at least `threshold`. The overlap is IoU, or DIoU-NMS'
    ``IoU - (d / c) ** beta``: d is the squared distance of the centres, c the squared diagonal of the smallest box
    around both, measured without the inclusive pixel, as the original does; where c is 0, so is the penalty (Zheng et
    al., AAAI 2020, eq. 12).

    Args:
      boxes: float (..., N, 4), pixels.
      scores: float (..., N). A box whose score is NaN is never kept.
      threshold: TEST.NMS or RPN_NMS_THRESH.
      valid: bool (..., N); boxes that are not valid are neither kept nor suppress others. None: all are.
      overlap: "iou" or "diou".
      beta: TEST.DIOU_NMS.BETA1, exponent of DIoU's penalty.

    Returns:
      bool (..., N), True where a box is kept, in the order of the input.

    Raises:
      ValueError: for another overlap.
    """
    if overlap not in ("iou", "diou"):
        raise ValueError(f"overlap must be 'iou' or 'diou', not {overlap!r}")
    *lead, count, _ = boxes.shape
    if scores.size == 0:
        return jnp.zeros(scores.shape, bool)
    exists = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)
    order, exists = _by_priority(scores.reshape(-1, count), exists.reshape(-1, count))
    ordered = jnp.take_along_axis(boxes.reshape(-1, count, 4).astype(jnp.float32), order[..., None], 1)
    test = functools.partial(suppresses, overlap=overlap, beta=beta)
    operands = ordered, exists.sum(1, dtype=jnp.int32), jnp.asarray(threshold, jnp.float32)
    twin = functools.partial(keep_xla, suppresses=test)
    if nms_gpu.fits(len(order), count):
        kept = choose(functools.partial(nms_gpu.keep, suppresses=test), twin, *operands)
    else:
        kept = twin(*operands)
    rows = jnp.arange(len(order))[:, None]
    keep = jnp.zeros_like(exists).at[rows, order].set(kept & exists, unique_indices=True)
    return keep.reshape(*lead, count)


def _by_priority(scores, exists):
    """The order (P, N) in which boxes are visited, those that do not exist last, and `exists` in that order."""
    # Plus 0, which makes 0 of -0.
    key = jnp.where(exists, descending(scores.astype(jnp.float32) + 0.0), jnp.iinfo(jnp.int32).max)
    index = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
    _, order = jax.lax.sort((key, index), num_keys=1, is_stable=True)
    return order, jnp.arange(scores.shape[1]) < exists.sum(1)[:, None]


def suppresses(a: Sequence[jax.Array], b: Sequence[jax.Array], threshold, *, overlap: str, beta: float) -> jax.Array:
    """Whether boxes `a` suppress boxes `b`, each four float32 arrays of coordinates, broadcast; symmetric."""
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    width = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1) + 1, 0)
    height = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1) + 1, 0)
    intersection = product(width, height)
    area, other_area = product(ax2 - ax1 + 1, ay2 - ay1 + 1), product(bx2 - bx1 + 1, by2 - by1 + 1)
    union = area + other_area - intersection
    if overlap == "diou":
        value = intersection / union
        across = jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1)
        down = jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1)
        diagonal = product(across, across) + product(down, down)
        dx = (ax1 + ax2) / 2 - (bx1 + bx2) / 2
        dy = (ay1 + ay2) / 2 - (by1 + by2) / 2
        distance = product(dx, dx) + product(dy, dy)
        penalty = jnp.where(diagonal > 0, distance / jnp.where(diagonal > 0, diagonal, 1.0), 0.0)
        if beta != 1.0:
            # A power, by the two functions that the GPU kernel has as well.
            penalty = jnp.where(penalty > 0, jnp.exp(beta * jnp.log(jnp.where(penalty > 0, penalty, 1.0))), 0.0)
        return value - penalty >= threshold
    return _reaches(intersection, union, threshold)


def _reaches(a, b, threshold):
    """Whether the rounded quotient of `a` and `b`, a positive number, is at least `threshold`; without dividing.

    GPUs divide to two units in the last place, so that a quotient that equals the threshold may fall below it. The
    quotient is rounded up to the threshold from half a unit below, and ``a - threshold * b`` is exact where that
    matters, as every product is one of halves of 12 bits.
    """
    bits = jax.lax.bitcast_convert_type(threshold, jnp.int32)
    below = jax.lax.bitcast_convert_type(bits - 1, jnp.float32)
    half = jnp.where(threshold > 0, (threshold - below) * 0.5, 0.0)
    b_high, high = _upper_bits(b), _upper_bits(threshold)
    b_low, low = b - b_high, threshold - high
    rest = a - b_high * high - b_high * low - b_low * high - b_low * low
    return (rest >= -half * b) & (b > 0)


def _upper_bits(x):
    """The float of the upper 12 bits of a float32's 24."""
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-4096), jnp.float32)


def keep_xla(boxes: jax.Array, counts: jax.Array, threshold: jax.Array, *, suppresses: Callable) -> jax.Array:
    """Which boxes stay, as `nms_gpu.keep`, tile by tile of the order.

    Within a tile the greedy result is the fixed point of "kept if no kept predecessor suppresses it", reached after as
    many rounds as the longest chain of suppressions; then the tile's survivors clear what follows. The number of tiles
    visited is that of the fullest problem, so that mostly empty problems cost little.
    """
    count = boxes.shape[1]
    tile = min(TILE, count)
    padded = -(-count // tile) * tile
    boxes = jnp.pad(boxes, ((0, 0), (0, padded - count), (0, 0)))
    position = jnp.arange(padded)
    alive = position < counts[:, None]
    tiles = -(-counts.max() // tile)
    earlier = jnp.arange(tile)[:, None] < jnp.arange(tile)

    def hits(a, b):
        return suppresses(jnp.unstack(a[:, :, None], axis=-1), jnp.unstack(b[:, None], axis=-1), threshold)

    def visit(start, alive):
        chosen = jax.lax.dynamic_slice_in_dim(boxes, start, tile, 1)
        candidates = jax.lax.dynamic_slice_in_dim(alive, start, tile, 1)
        within = earlier & hits(chosen, chosen)

        def settle(state):
            kept, _ = state
            settled = candidates & ~(within & kept[:, :, None]).any(1)
            return settled, (settled != kept).any()

        kept, _ = jax.lax.while_loop(lambda state: state[1], settle, (candidates, jnp.array(True)))
        cleared = (hits(chosen, boxes) & kept[:, :, None]).any(1)
        alive = alive & ~(cleared & (position >= start + tile))
        return jax.lax.dynamic_update_slice_in_dim(alive, kept, start, 1)

    def step(state):
        number, alive = state
        return number + 1, visit(number * tile, alive)

    _, alive = jax.lax.while_loop(lambda state: state[0] < tiles, step, (jnp.zeros_like(tiles), alive))
    return alive[:, :count]
