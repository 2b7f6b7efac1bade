"""Non-maximum suppression with IoU or DIoU: many independent problems at once, exact greedy semantics.

Boxes are inclusive pixels, ``[x1, y1, x2, y2]`` with width ``x2 - x1 + 1``. This module knows arrays only.
"""

import jax
import jax.numpy as jnp

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
    keep = _nms_xla(
        boxes.reshape(-1, count, 4).astype(jnp.float32),
        scores.reshape(-1, count).astype(jnp.float32),
        exists.reshape(-1, count),
        threshold,
        overlap=overlap,
        beta=beta,
    )
    return keep.reshape(*lead, count)


def _suppresses(a: jax.Array, b: jax.Array, threshold, *, overlap: str, beta: float) -> jax.Array:
    """Whether boxes `a` suppress boxes `b`, float32 (..., 4) against (..., 4), broadcast; symmetric."""
    ax1, ay1, ax2, ay2 = (a[..., i] for i in range(4))
    bx1, by1, bx2, by2 = (b[..., i] for i in range(4))
    width = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1) + 1, 0)
    height = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1) + 1, 0)
    intersection = width * height
    union = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1) - intersection
    value = intersection / union
    if overlap == "diou":
        across = jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1)
        down = jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1)
        diagonal = across * across + down * down
        dx = (ax1 + ax2) / 2 - (bx1 + bx2) / 2
        dy = (ay1 + ay2) / 2 - (by1 + by2) / 2
        penalty = jnp.where(diagonal > 0, (dx * dx + dy * dy) / jnp.where(diagonal > 0, diagonal, 1.0), 0.0)
        value = value - (penalty if beta == 1.0 else penalty**beta)
    return value >= threshold


def _nms_xla(boxes, scores, exists, threshold, *, overlap: str, beta: float):
    """Greedy suppression of P problems (P, N, 4), tile by tile of the score order.

    Within a tile the greedy result is the fixed point of "kept if no kept predecessor suppresses it", reached after as
    many rounds as the longest chain of suppressions; then the tile's survivors clear what follows. The number of tiles
    visited is that of the fullest problem, so that mostly empty problems cost little.
    """
    problems, count = scores.shape
    tile = min(TILE, count)
    padded = -(-count // tile) * tile

    index = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), scores.shape)
    _, _, order = jax.lax.sort((~exists, -scores, index), num_keys=2, is_stable=True)
    fill = ((0, 0), (0, padded - count))
    ordered = jnp.pad(jnp.take_along_axis(boxes, order[..., None], 1), (*fill, (0, 0)))
    alive = jnp.pad(jnp.take_along_axis(exists, order, 1), fill)
    tiles = -(-exists.sum(1).max() // tile)
    earlier = jnp.arange(tile)[:, None] < jnp.arange(tile)
    position = jnp.arange(padded)

    def visit(start, alive):
        chosen = jax.lax.dynamic_slice_in_dim(ordered, start, tile, 1)
        candidates = jax.lax.dynamic_slice_in_dim(alive, start, tile, 1)
        hits = earlier & _suppresses(chosen[:, :, None], chosen[:, None], threshold, overlap=overlap, beta=beta)

        def settle(state):
            kept, _ = state
            settled = candidates & ~(hits & kept[:, :, None]).any(1)
            return settled, (settled != kept).any()

        kept, _ = jax.lax.while_loop(lambda state: state[1], settle, (candidates, jnp.array(True)))
        cleared = _suppresses(chosen[:, :, None], ordered[:, None], threshold, overlap=overlap, beta=beta)
        cleared = (cleared & kept[:, :, None]).any(1)
        alive = alive & ~(cleared & (position >= start + tile))
        return jax.lax.dynamic_update_slice_in_dim(alive, kept, start, 1)

    def step(state):
        number, alive = state
        return number + 1, visit(number * tile, alive)

    _, alive = jax.lax.while_loop(lambda state: state[0] < tiles, step, (jnp.zeros_like(tiles), alive))
    rows = jnp.arange(problems)[:, None]
    return jnp.zeros_like(exists).at[rows, order].set(alive[:, :count], unique_indices=True)
