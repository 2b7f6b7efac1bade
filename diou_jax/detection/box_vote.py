"""Box voting: a detection is replaced by the mean of the boxes that overlap it strongly.

Gidaris and Komodakis, Object detection via a multi-region and semantic segmentation-aware CNN model, ICCV 2015.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from diou_jax.detection.rules import BoxVoteRules
from diou_jax.overlaps import pairwise_iou
from diou_jax.structures import Array

SCORING_METHODS = ("ID", "TEMP_AVG", "AVG", "IOU_AVG", "GENERALIZED_AVG", "QUASI_SUM")
# Pairs of boxes that are compared at once: those of eight problems of 1000 boxes. A problem takes a few N x N matrices.
PAIRS = 8 * 1000**2

# TensorFloat-32 would be too coarse for coordinates and scores.
_matmul = functools.partial(jnp.matmul, precision="highest")


def box_vote(
    boxes: Float[Array, "*batch N 4"],
    scores: Float[Array, "*batch N"],
    kept_scores: Float[Array, "*batch N"],
    *,
    valid: Bool[Array, "*batch N"],
    rules: BoxVoteRules,
) -> tuple[Float[Array, "*batch N 4"], Float[Array, "*batch N"]]:
    """The boxes and scores after voting; leading axes are independent problems.

    The voters of a box are the valid boxes whose IoU with it is at least `rules.vote_th`. The box becomes their mean,
    weighted by score. With n voters of scores s, IoUs o and the exponent b, `rules.scoring_method_beta`, its score
    becomes as follows; all methods but ID undo the lowering by soft-NMS:

    ================  ==========================================================
    ID                unchanged
    AVG               mean of s
    IOU_AVG           mean of s weighted by o
    TEMP_AVG          mean of ``s ** (1/b) / (s ** (1/b) + (1 - s) ** (1/b))``
    GENERALIZED_AVG   ``mean(s ** b) ** (1/b)``
    QUASI_SUM         ``sum(s) / n ** b``
    ================  ==========================================================

    Args:
      boxes: float32 (..., N, 4), pixels, before suppression.
      scores: float32 (..., N), scores before suppression, in [0, 1].
      kept_scores: float32 (..., N), scores after suppression.
      valid: bool (..., N), the boxes that vote.
      rules: which boxes vote on a box, and the method by which its score follows.

    Returns:
      Boxes, float32 (..., N, 4), and scores, float32 (..., N). A box without voters keeps its box and `kept_scores`.

    Raises:
      ValueError: if `rules.scoring_method` is unknown.
    """
    if rules.scoring_method not in SCORING_METHODS:
        raise ValueError(f"scoring_method must be one of {', '.join(SCORING_METHODS)}, not {rules.scoring_method!r}")

    def vote(problem):
        boxes, scores, kept_scores, valid = problem
        boxes, scores = jnp.where(valid[:, None], boxes, 0.0), jnp.where(valid, scores, 0.0)
        overlap = pairwise_iou(boxes, boxes)
        votes = ((overlap >= rules.vote_th) & valid).astype(jnp.float32)
        total = _matmul(votes, scores)
        elected = total > 0
        mean = _matmul(votes * scores, boxes) / jnp.where(elected, total, 1.0)[:, None]
        # Rounding must not move a mean beyond the boxes that it averages, and so out of the image.
        lowest = jnp.where(valid[:, None], boxes, jnp.inf).min(0)
        highest = jnp.where(valid[:, None], boxes, -jnp.inf).max(0)
        mean = jnp.clip(mean, lowest, highest)
        score = kept_scores
        if rules.scoring_method != "ID":
            score = _score(votes, overlap, scores, rules.scoring_method, rules.scoring_method_beta)
        return jnp.where(elected[:, None], mean, problem[0]), jnp.where(elected, score, kept_scores)

    lead = scores.ndim - 1
    if scores.size == 0:
        return boxes, kept_scores
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[lead:]), (boxes, scores, kept_scores, valid))
    together = max(PAIRS // scores.shape[-1] ** 2, 1)
    moved, score = jax.lax.map(vote, flat, batch_size=min(together, len(flat[0])))
    return moved.reshape(boxes.shape), score.reshape(scores.shape)


def _score(votes, overlap, scores, method, beta):
    """The voted scores (N,) from votes (N, N), 0 or 1, a row per box, overlaps (N, N) and voters' scores (N,)."""
    if method == "IOU_AVG":
        weights = votes * overlap
        share = weights.sum(1)
        return _matmul(weights, scores) / jnp.where(share > 0, share, 1.0)
    number = jnp.maximum(votes.sum(1), 1.0)
    if method == "AVG":
        return _matmul(votes, scores) / number
    if method == "TEMP_AVG":
        return _matmul(votes, jax.nn.sigmoid((jnp.log(scores) - jnp.log1p(-scores)) / beta)) / number
    if method == "GENERALIZED_AVG":
        return (_matmul(votes, scores**beta) / number) ** (1 / beta)
    return _matmul(votes, scores) / number**beta
