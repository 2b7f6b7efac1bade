"""The RPN's losses beside the original's formulas in float64."""

import jax
import numpy as np
import pytest

from diou_jax.detection.anchor_targets import AnchorTargets
from diou_jax.detection.rpn_losses import rpn_losses
from diou_jax.detection.rules import RpnLossRules
from diou_jax.losses import BOX_LOSSES

BATCH, LEVELS, NOMINAL = 3, (40, 12, 5), 32
BETA = 1 / 9


@pytest.fixture
def outputs():
    rng = np.random.default_rng(0)
    logits = [rng.normal(0, 3, (BATCH, count)).astype(np.float32) for count in LEVELS]
    return logits, [rng.normal(0, 0.3, (BATCH, count, 4)).astype(np.float32) for count in LEVELS]


@pytest.fixture
def targets():
    """The images sample different numbers of anchors; the last one has one."""
    rng = np.random.default_rng(1)
    labels = np.stack([rng.choice([-1, 0, 1], sum(LEVELS), p=share) for share in ((0.5, 0.3, 0.2), (0.8, 0.1, 0.1))])
    labels = np.concatenate([labels, np.full((1, sum(LEVELS)), -1)]).astype(np.int32)
    labels[2, 7] = 1
    deltas = rng.normal(0, 0.3, (*labels.shape, 4)).astype(np.float32) * (labels == 1)[..., None]
    return AnchorTargets(labels, deltas)


def by_level(values):
    return [part.sum() for part in np.split(values, np.cumsum(LEVELS)[:-1], 1)]


@pytest.mark.parametrize("name", ["smooth_l1", "sl1"])
def test_they_equal_the_originals_formulas(outputs, targets, name):
    found = rpn_losses(outputs, targets, rules=RpnLossRules(name, 2.0, NOMINAL))
    logits, deltas = (np.concatenate(levels, 1).astype(np.float64) for levels in outputs)
    sampled, is_object = targets.labels >= 0, targets.labels == 1

    entropy = np.maximum(logits, 0) - logits * is_object + np.log1p(np.exp(-np.abs(logits)))
    objectness = by_level(np.where(sampled, entropy, 0) / (NOMINAL * BATCH))
    np.testing.assert_allclose(found["loss_rpn_cls_levels"].value, objectness, rtol=1e-5)
    np.testing.assert_allclose(found["loss_rpn_cls"].value, sum(objectness), rtol=1e-5)

    apart = np.abs(deltas - targets.deltas)
    smooth = np.where(apart < BETA, apart**2 / (2 * BETA), apart - BETA / 2).sum(-1)
    assert (apart[is_object] < BETA).any() and (apart[is_object] > BETA).any()
    boxes = by_level(np.where(is_object, smooth, 0) / sampled.sum(1, keepdims=True) / BATCH)
    np.testing.assert_allclose(found["loss_rpn_bbox_levels"].value, boxes, rtol=1e-5)
    np.testing.assert_allclose(found["loss_rpn_bbox"].value, sum(boxes), rtol=1e-5)
    assert (found["loss_rpn_cls"].weight, found["loss_rpn_bbox"].weight) == (1.0, 2.0)
    assert found["loss_rpn_cls_levels"].weight is found["loss_rpn_bbox_levels"].weight is None


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou"])
def test_an_iou_loss_takes_the_place_of_smooth_l1(outputs, targets, name):
    found = rpn_losses(outputs, targets, rules=RpnLossRules(name, 1.0, NOMINAL))
    deltas = np.concatenate(outputs[1], 1)
    each = BOX_LOSSES[name](deltas.reshape(-1, 4), targets.deltas.reshape(-1, 4), reg_weights=(1.0, 1.0, 1.0, 1.0))
    each = np.asarray(each, np.float64).reshape(targets.labels.shape)
    boxes = np.where(targets.labels == 1, each, 0) / (targets.labels >= 0).sum(1, keepdims=True) / BATCH
    np.testing.assert_allclose(found["loss_rpn_bbox_levels"].value, by_level(boxes), rtol=1e-5)


def test_an_image_without_sampled_anchors_has_no_loss_and_no_gradient_that_is_not_finite(outputs, targets):
    nothing = AnchorTargets(np.full_like(targets.labels, -1), np.zeros_like(targets.deltas))

    def total(outputs):
        found = rpn_losses(outputs, nothing, rules=RpnLossRules("ciou", 1.0, NOMINAL))
        return found["loss_rpn_cls"].value + found["loss_rpn_bbox"].value

    value, gradient = jax.value_and_grad(total)(outputs)
    assert value == 0 and all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
