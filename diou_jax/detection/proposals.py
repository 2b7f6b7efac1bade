"""Proposals from the RPN's outputs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diou_jax.boxes import clip, decode, to_original
from diou_jax.detection.rules import ProposalRules
from diou_jax.kernels.nms import nms
from diou_jax.kernels.top_k import top_k
from diou_jax.structures import Anchors, Array, Batch, Detections, Placement, Proposals

LEAST_SIDE = 1e-3  # pixels of the network's input; torchvision leaves out proposals with a shorter side


@jax.named_scope("proposals")
def propose(
    outputs: tuple[Sequence[jax.Array], Sequence[jax.Array]],
    anchors: Anchors,
    limit: Array,
    *,
    placement: Placement,
    rules: ProposalRules,
    per_image: bool = False,
    edges: bool = False,
) -> Proposals:
    """Makes proposals as the original's ``GenerateProposals`` (each level) and ``collect`` (all levels) do.

    On each level of an image the best anchors are decoded, clipped, filtered and suppressed. The best
    `rules.collect_top_n` of all levels remain. No gradient passes.

    Args:
      outputs: the RPN's outputs, per level float32 logits (B, N) and deltas (B, N, 4) with unit weights; N anchors.
      anchors: the anchors of the maps; an anchor that does not exist is never proposed.
      limit: (B, 2), height and width that proposals are clipped to.
      placement: the maps of the images, for `rules.min_size`.
      rules: how many anchors and proposals are kept.
      per_image: whether `rules.collect_top_n` is a limit per image; else it is one for the whole minibatch, as in the
        original's training.
      edges: whether boxes are clipped by their edges, as in torchvision, which leaves out those without area.

    Returns:
      Proposals; R is the largest number that one image can keep.
    """
    levels = [
        _large_enough(
            *_best_anchors(*level, limit=limit, most=rules.pre_nms_top_n, edges=edges),
            limit=limit,
            placement=placement,
            rules=rules,
            edges=edges,
        )
        for level in zip(*jax.lax.stop_gradient(outputs), anchors.boxes, anchors.exists, strict=True)
    ]
    # All levels are padded to one length, so that one call suppresses on all of them.
    longest = max(scores.shape[1] for _, scores in levels)
    boxes = jnp.stack([_pad(boxes, longest) for boxes, _ in levels], 1)
    scores = jnp.stack([_pad(scores, longest, -1.0) for _, scores in levels], 1)
    keep = nms(boxes, scores, rules.nms_thresh, valid=scores >= 0)
    keep &= jnp.cumsum(keep, -1) <= rules.post_nms_top_n

    batch = len(boxes)
    scores = jnp.where(keep, scores, -1.0).reshape(batch, -1)
    count = min(rules.collect_top_n, sum(min(rules.post_nms_top_n, scores.shape[1]) for _, scores in levels))
    scores, index = top_k(scores, count)
    boxes = jnp.take_along_axis(boxes.reshape(batch, -1, 4), index[..., None], 1)
    valid = scores >= 0
    if not per_image and batch * count > rules.collect_top_n:
        _, best = top_k(scores.reshape(-1), rules.collect_top_n)
        valid &= jnp.zeros(batch * count, bool).at[best].set(True).reshape(valid.shape)
    return Proposals(jnp.where(valid[..., None], boxes, 0.0), jnp.where(valid, scores, 0.0), valid)


@jax.named_scope("detections")
def as_detections(proposals: Proposals, batch: Batch, *, edges: bool = False) -> Detections:
    """Proposals as detections of the first class, without a threshold.

    Args:
      proposals: R proposals of each of B images.
      batch: the images; boxes are clipped to them, since proposals may reach into the padding, and an image that is not
        present has none.
      edges: how boxes are mapped and clipped, see `boxes.to_original`.
    """
    size = batch.original_size[:, :, None]
    boxes = to_original(proposals.boxes, batch.placement, edges=edges)
    boxes = clip(boxes, *(jnp.broadcast_to(size[:, axis], proposals.scores.shape) for axis in (0, 1)), edges=edges)
    valid = proposals.valid & batch.present[:, None]
    return Detections(
        boxes=jnp.where(valid[..., None], boxes, 0.0),
        scores=jnp.where(valid, proposals.scores, 0.0),
        classes=valid.astype(jnp.int32),
        valid=valid,
    )


def _best_anchors(logits, deltas, anchors, exists, *, limit, most, edges):
    """Clipped boxes (B, N, 4) and descending scores (B, N) of a level's best anchors; -1 marks a rejected box."""
    # Ranking is by probability, as in the original: large logits saturate to equal scores, ordered by index.
    scores = jax.nn.sigmoid(logits)
    scores = jnp.where(exists & ~jnp.isnan(scores), scores, -1.0)
    scores, index = top_k(scores, min(most, scores.shape[1]))
    anchors = jnp.asarray(anchors)
    anchors = anchors[index] if anchors.ndim == 2 else jnp.take_along_axis(anchors, index[..., None], 1)
    boxes = decode(anchors, jnp.take_along_axis(deltas, index[..., None], 1))
    height, width = limit[:, :1].astype(jnp.float32), limit[:, 1:].astype(jnp.float32)
    sides = (jnp.broadcast_to(side, scores.shape) for side in (height, width))
    return clip(boxes, *sides, edges=edges), scores


def _large_enough(boxes, scores, *, limit, placement, rules, edges):
    """The boxes (B, N, 4) and scores (B, N), -1 for a rejected box."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    vertical, horizontal = placement.scale[:, :1], placement.scale[:, 1:]
    if edges:
        wanted = (x2 - x1 + 1 >= jnp.maximum(rules.min_size * horizontal, LEAST_SIDE)) & (
            y2 - y1 + 1 >= jnp.maximum(rules.min_size * vertical, LEAST_SIDE)
        )
        return boxes, jnp.where(wanted, scores, -1.0)
    height, width = limit[:, :1].astype(jnp.float32), limit[:, 1:].astype(jnp.float32)
    smallest = max(rules.min_size, 1.0)
    wanted = (
        ((x2 - x1) / horizontal + 1 >= smallest)
        & ((y2 - y1) / vertical + 1 >= smallest)
        & (x1 + (x2 - x1 + 1) / 2 < width)
        & (y1 + (y2 - y1 + 1) / 2 < height)
    )
    return boxes, jnp.where(wanted, scores, -1.0)


def _pad(x, length, value=0.0):
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)), constant_values=value)
