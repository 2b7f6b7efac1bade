"""Matching: the box that each anchor overlaps most, and the anchors that each box overlaps most.

Boxes are inclusive pixels, ``[x1, y1, x2, y2]`` with width ``x2 - x1 + 1``.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

from diou_jax.kernels import match_gpu
from diou_jax.kernels.iou import iou
from diou_jax.kernels.match_gpu import Candidates
from diou_jax.kernels.selection import kernel_or_reference
from diou_jax.kernels.varying import varying_as


class Matches(NamedTuple):
    """The matches of A anchors in each of B images.

    Attributes:
      overlap: float32 (B, A), the anchor's largest IoU with a box; 0 where it meets no box.
      box: int32 (B, A), index of the box with that IoU, the lowest among equals; 0 where the anchor meets no box.
      is_best: bool (B, A), True where the anchor reaches the largest IoU, above 0, that some box has with any anchor.
    """

    overlap: Float32[jax.Array, "B A"]
    box: Int32[jax.Array, "B A"]
    is_best: Bool[jax.Array, "B A"]


def match(
    anchors: Float[jax.Array | np.ndarray, "A 4"] | Float[jax.Array | np.ndarray, "B A 4"],
    boxes: Float[jax.Array | np.ndarray, "B G 4"],
    *,
    eligible: Bool[jax.Array | np.ndarray, "B A"],
    valid: Bool[jax.Array | np.ndarray, "B G"],
) -> Matches:
    """Matches the anchors of B images to their boxes by IoU.

    Args:
      anchors: float (A, 4), pixels, or (B, A, 4) where each image has its own.
      boxes: float (B, G, 4), finite where valid; G at least 1.
      eligible: bool (B, A); anchors that are not eligible meet no box.
      valid: bool (B, G); boxes that are not valid meet no anchor. It may be False throughout.
    """
    anchors, boxes = jnp.asarray(anchors, jnp.float32), jnp.asarray(boxes, jnp.float32)
    # Boxes that are not valid move far from all anchors, to coordinates whose areas do not overflow.
    boxes = jnp.where(valid[..., None], boxes, jnp.array([1e9, 1e9, -1e9, -1e9], jnp.float32))
    counts = jnp.where(valid, jnp.arange(1, valid.shape[1] + 1), 0).max(1).astype(jnp.int32)
    reference = functools.partial(jax.lax.platform_dependent, cpu=match_box_by_box, default=match_xla)
    candidates = Candidates(anchors, eligible, boxes, counts)
    return Matches(*kernel_or_reference("match", match_gpu.match, reference, candidates))


def match_xla(
    candidates: Candidates,
) -> tuple[Float32[jax.Array, "B A"], Int32[jax.Array, "B A"], Bool[jax.Array, "B A"]]:
    """The reference of `match_gpu.match`; it builds the whole matrix of overlaps."""
    anchors, eligible, boxes, _ = candidates
    # The long axis, that of the anchors, comes last, so that the matrix fills whole vectors.
    overlaps = iou(
        [anchors[..., None, :, i] for i in range(4)],
        [boxes[..., i, None] for i in range(4)],
    )
    # The barrier makes XLA write the matrix once and read it three times instead of computing it three times.
    overlaps = jax.lax.optimization_barrier(jnp.where(eligible[:, None], overlaps, 0.0))
    best = overlaps.max(2, keepdims=True)
    is_best = ((overlaps == best) & (best > 0)).any(1)
    return overlaps.max(1), overlaps.argmax(1).astype(jnp.int32), is_best


def match_box_by_box(
    candidates: Candidates,
) -> tuple[Float32[jax.Array, "B A"], Int32[jax.Array, "B A"], Bool[jax.Array, "B A"]]:
    """As `match_gpu.match`, for CPUs: the matrix of overlaps is never whole, and no longer than there are boxes."""
    anchors, eligible, boxes, counts = candidates
    columns = [anchors[..., i] for i in range(4)]

    def meet(number, state):
        overlap, box, is_best = state
        one = jax.lax.dynamic_index_in_dim(boxes, number, 1, keepdims=False)
        found = jnp.where(eligible, iou(columns, [one[:, i, None] for i in range(4)]), 0.0)
        best = found.max(1, keepdims=True)
        is_best |= (found == best) & (best > 0)
        return jnp.maximum(overlap, found), jnp.where(found > overlap, number, box), is_best

    nothing = jnp.zeros_like(eligible, jnp.float32), jnp.zeros_like(eligible, jnp.int32), jnp.zeros_like(eligible)
    return jax.lax.fori_loop(0, counts.max(), meet, varying_as(nothing, candidates))
