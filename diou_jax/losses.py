"""Losses: pure functions, element-wise and unreduced, computed in float32 for any dtype of the input.

`BOX_LOSSES` holds the box losses of RPN and box head by the original's names, those of MODEL.LOSS_TYPE.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Float32, Int, Shaped

from diou_jax.boxes import MAX_LOG_RATIO
from diou_jax.errors import UserError
from diou_jax.overlaps import OVERLAPS
from diou_jax.structures import Array


def iou_loss(boxes: Float[Array, "*#batch 4"], targets: Float[Array, "*#batch 4"]) -> Float32[jax.Array, "*#batch"]:
    """One minus IoU of continuous boxes (..., 4) with (..., 4): float32 (...), in [0, 1]."""
    return 1 - OVERLAPS["iou"](boxes, targets)


def giou_loss(boxes: Float[Array, "*#batch 4"], targets: Float[Array, "*#batch 4"]) -> Float32[jax.Array, "*#batch"]:
    """One minus GIoU of continuous boxes (..., 4) with (..., 4): float32 (...), in [0, 2]."""
    return 1 - OVERLAPS["giou"](boxes, targets)


def diou_loss(boxes: Float[Array, "*#batch 4"], targets: Float[Array, "*#batch 4"]) -> Float32[jax.Array, "*#batch"]:
    """One minus DIoU of continuous boxes (..., 4) with (..., 4): float32 (...), in [0, 2]."""
    return 1 - OVERLAPS["diou"](boxes, targets)


def ciou_loss(boxes: Float[Array, "*#batch 4"], targets: Float[Array, "*#batch 4"]) -> Float32[jax.Array, "*#batch"]:
    """One minus CIoU of continuous boxes (..., 4) with (..., 4): float32 (...), in [0, 2.5]."""
    return 1 - OVERLAPS["ciou"](boxes, targets)


def smooth_l1(
    deltas: Float[Array, "*batch 4"],
    target_deltas: Float[Array, "*batch 4"],
    *,
    reg_weights: Sequence[float] | Float[Array, "4"] = (10.0, 10.0, 5.0, 5.0),
    beta: float = 1.0,
) -> Float32[jax.Array, "*batch"]:
    """Smooth L1 of the differences of deltas (N, 4), summed over the four: float32 (N,) (Fast R-CNN, eq. 3).

    Args:
      deltas: (N, 4), predicted.
      target_deltas: (N, 4).
      reg_weights: unused, since the deltas are weighted already; all box losses have this signature.
      beta: the difference at which the parabola turns into a line: 1 in the box head, 1/9 in the RPN; 0 leaves the
        line alone, L1.
    """
    del reg_weights
    difference = jnp.abs(deltas.astype(jnp.float32) - target_deltas.astype(jnp.float32))
    parabola = 0.5 * jnp.minimum(difference, beta) ** 2 / jnp.where(beta > 0, beta, 1.0)
    return jnp.where((difference < beta) | (difference == 0), parabola, difference - 0.5 * beta).sum(-1)


def _unit_boxes(deltas: Array, target_deltas: Array, reg_weights: Sequence[float] | Array) -> tuple[jax.Array, ...]:
    """The continuous boxes that two sets of deltas lead to from a unit box; the centre of the first is the origin.

    With this origin the corners of the prediction hold its sides exactly. With the origin at the unit box, a small side
    of a distant box would be rounded off, and the gradient of CIoU, which divides by the sides, could have any error.
    """
    deltas, target_deltas = (
        x.astype(jnp.float32) / jnp.asarray(reg_weights, jnp.float32) for x in (deltas, target_deltas)
    )
    half, target_half = (0.5 * jnp.exp(jnp.minimum(x[..., 2:], MAX_LOG_RATIO)) for x in (deltas, target_deltas))
    centre = target_deltas[..., :2] - deltas[..., :2]
    return jnp.concatenate([-half, half], -1), jnp.concatenate([centre - target_half, centre + target_half], -1)


def _overlap_loss(
    name: str,
    deltas: Float[Array, "*batch 4"],
    target_deltas: Float[Array, "*batch 4"],
    *,
    reg_weights: Sequence[float] | Float[Array, "4"] = (10.0, 10.0, 5.0, 5.0),
) -> Float32[jax.Array, "*batch"]:
    """One minus the overlap `name` of the boxes that two sets of deltas (N, 4) lead to: float32 (N,)."""
    return 1 - OVERLAPS[name](*_unit_boxes(deltas, target_deltas, reg_weights))


BOX_LOSSES: dict[str, Callable] = {
    "smooth_l1": smooth_l1,
    "sl1": smooth_l1,
    **{name: functools.partial(_overlap_loss, name) for name in OVERLAPS},
}


def box_loss(name: str) -> Callable:
    """The entry `name` of `BOX_LOSSES`; an unknown name raises a UserError that lists the known ones."""
    if name not in BOX_LOSSES:
        raise UserError(f"unknown box loss {name!r}; there are {', '.join(BOX_LOSSES)}")
    return BOX_LOSSES[name]


def sigmoid_cross_entropy(
    logits: Float[Array, "*batch"], labels: Shaped[Array, "*batch"]
) -> Float32[jax.Array, "*batch"]:
    """Binary cross-entropy of logits (...) with labels (...) in {0, 1}: float32 (...)."""
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32))


def softmax_cross_entropy(
    logits: Float[Array, "*batch K"], labels: Int[Array, "*batch"]
) -> Float32[jax.Array, "*batch"]:
    """Cross-entropy of logits (..., K) with int labels (...): float32 (...)."""
    logits = logits.astype(jnp.float32)
    # The maximum is subtracted first: the loss is a difference in which large logits would cancel.
    logits -= jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
