"""Golden file: roi_labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.detector.roi_targets import sample_rois

RULES = {
    "batch_size_per_im": 512,
    "fg_fraction": 0.25,
    "fg_thresh": 0.5,
    "bg_thresh_hi": 0.5,
    "bg_thresh_lo": 0.0,
    "crowd_filter_thresh": 0.0,
    "reg_weights": (10.0, 10.0, 5.0, 5.0),
}
CASES = [("a", "nofilter"), ("a", "filter0.7"), ("b_crowd", "nofilter"), ("b_crowd", "filter0.7")]


def call(rois, boxes, classes, crowd, seed=0, **rules):
    """With three rows of padding behind the boxes and five behind the RoIs."""
    count, padding = len(boxes), np.full((3, 4), 60, np.float32)
    return sample_rois(
        jnp.asarray(np.concatenate([rois, np.full((5, 4), 60, np.float32)])),
        jnp.arange(len(rois) + 5) < len(rois),
        jnp.asarray(np.concatenate([boxes, padding])),
        jnp.asarray(np.concatenate([classes, np.ones(3, int)])),
        jnp.asarray(np.concatenate([crowd, np.zeros(3, bool)])),
        jnp.arange(count + 3) < count,
        jax.random.key(seed),
        **RULES | rules,
    )


def load(data, case):
    rois = data[f"{case}/rois"][:, 1:] * np.float32(1 / data[f"{case}/im_scale"].astype(np.float64))
    return rois, data[f"{case}/gt_boxes"], data[f"{case}/gt_classes"], data[f"{case}/is_crowd"]


def keyed(rois, labels, deltas):
    """Rows in an order that does not depend on the draw."""
    order = np.lexsort((*np.round(rois, 2).T, labels))
    return rois[order], labels[order], deltas[order]


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_with_room_for_all_every_roi_gets_the_originals_label_and_deltas(golden, case, variant):
    data = golden("roi_labels.npz")
    threshold = 0.0 if variant == "nofilter" else 0.7
    ours = call(*load(data, case), batch_size_per_im=2048, fg_fraction=0.5, crowd_filter_thresh=threshold)
    valid = np.asarray(ours.valid)
    scale = data[f"{case}/im_scale"]
    theirs = data[f"{case}/{variant}/blob_labels_int32"]
    columns = 4 * theirs[:, None] + np.arange(4)
    deltas = np.take_along_axis(data[f"{case}/{variant}/blob_bbox_targets"], columns, 1)
    wanted = keyed(data[f"{case}/{variant}/blob_rois"][:, 1:] / scale, theirs, deltas)
    actual = keyed(*(np.asarray(x)[valid] for x in (ours.rois, ours.labels, ours.deltas)))
    for a, b, tolerance in zip(actual, wanted, (1e-3, 0, 1e-4), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_sample_sizes_equal_the_original(golden):
    data = golden("roi_labels.npz")
    ours = call(*load(data, "a"), batch_size_per_im=64)
    theirs = data["a/real64/labels"]
    labels = np.asarray(ours.labels)
    assert ours.valid.sum() == len(theirs) == 64
    assert (labels > 0).sum() == (theirs > 0).sum() == 16
    assert (np.diff((labels > 0).astype(int)) <= 0).all(), "objects come first"
    assert not np.array_equal(labels, call(*load(data, "a"), batch_size_per_im=64, seed=1).labels)


def test_no_row_is_drawn_twice(golden):
    data = golden("roi_labels.npz")
    ours = call(*load(data, "a"), batch_size_per_im=256)
    rois = np.asarray(ours.rois)[np.asarray(ours.valid)]
    assert len(np.unique(rois, axis=0)) == len(rois)


def test_no_boxes_or_only_crowds_give_background():
    rois = np.random.default_rng(0).uniform(0, 100, (40, 4)).astype(np.float32)
    rois[:, 2:] += rois[:, :2]
    nothing = call(rois, np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool), batch_size_per_im=64)
    assert nothing.valid.sum() == 40
    assert (nothing.labels == 0).all() and (nothing.deltas == 0).all()
    far = np.array([[500, 500, 600, 600]], np.float32)
    crowd = call(rois, far, np.array([3]), np.array([True]), batch_size_per_im=64)
    assert crowd.valid.sum() == 40
    assert (crowd.labels == 0).all()


def test_no_proposals_leave_the_ground_truth():
    boxes = np.array([[5, 5, 20, 30], [40, 40, 90, 80]], np.float32)
    ours = call(np.zeros((0, 4), np.float32), boxes, np.array([2, 7]), np.zeros(2, bool), batch_size_per_im=32)
    assert sorted(np.asarray(ours.labels)[np.asarray(ours.valid)]) == [2, 7]
    np.testing.assert_allclose(ours.deltas, 0, atol=1e-6)
