"""Soft-NMS: the score of a box that overlaps a better one is lowered instead of the box being removed.

Bodla et al., Soft-NMS: Improving Object Detection With One Line of Code, ICCV 2017. The distance penalty is the
original's addition.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32

from diou_jax.detection.rules import SoftNmsRules
from diou_jax.structures import Array

METHODS = ("linear", "gaussian", "hard")
# As in the original, a box whose score falls below this is dropped.
SCORE_THRESH = 1e-4


def soft_nms(
    boxes: Float[Array, "*batch N 4"],
    scores: Float[Array, "*batch N"],
    threshold: Float[ArrayLike, ""],
    *,
    rules: SoftNmsRules,
    valid: Bool[Array, "*batch N"] | None = None,
    score_thresh: Float[ArrayLike, ""] = SCORE_THRESH,
    most: int | None = None,
) -> tuple[Float32[jax.Array, "*batch N"], Bool[jax.Array, "*batch N"]]:
    """Which boxes soft-NMS keeps, and their lowered scores; leading axes are independent problems.

    Each round keeps the best of the waiting boxes (the lowest index among equals) and multiplies the scores of the
    waiting boxes that meet it by a factor of the overlap ``o = IoU - (d / c) ** beta1``: 1 - o where o exceeds
    `threshold` ("linear"), ``exp(-o ** 2 / sigma)`` ("gaussian"), or 0 where o exceeds `threshold` ("hard"). A box so
    lowered below `score_thresh` is dropped; a box that meets no better one is kept at any score. d is the squared
    distance of the centres, c the squared diagonal of the smallest box around both, in inclusive pixels, unlike
    DIoU-NMS.

    Args:
      boxes: float (..., N, 4), pixels.
      scores: float (..., N). A box whose score is NaN is never kept.
      threshold: TEST.NMS.
      rules: how a score is lowered.
      valid: bool (..., N); a box that is not valid is not kept and affects none. None: all boxes are valid.
      score_thresh: lowered boxes with a smaller score are dropped.
      most: largest number of boxes kept per problem; None: no limit. Boxes are kept in descending order of score, so
        these are the best.

    Returns:
      Scores, float32 (..., N), and the mask of kept boxes, bool (..., N), in the order of the input.

    Raises:
      ValueError: if `rules.method` is unknown.
    """
    if rules.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {rules.method!r}")
    *lead, count = scores.shape
    if scores.size == 0:
        return jnp.asarray(scores, jnp.float32), jnp.zeros(scores.shape, bool)
    scores = jnp.asarray(scores, jnp.float32).reshape(-1, count)
    boxes = jnp.asarray(boxes, jnp.float32).reshape(-1, count, 4)
    waiting = ~jnp.isnan(scores) if valid is None else valid.reshape(-1, count) & ~jnp.isnan(scores)
    rounds = count if most is None else min(most, count)

    def unfinished(state):
        number, _, waiting, _ = state
        return (number < rounds) & waiting.any()

    def take(state):
        number, scores, waiting, keep = state
        best = jnp.where(waiting, scores, -jnp.inf).argmax(1)
        taken = (jnp.arange(count) == best[:, None]) & waiting
        waiting &= ~taken
        meets, overlap = _overlap(jnp.take_along_axis(boxes, best[:, None, None], 1), boxes, rules.beta1)
        touched = meets & waiting & taken.any(1, keepdims=True)
        if rules.method == "gaussian":
            weight = jnp.exp(-(overlap**2) / rules.sigma)
        else:
            weight = jnp.where(overlap > threshold, 1 - overlap if rules.method == "linear" else 0.0, 1.0)
        scores = jnp.where(touched, scores * weight, scores)
        return number + 1, scores, waiting & ~(touched & (scores < score_thresh)), keep | taken

    state = jnp.zeros((), jnp.int32), scores, waiting, jnp.zeros_like(waiting)
    _, scores, _, keep = jax.lax.while_loop(unfinished, take, state)
    return scores.reshape(*lead, count), keep.reshape(*lead, count)


def _overlap(a, b, beta1):
    """Whether boxes (..., 4) meet, and their IoU minus the distance penalty."""
    top_left, bottom_right = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    sides = bottom_right - top_left + 1
    meets = (sides > 0).all(-1)
    intersection = jnp.where(meets, sides.prod(-1), 0.0)
    union = (a[..., 2:] - a[..., :2] + 1).prod(-1) + (b[..., 2:] - b[..., :2] + 1).prod(-1) - intersection
    enclosing = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2]) + 1
    diagonal = (enclosing**2).sum(-1)
    distance = (((a[..., :2] + a[..., 2:]) / 2 - (b[..., :2] + b[..., 2:]) / 2) ** 2).sum(-1)
    apart = meets & (distance > 0)
    penalty = jnp.where(apart, jnp.where(apart, distance / jnp.where(apart, diagonal, 1.0), 1.0) ** beta1, 0.0)
    overlap = intersection / jnp.where(meets, union, 1.0) - penalty
    # Areas that overflow float32 belong to no real image.
    return meets, jnp.where(jnp.isfinite(overlap), overlap, 0.0)
