"""Golden file: rpn_proposals."""

import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.anchors import cell_anchors, grid_anchors
from diou_jax.detector.proposals import propose

LEVELS = range(2, 7)
SETTINGS = {
    "TRAIN": {"pre_nms_top_n": 2000, "post_nms_top_n": 2000, "collect_top_n": 2000},
    "TEST": {"pre_nms_top_n": 1000, "post_nms_top_n": 1000, "collect_top_n": 1000},
}


def rpn_outputs(data):
    logits, deltas, anchors = [], [], []
    for level in LEVELS:
        batch, count, height, width = data[f"rpn_cls_logits_fpn{level}"].shape
        logits.append(data[f"rpn_cls_logits_fpn{level}"].transpose(0, 2, 3, 1).reshape(batch, -1))
        deltas.append(data[f"rpn_bbox_pred_fpn{level}"].transpose(0, 2, 3, 1).reshape(batch, -1, 4))
        cell = cell_anchors(stride=2**level, size=8 * 2**level, aspect_ratios=(0.5, 1.0, 2.0))
        anchors.append(grid_anchors(height, width, stride=2**level, cell=cell))
    return logits, deltas, anchors, [np.ones(x.shape, bool) for x in logits]


def call(outputs, info, **options):
    settings = {"nms_thresh": 0.7, "min_size": 0, **SETTINGS["TEST"], **options}
    return propose(*outputs, jnp.asarray(info[:, :2]), jnp.asarray(info[:, 2]), **settings)


def rows(boxes, order_by):
    return boxes[np.lexsort((*boxes.T, -order_by))]


@pytest.mark.parametrize("mode", ["TRAIN", "TEST"])
def test_each_level_equals_the_original(golden, mode):
    data = golden("rpn_proposals.npz")
    outputs = rpn_outputs(data)
    for number, level in enumerate(LEVELS):
        one = [part[number : number + 1] for part in outputs]
        ours = call(one, data["im_info"], **SETTINGS[mode] | {"collect_top_n": 10**6})
        for image in (0, 1):
            theirs = data[f"{mode}/rois_fpn{level}"]
            mask = theirs[:, 0] == image
            valid = np.asarray(ours.valid[image])
            assert valid.sum() == mask.sum()
            np.testing.assert_allclose(
                np.asarray(ours.scores[image])[valid], data[f"{mode}/probs_fpn{level}"][mask, 0], atol=1e-6
            )
            np.testing.assert_allclose(np.asarray(ours.boxes[image])[valid], theirs[mask, 1:], atol=1e-3)


@pytest.mark.parametrize("mode", ["TRAIN", "TEST"])
def test_collecting_over_the_minibatch_equals_the_original(golden, mode):
    data = golden("rpn_proposals.npz")
    ours = call(rpn_outputs(data), data["im_info"], **SETTINGS[mode])
    theirs = data[f"{mode}/collected_rois"]
    assert int(ours.valid.sum()) == len(theirs)
    for image in (0, 1):
        wanted = theirs[theirs[:, 0] == image, 1:]
        actual = np.asarray(ours.boxes[image])[np.asarray(ours.valid[image])]
        np.testing.assert_allclose(actual, wanted, atol=1e-3)


def test_an_image_alone_is_proposed_what_it_is_proposed_in_company(golden):
    data = golden("rpn_proposals.npz")
    outputs = rpn_outputs(data)
    together = call(outputs, data["im_info"], per_image=True)
    for image in (0, 1):
        one = ([x[image : image + 1] for x in part] for part in (outputs[0], outputs[1]))
        exists = [x[image : image + 1] for x in outputs[3]]
        alone = call((*one, outputs[2], exists), data["im_info"][image : image + 1], per_image=True)
        np.testing.assert_array_equal(together.valid[image], alone.valid[0])
        np.testing.assert_array_equal(together.boxes[image], alone.boxes[0])
        assert alone.valid.sum() == 1000


def test_anchors_that_do_not_exist_and_outputs_that_are_not_numbers_are_never_proposed():
    anchors = [grid_anchors(4, 4, stride=8, cell=cell_anchors(stride=8, size=16, aspect_ratios=(1.0,)))]
    logits = np.linspace(-2, 2, 16, dtype=np.float32)[None]
    deltas = np.zeros((1, 16, 4), np.float32)
    exists = np.arange(16)[None] < 12
    logits[0, 3], deltas[0, 5, 2], deltas[0, 6] = np.nan, np.nan, np.inf
    info = np.array([[32, 32, 1]], np.float32)
    ours = call(([logits], [deltas], anchors, [exists]), info, nms_thresh=1.1)
    assert np.isfinite(ours.boxes).all() and np.isfinite(ours.scores).all()
    assert ours.valid.sum() == 12 - 2, "an infinite shift is clipped to the border"
    assert ours.scores.max() < 1 / (1 + np.exp(-logits[0, 12]))


def test_min_size_is_in_pixels_of_the_original_image():
    anchors = [np.array([[0, 0, 9, 9], [0, 0, 19, 19]], np.float32)]
    outputs = ([np.zeros((1, 2), np.float32)], [np.zeros((1, 2, 4), np.float32)], anchors, [np.ones((1, 2), bool)])
    for scale, kept in ((1.0, 1), (0.5, 2), (2.0, 0)):
        info = np.array([[64, 64, scale]], np.float32)
        assert call(outputs, info, min_size=15, nms_thresh=1.1).valid.sum() == kept
