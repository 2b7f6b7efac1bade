"""From box head outputs to detections."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from diou_jax.boxes import clip, decode, to_original
from diou_jax.detection.box_vote import box_vote
from diou_jax.detection.rules import BoxVoteRules, SoftNmsRules
from diou_jax.detection.soft_nms import soft_nms as suppress_softly
from diou_jax.kernels.nms import nms
from diou_jax.kernels.top_k import top_k


@flax.struct.dataclass
class Detections:
    """D detections of each image, best first.

    Attributes:
      boxes: float32 (B, D, 4), pixels of the original image.
      scores: float32 (B, D); 0 where not valid.
      classes: int32 (B, D), 1 to K - 1; 0 where not valid.
      valid: bool (B, D).
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    valid: jax.Array


@jax.named_scope("detections")
def detect(
    rois: jax.Array,
    valid: jax.Array,
    scores: jax.Array,
    deltas: jax.Array,
    scale: jax.Array,
    original_size: jax.Array,
    *,
    reg_weights: Sequence[float],
    score_thresh: float,
    nms_thresh: float,
    diou_nms: bool,
    beta1: float,
    detections_per_im: int,
    soft_nms: SoftNmsRules | None = None,
    bbox_vote: BoxVoteRules | None = None,
    edges: bool = False,
) -> Detections:
    """The original's ``box_results_with_nms_and_limit``: suppression within each class, then the best of all.

    Unlike the original's, the limit is exact: equal scores at the limit are taken by class, then by RoI.

    Args:
      rois: float32 (B, R, 4), pixels of the network's input.
      valid: bool (B, R).
      scores: float32 (B, R, K), probabilities.
      deltas: float32 (B, R, K or 1, 4).
      scale: (B,), input over original size.
      original_size: (B, 2), height and width that boxes are clipped to.
      reg_weights: of the deltas.
      score_thresh: TEST.SCORE_THRESH; only higher scores count.
      nms_thresh: TEST.NMS.
      diou_nms, beta1: TEST.DIOU_NMS; without it, greedy suppression by IoU.
      detections_per_im: D.
      soft_nms: TEST.SOFT_NMS, goes before `diou_nms`; None: off.
      bbox_vote: TEST.BBOX_VOTE, among the candidates of each class; None: off.
      edges: how RoIs are scaled back, see `boxes.to_original`.
    """
    rois = to_original(rois, scale[:, None, None], edges=edges)
    boxes = decode(rois[:, None], deltas.swapaxes(1, 2), weights=reg_weights)
    if boxes.shape[1] > 1:
        boxes = boxes[:, 1:]
    scores = scores.swapaxes(1, 2)[:, 1:]
    boxes = jnp.broadcast_to(boxes, (*scores.shape, 4))
    height, width = (jnp.broadcast_to(original_size[:, axis, None, None], scores.shape) for axis in (0, 1))
    boxes = clip(boxes, height.astype(jnp.float32), width.astype(jnp.float32))
    return suppress(
        boxes,
        scores,
        valid[:, None] & (scores > score_thresh),
        nms_thresh=nms_thresh,
        diou_nms=diou_nms,
        beta1=beta1,
        detections_per_im=detections_per_im,
        soft_nms=soft_nms,
        bbox_vote=bbox_vote,
    )


def suppress(
    boxes: jax.Array,
    scores: jax.Array,
    candidate: jax.Array,
    *,
    nms_thresh: float,
    diou_nms: bool,
    beta1: float,
    detections_per_im: int,
    soft_nms: SoftNmsRules | None = None,
    bbox_vote: BoxVoteRules | None = None,
) -> Detections:
    """The half of `detect` that follows decoding.

    Args:
      boxes: float32 (B, K - 1, R, 4), of each class but the background, pixels of the original image.
      scores: float32 (B, K - 1, R), positive where a box is a candidate.
      candidate: bool (B, K - 1, R).
      nms_thresh, diou_nms, beta1, detections_per_im, soft_nms, bbox_vote: as in `detect`.
    """
    batch, _, rois = scores.shape
    candidate &= jnp.isfinite(boxes).all(-1)
    kept_scores = scores
    if soft_nms:
        # Of a class no more than `detections_per_im` can stay, unless votes lift some over others.
        most = None if bbox_vote and bbox_vote.scoring_method != "ID" else detections_per_im
        rules = dataclasses.asdict(soft_nms)
        kept_scores, keep = suppress_softly(boxes, scores, nms_thresh, valid=candidate, most=most, **rules)
    else:
        keep = nms(boxes, scores, nms_thresh, valid=candidate, overlap="diou" if diou_nms else "iou", beta=beta1)
    if bbox_vote:
        boxes, kept_scores = box_vote(boxes, scores, kept_scores, candidate, **dataclasses.asdict(bbox_vote))
    # Rows are class-major, and top_k takes the lower row of equals.
    ranked = jnp.where(keep, kept_scores, -1.0).reshape(batch, -1)
    limit = min(detections_per_im, ranked.shape[1])
    best, index = top_k(ranked, limit)
    found = best >= 0
    boxes = jnp.take_along_axis(boxes.reshape(batch, -1, 4), index[..., None], 1)

    def fill(x):
        x = jnp.where(found.reshape(*found.shape, *[1] * (x.ndim - 2)), x, jnp.zeros_like(x))
        return jnp.pad(x, ((0, 0), (0, detections_per_im - limit), *[(0, 0)] * (x.ndim - 2)))

    return Detections(fill(boxes), fill(best), fill((index // rois + 1).astype(jnp.int32)), fill(found))
