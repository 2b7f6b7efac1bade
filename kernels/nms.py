"""Non-maximum suppression with IoU or DIoU: many independent problems at once, exact greedy semantics.

Boxes are inclusive pixels, ``[x1, y1, x2, y2]`` with width ``x2 - x1 + 1``.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Int32

from diou_jax.kernels import nms_gpu
from diou_jax.kernels.order import descending
from diou_jax.kernels.selection import kernel_or_reference
from diou_jax.kernels.suppression import suppresses
from diou_jax.kernels.varying import varying_as

TILE = 128


def nms(
    boxes: Float[jax.Array | np.ndarray, "*batch N 4"],
    scores: Float[jax.Array | np.ndarray, "*batch N"],
    threshold: Float[ArrayLike, ""],
    *,
    valid: Bool[jax.Array | np.ndarray, "*batch N"] | None = None,
    overlap: str = "iou",
    beta: float = 1.0,
) -> Bool[jax.Array, "*batch N"]:
    """Which boxes greedy suppression keeps; leading axes are independent problems.

    Boxes are visited by descending score, equal scores by ascending index. A box that is reached unsuppressed is kept
    and suppresses every later box whose overlap with it is at least `threshold`. The overlap is IoU, or DIoU-NMS'
    ``IoU - (d / c) ** beta`` (Zheng et al., AAAI 2020, eq. 12): d is the squared distance of the centres, c the squared
    diagonal of the smallest box around both, measured without the inclusive pixel, as in the original. The penalty is 0
    where d is 0. Every device keeps the same boxes, see `diou_jax.kernels.suppression`.

    Args:
      boxes: float (..., N, 4), pixels, up to 1e9. A box without area or with a non-finite corner suppresses none.
      scores: float (..., N). A box whose score is NaN is never kept.
      threshold: TEST.NMS or RPN_NMS_THRESH; above 1, every box is kept.
      valid: bool (..., N); a box that is not valid is not kept and suppresses none. None: all boxes are valid.
      overlap: "iou" or "diou".
      beta: TEST.DIOU_NMS.BETA1, positive exponent of DIoU's penalty.

    Returns:
      bool (..., N), True where a box is kept, in the order of the input.

    Raises:
      ValueError: if `overlap` is another word, `beta` is not positive, or shapes do not belong together.
    """
    if overlap not in ("iou", "diou"):
        raise ValueError(f"overlap must be 'iou' or 'diou', not {overlap!r}")
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta!r}")
    if boxes.shape != (*scores.shape, 4) or scores.ndim == 0:
        raise ValueError(f"boxes must be (..., N, 4) and scores (..., N), not {boxes.shape} and {scores.shape}")
    if valid is not None and valid.shape != scores.shape:
        raise ValueError(f"valid must be (..., N) as scores, {scores.shape}, not {valid.shape}")
    *lead, count = scores.shape
    if scores.size == 0:
        return jnp.zeros(scores.shape, bool)
    exists = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)
    order, exists = _by_priority(scores.reshape(-1, count), exists.reshape(-1, count))
    ordered = jnp.take_along_axis(boxes.reshape(-1, count, 4).astype(jnp.float32), order[..., None], 1)
    test = functools.partial(suppresses, overlap=overlap, beta=beta)
    operands = ordered, exists.sum(1, dtype=jnp.int32), jnp.asarray(threshold, jnp.float32)
    reference = functools.partial(keep_xla, suppresses=test)
    if nms_gpu.fits(len(order), count):
        kept = kernel_or_reference("nms", functools.partial(nms_gpu.keep, suppresses=test), reference, *operands)
    else:
        kept = reference(*operands)
    rows = jnp.arange(len(order))[:, None]
    keep = jnp.zeros_like(exists).at[rows, order].set(kept & exists, unique_indices=True)
    return keep.reshape(*lead, count)


def _by_priority(scores, exists):
    """The order (P, N) in which boxes are visited, those that do not exist last, and `exists` in that order."""
    # -0 becomes 0, so that both rank as equal; XLA would leave out the addition of 0.
    scores = jnp.where(scores == 0, 0.0, scores.astype(jnp.float32))
    key = jnp.where(exists, descending(scores), jnp.iinfo(jnp.int32).max)
    index = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
    _, order = jax.lax.sort((key, index), num_keys=1, is_stable=True)
    return order, jnp.arange(scores.shape[1]) < exists.sum(1)[:, None]


def keep_xla(
    boxes: Float32[jax.Array, "P N 4"],
    counts: Int32[jax.Array, "P"],
    threshold: Float32[jax.Array, ""],
    *,
    suppresses: Callable,
) -> Bool[jax.Array, "P N"]:
    """The reference of `nms_gpu.keep`: which boxes are kept, decided tile by tile in the order of visit.

    Within a tile the greedy result is the fixed point of "kept if no kept predecessor suppresses it", reached after as
    many rounds as the longest chain of suppressions. Then the kept boxes of the tile suppress boxes of later tiles. As
    many tiles are visited as the fullest problem has, so that mostly empty problems cost little.
    """
    count = boxes.shape[1]
    tile = min(TILE, count)
    padded = -(-count // tile) * tile
    boxes = jnp.pad(boxes, ((0, 0), (0, padded - count), (0, 0)))
    position = jnp.arange(padded)
    alive = varying_as(position < counts[:, None], boxes)
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

        kept, _ = jax.lax.while_loop(lambda state: state[1], settle, (candidates, jnp.ones_like(tiles, bool)))
        cleared = (hits(chosen, boxes) & kept[:, :, None]).any(1)
        alive = alive & ~(cleared & (position >= start + tile))
        return jax.lax.dynamic_update_slice_in_dim(alive, kept, start, 1)

    def step(state):
        number, alive = state
        return number + 1, visit(number * tile, alive)

    _, alive = jax.lax.while_loop(lambda state: state[0] < tiles, step, (jnp.zeros_like(tiles), alive))
    return alive[:, :count]
