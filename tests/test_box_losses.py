"""The box head's losses and metrics beside the original's formulas in float64."""

import dataclasses

import numpy as np
import pytest

from diou_jax.configs import base
from diou_jax.losses import BOX_LOSSES
from diou_jax.options import build
from diou_jax.structures import RoiSamples

BATCH, ROIS, CLASSES = 2, 12, 5
HEAD = build.heads(base.get_config(), CLASSES)[0]


@pytest.fixture
def samples():
    """RoIs of every class; some rows of the second image only fill its shape, and would count with their labels."""
    rng = np.random.default_rng(0)
    boxes = np.zeros((BATCH, ROIS, 4), np.float32)
    valid = np.ones((BATCH, ROIS), bool)
    valid[1, 7:] = False
    labels = (np.arange(BATCH * ROIS).reshape(BATCH, ROIS) % CLASSES).astype(np.int32)
    return RoiSamples(boxes, boxes, labels, rng.integers(0, 3, (BATCH, ROIS)).astype(np.int32), valid)


@pytest.mark.parametrize("columns", [CLASSES, 1], ids=["boxes by class", "class-agnostic boxes"])
@pytest.mark.parametrize("name", ["smooth_l1", "ciou"])
def test_they_equal_the_originals_formulas(samples, columns, name):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (BATCH, ROIS, CLASSES)).astype(np.float32)
    deltas = rng.normal(0, 1, (BATCH, ROIS, columns, 4)).astype(np.float32)
    targets = rng.normal(0, 1, (BATCH, ROIS, 4)).astype(np.float32)
    head = dataclasses.replace(HEAD, box_loss=name, box_weight=3.0)
    found = head.compare((logits, deltas), samples, targets)

    valid, labels = samples.valid, samples.labels
    count = valid.sum()
    assert 0 < count < valid.size
    wide = logits.astype(np.float64)
    entropy = np.log(np.exp(wide).sum(-1)) - np.take_along_axis(wide, labels[..., None], 2)[..., 0]
    np.testing.assert_allclose(found["loss_cls"].value, entropy[valid].sum() / count, rtol=1e-5)
    right = (logits.argmax(-1) == labels)[valid].mean()
    np.testing.assert_allclose(found["accuracy_cls"].value, right, rtol=1e-6)

    objects = valid & (labels > 0)
    predicted = np.stack([deltas[i, j, labels[i, j] if columns > 1 else 0] for i, j in np.argwhere(objects)])
    apart = np.abs(predicted.astype(np.float64) - targets[objects])
    smooth = np.where(apart < 1, apart**2 / 2, apart - 0.5).sum() / count
    np.testing.assert_allclose(found["bbox_sl1"].value, smooth, rtol=1e-5)
    for metric, kind in {"bbox_iou": "iou", "bbox_giou": "giou", "loss_bbox": name}.items():
        each = BOX_LOSSES[kind](predicted, targets[objects], reg_weights=head.reg_weights)
        np.testing.assert_allclose(found[metric].value, np.asarray(each, np.float64).sum() / count, rtol=1e-5)
    assert (found["loss_cls"].weight, found["loss_bbox"].weight, found["bbox_iou"].weight) == (1.0, 3.0, None)


def test_without_a_roi_all_are_zero(samples):
    nothing = samples.replace(valid=np.zeros_like(samples.valid))
    outputs = np.ones((BATCH, ROIS, CLASSES), np.float32), np.ones((BATCH, ROIS, CLASSES, 4), np.float32)
    found = HEAD.compare(outputs, nothing, np.zeros((BATCH, ROIS, 4), np.float32))
    assert all(loss.value == 0 for loss in found.values())
