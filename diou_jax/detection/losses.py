"""From network outputs and targets to the scalars of the RPN and the box head, with the original's normalisers."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.detection.anchor_targets import AnchorTargets
from diou_jax.detection.roi_targets import SampledRois
from diou_jax.losses import BOX_LOSSES, sigmoid_cross_entropy, softmax_cross_entropy


def rpn_losses(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    targets: AnchorTargets,
    *,
    box_loss: Callable,
    batch_size_per_im: int,
) -> dict[str, jax.Array]:
    """The RPN's two losses.

    The objectness loss is divided by the number of anchors that *should* be sampled, a constant, the box loss of each
    image by the number that was; so the original does.

    Args:
      logits: float32 (B, N) of each level.
      deltas: float32 (B, N, 4) of each level.
      targets: of all levels in one row, (B, A).
      box_loss: ``(deltas (N, 4), targets (N, 4)) -> (N,)``.
      batch_size_per_im: TRAIN.RPN_BATCH_SIZE_PER_IM.

    Returns:
      ``loss_rpn_cls`` and ``loss_rpn_bbox``, scalars, and the same per level, (L,), with ``_levels`` appended.
    """
    images = logits[0].shape[0]
    sampled = targets.labels >= 0
    share = 1.0 / jnp.maximum(sampled.sum(1, keepdims=True), 1)
    objectness = jnp.where(sampled, sigmoid_cross_entropy(jnp.concatenate(logits, 1), targets.labels == 1), 0.0)
    boxes = box_loss(jnp.concatenate(deltas, 1).reshape(-1, 4), targets.deltas.reshape(-1, 4))
    boxes = jnp.where(targets.labels == 1, boxes.reshape(sampled.shape), 0.0) * share

    bounds = np.cumsum([level.shape[1] for level in logits])[:-1]
    objectness = jnp.stack([level.sum() for level in jnp.split(objectness, bounds, 1)]) / (batch_size_per_im * images)
    boxes = jnp.stack([level.sum() for level in jnp.split(boxes, bounds, 1)]) / images
    return {
        "loss_rpn_cls": objectness.sum(),
        "loss_rpn_bbox": boxes.sum(),
        "loss_rpn_cls_levels": objectness,
        "loss_rpn_bbox_levels": boxes,
    }


def head_losses(
    logits: jax.Array,
    deltas: jax.Array,
    sampled: SampledRois,
    *,
    box_loss: Callable,
    reg_weights: Sequence[float],
) -> dict[str, jax.Array]:
    """The box head's two losses and the original's metrics, all divided by the number of RoIs of the minibatch.

    Args:
      logits: float32 (B, S, K).
      deltas: float32 (B, S, K, 4), or (B, S, 1, 4) when class-agnostic.
      sampled: RoIs and targets, (B, S).
      box_loss: an entry of `BOX_LOSSES`.
      reg_weights: MODEL.BBOX_REG_WEIGHTS.

    Returns:
      ``loss_cls``, ``loss_bbox``, and unweighted metrics: ``accuracy_cls``, ``bbox_sl1``, ``bbox_iou`` and
      ``bbox_giou`` (the last two as losses, one minus the overlap).
    """
    labels = jnp.where(sampled.valid, sampled.labels, 0)
    foreground = sampled.valid & (labels > 0)
    count = jnp.maximum(sampled.valid.sum(), 1)
    column = labels if deltas.shape[2] > 1 else jnp.zeros_like(labels)
    predicted = jnp.take_along_axis(deltas, column[..., None, None], 2).reshape(-1, 4)
    wanted = sampled.deltas.reshape(-1, 4)

    def mean(values, where):
        return jnp.where(where, values.reshape(where.shape), 0.0).sum() / count

    def box_metric(loss):
        return mean(loss(predicted, wanted, reg_weights=reg_weights), foreground)

    def frozen_metric(name):
        return jax.lax.stop_gradient(box_metric(BOX_LOSSES[name]))

    return {
        "loss_cls": mean(softmax_cross_entropy(logits, labels), sampled.valid),
        "loss_bbox": box_metric(box_loss),
        "accuracy_cls": mean((logits.argmax(-1) == labels).astype(jnp.float32), sampled.valid),
        "bbox_sl1": frozen_metric("smooth_l1"),
        "bbox_iou": frozen_metric("iou"),
        "bbox_giou": frozen_metric("giou"),
    }
