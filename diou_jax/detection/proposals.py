"""From RPN outputs to regions of interest."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.boxes import clip, decode
from diou_jax.kernels.nms import nms
from diou_jax.kernels.top_k import top_k


@flax.struct.dataclass
class Proposals:
    """RoIs of B images, by descending score.

    Attributes:
      boxes: float32 (B, R, 4), pixels of the network's input.
      scores: float32 (B, R), objectness probabilities; 0 where not valid.
      valid: bool (B, R).
    """

    boxes: jax.Array
    scores: jax.Array
    valid: jax.Array


@jax.named_scope("proposals")
def propose(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[np.ndarray | jax.Array],
    exists: Sequence[jax.Array],
    limit: jax.Array,
    scale: jax.Array,
    *,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    min_size: float,
    collect_top_n: int,
    per_image: bool = False,
) -> Proposals:
    """The original's ``GenerateProposals`` on each level and ``collect`` over all; no gradient passes.

    Each image and level keeps its best anchors, decodes, clips and filters them and suppresses among them. What is left
    of all levels is cut to the best `collect_top_n`.

    Args:
      logits: float32 (B, N) of each level, N its anchors.
      deltas: float32 (B, N, 4), unit weights.
      anchors: float32 (N, 4), pixels, or (B, N, 4) where each image has its own.
      exists: bool (B, N); other anchors are never proposed.
      limit: (B, 2), height and width that proposals are clipped to.
      scale: (B,), input over original size, for `min_size`.
      pre_nms_top_n: per level, before suppression.
      post_nms_top_n: per level, after it.
      nms_thresh: IoU.
      min_size: smallest side in pixels of the original image; at least one.
      collect_top_n: RoIs kept, over the whole minibatch as the original does in training, or of each image.
      per_image: which of the two.

    Returns:
      Proposals with R the most that one image can keep.
    """
    levels = [
        _best_anchors(*level, limit, scale, top_n=pre_nms_top_n, min_size=min_size)
        for level in zip(*jax.lax.stop_gradient((logits, deltas)), anchors, exists, strict=True)
    ]
    # All levels padded to one length, so that one call suppresses in all of them.
    longest = max(scores.shape[1] for _, scores in levels)
    boxes = jnp.stack([_pad(boxes, longest) for boxes, _ in levels], 1)
    scores = jnp.stack([_pad(scores, longest, -1.0) for _, scores in levels], 1)
    keep = nms(boxes, scores, nms_thresh, valid=scores >= 0)
    keep &= jnp.cumsum(keep, -1) <= post_nms_top_n

    batch = len(boxes)
    scores = jnp.where(keep, scores, -1.0).reshape(batch, -1)
    count = min(collect_top_n, sum(min(post_nms_top_n, scores.shape[1]) for _, scores in levels))
    scores, index = top_k(scores, count)
    boxes = jnp.take_along_axis(boxes.reshape(batch, -1, 4), index[..., None], 1)
    valid = scores >= 0
    if not per_image and batch * count > collect_top_n:
        _, best = top_k(scores.reshape(-1), collect_top_n)
        valid &= jnp.zeros(batch * count, bool).at[best].set(True).reshape(valid.shape)
    return Proposals(jnp.where(valid[..., None], boxes, 0.0), jnp.where(valid, scores, 0.0), valid)


def _best_anchors(logits, deltas, anchors, exists, limit, scale, *, top_n, min_size):
    """Boxes (B, N, 4) and scores (B, N) of a level's most probable anchors, descending; -1 marks what is left out."""
    # The probability, not the logit: it saturates, and what then ties is ordered by index.
    scores = jax.nn.sigmoid(logits)
    scores = jnp.where(exists & ~jnp.isnan(scores), scores, -1.0)
    scores, index = top_k(scores, min(top_n, scores.shape[1]))
    anchors = jnp.asarray(anchors)
    anchors = anchors[index] if anchors.ndim == 2 else jnp.take_along_axis(anchors, index[..., None], 1)
    boxes = decode(anchors, jnp.take_along_axis(deltas, index[..., None], 1))
    height, width = limit[:, :1].astype(jnp.float32), limit[:, 1:].astype(jnp.float32)
    boxes = clip(boxes, jnp.broadcast_to(height, scores.shape), jnp.broadcast_to(width, scores.shape))

    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    smallest = max(min_size, 1.0)
    wanted = (
        ((x2 - x1) / scale[:, None] + 1 >= smallest)
        & ((y2 - y1) / scale[:, None] + 1 >= smallest)
        & (x1 + (x2 - x1 + 1) / 2 < width)
        & (y1 + (y2 - y1 + 1) / 2 < height)
    )
    return boxes, jnp.where(wanted, scores, -1.0)


def _pad(x, length, value=0.0):
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)), constant_values=value)
