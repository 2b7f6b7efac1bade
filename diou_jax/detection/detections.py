"""Detections from boxes and scores of all classes: suppression within each class, then the best of all classes."""

import math

import jax.numpy as jnp
from jaxtyping import Bool, Float

from diou_jax.detection.box_vote import box_vote
from diou_jax.detection.rules import DetectionRules, Thresholds
from diou_jax.detection.soft_nms import soft_nms as suppress_softly
from diou_jax.kernels.nms import nms
from diou_jax.kernels.top_k import top_k
from diou_jax.structures import Array, Detections


def suppress(
    boxes: Float[Array, "B classes R 4"],
    scores: Float[Array, "B classes R"],
    candidate: Bool[Array, "B #classes R"],
    *,
    thresholds: Thresholds,
    rules: DetectionRules,
) -> Detections:
    """Makes detections as the original's ``box_results_with_nms_and_limit`` does.

    Unlike the original's, the limit is exact: equal scores at the limit are taken by class, then by RoI.

    Args:
      boxes: float32 (B, K - 1, R, 4), boxes of each class but the background, pixels of the original image.
      scores: float32 (B, K - 1, R), positive where a box is a candidate.
      candidate: bool (B, K - 1, R), or (B, 1, R) for all classes; candidates below `thresholds.score` are dropped, too.
      thresholds: thresholds of scores and overlaps.
      rules: the kind of suppression, and how many detections are kept; `rules.thresholds` is ignored.
    """
    batch, _, rois = scores.shape
    candidate &= (scores > thresholds.score) & jnp.isfinite(boxes).all(-1)
    soft_nms, bbox_vote = rules.soft_nms, rules.bbox_vote
    kept_scores = scores
    if soft_nms:
        # No class needs more boxes than there are detections in all, unless votes change the order of scores.
        most = None if bbox_vote and bbox_vote.scoring_method != "ID" else rules.detections_per_im
        kept_scores, keep = suppress_softly(boxes, scores, thresholds.nms, rules=soft_nms, valid=candidate, most=most)
    else:
        # The quotient of distances is below 1, so that an infinite exponent leaves IoU.
        overlap = "diou" if rules.diou_nms and math.isfinite(rules.beta1) else "iou"
        keep = nms(boxes, scores, thresholds.nms, valid=candidate, overlap=overlap, beta=rules.beta1)
    if bbox_vote:
        boxes, kept_scores = box_vote(boxes, scores, kept_scores, valid=candidate, rules=bbox_vote)
    # Rows are class-major, and top_k takes the lower row among equals.
    ranked = jnp.where(keep, kept_scores, -1.0).reshape(batch, -1)
    limit = min(rules.detections_per_im, ranked.shape[1])
    best, index = top_k(ranked, limit)
    found = best >= 0
    boxes = jnp.take_along_axis(boxes.reshape(batch, -1, 4), index[..., None], 1)

    def fill(x):
        x = jnp.where(found.reshape(*found.shape, *[1] * (x.ndim - 2)), x, jnp.zeros_like(x))
        return jnp.pad(x, ((0, 0), (0, rules.detections_per_im - limit), *[(0, 0)] * (x.ndim - 2)))

    return Detections(fill(boxes), fill(best), fill((index // rois + 1).astype(jnp.int32)), fill(found))
