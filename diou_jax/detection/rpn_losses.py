"""The RPN's two losses, with the original's normalisers."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from diou_jax.detection.anchor_targets import AnchorTargets
from diou_jax.detection.loss import Loss
from diou_jax.detection.rules import RpnLossRules
from diou_jax.losses import box_loss, sigmoid_cross_entropy
from diou_jax.structures import Array


def rpn_losses(
    outputs: tuple[Sequence[Float32[Array, "B _N"]], Sequence[Float32[Array, "B _N 4"]]],
    targets: AnchorTargets,
    *,
    rules: RpnLossRules,
) -> dict[str, Loss]:
    """The RPN's two losses.

    As in the original, the objectness loss is divided by the number of anchors that should be sampled, a constant, and
    the box loss of each image by the number that was sampled.

    Args:
      outputs: the RPN's outputs, per level float32 logits (B, N) and deltas (B, N, 4).
      targets: the targets of all levels concatenated, (B, A).
      rules: the box loss and its weight, and the number of anchors that should be sampled per image.

    Returns:
      ``loss_rpn_cls`` and ``loss_rpn_bbox``, scalars, and their parts per level, (L,), with ``_levels`` appended.
    """
    logits, deltas = outputs
    # The beta of the original's smooth L1 loss in the RPN.
    options = {"beta": 1 / 9} if rules.box in ("smooth_l1", "sl1") else {}
    box = functools.partial(box_loss(rules.box), reg_weights=(1.0, 1.0, 1.0, 1.0), **options)
    images = logits[0].shape[0]
    sampled = targets.labels >= 0
    share = 1.0 / jnp.maximum(sampled.sum(1, keepdims=True), 1)
    objectness = jnp.where(sampled, sigmoid_cross_entropy(jnp.concatenate(logits, 1), targets.labels == 1), 0.0)
    boxes = box(jnp.concatenate(deltas, 1).reshape(-1, 4), targets.deltas.reshape(-1, 4))
    boxes = jnp.where(targets.labels == 1, boxes.reshape(sampled.shape), 0.0) * share

    bounds = np.cumsum([level.shape[1] for level in logits])[:-1]
    objectness = jnp.stack([level.sum() for level in jnp.split(objectness, bounds, 1)]) / (
        rules.batch_size_per_im * images
    )
    boxes = jnp.stack([level.sum() for level in jnp.split(boxes, bounds, 1)]) / images
    return {
        "loss_rpn_cls": Loss(objectness.sum()),
        "loss_rpn_bbox": Loss(boxes.sum(), rules.box_weight),
        "loss_rpn_cls_levels": Loss(objectness, None),
        "loss_rpn_bbox_levels": Loss(boxes, None),
    }
