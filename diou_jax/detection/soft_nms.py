"""Soft-NMS: boxes that overlap a better one lose score rather than their place.

Bodla et al., Soft-NMS: Improving Object Detection With One Line of Code, ICCV 2017; with a distance penalty, as in the
original.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from diou_jax.structures import Array

METHODS = ("linear", "gaussian", "hard")
# The original's: a box of less is given up.
SCORE_THRESH = 1e-4


def soft_nms(
    boxes: jax.Array,
    scores: jax.Array,
    threshold: ArrayLike,
    *,
    method: str,
    sigma: float = 0.5,
    beta1: float = 0.8,
    valid: Array | None = None,
    score_thresh: float = SCORE_THRESH,
    most: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Which boxes soft-NMS keeps, and the scores that it leaves them; leading axes are independent problems.

    The best of the waiting boxes is taken, the first of equals, and the scores of those that meet it are multiplied,
    depending on the overlap ``o = IoU - (d / c) ** beta1``: by 1 - o where o exceeds `threshold` ("linear"), by
    ``exp(-o ** 2 / sigma)`` ("gaussian") or by 0 where o exceeds `threshold` ("hard"). Whichever of them is below
    `score_thresh` then is given up; boxes that meet no better one are kept whatever their score. d is the squared
    distance of the centres, c the squared diagonal of the smallest box around both, here in inclusive pixels, unlike
    that of DIoU-NMS.

    Args:
      boxes: float (..., N, 4), pixels.
      scores: float (..., N). A box whose score is NaN is never kept.
      threshold: TEST.NMS.
      method: TEST.SOFT_NMS.METHOD.
      sigma: TEST.SOFT_NMS.SIGMA.
      beta1: exponent of the distance penalty, 0.8 in the original; infinity: none, as in the paper.
      valid: bool (..., N); boxes that are not valid are neither kept nor touch others. None: all are.
      score_thresh: of a box that goes on waiting.
      most: boxes of a problem after which the rest is not looked at; None: all. The scores of those that are taken
        never rise, so these are the best ones.

    Returns:
      scores float32 (..., N) and keep bool (..., N), in the order of the input.

    Raises:
      ValueError: for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    *lead, count = scores.shape
    if scores.size == 0:
        return scores.astype(jnp.float32), jnp.zeros(scores.shape, bool)
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
        meets, overlap = _overlap(jnp.take_along_axis(boxes, best[:, None, None], 1), boxes, beta1)
        touched = meets & waiting & taken.any(1, keepdims=True)
        if method == "gaussian":
            weight = jnp.exp(-(overlap**2) / sigma)
        else:
            weight = jnp.where(overlap > threshold, 1 - overlap if method == "linear" else 0.0, 1.0)
        scores = jnp.where(touched, scores * weight, scores)
        return number + 1, scores, waiting & ~(touched & (scores < score_thresh)), keep | taken

    state = jnp.zeros((), jnp.int32), scores, waiting, jnp.zeros_like(waiting)
    _, scores, _, keep = jax.lax.while_loop(unfinished, take, state)
    return scores.reshape(*lead, count), keep.reshape(*lead, count)


def _overlap(a, b, beta1):
    """Whether boxes (..., 4) meet, and IoU less the penalty."""
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
    # Areas beyond float32 are nobody's image.
    return meets, jnp.where(jnp.isfinite(overlap), overlap, 0.0)
