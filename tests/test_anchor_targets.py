"""Golden file: rpn_targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.detector.anchor_targets import anchor_targets

RULES = {
    "batch_size_per_im": 256,
    "fg_fraction": 0.5,
    "positive_overlap": 0.7,
    "negative_overlap": 0.3,
    "straddle_thresh": 0,
}


def call(data, case, seed=0, **rules):
    boxes = data[f"{case}/gt_boxes"]
    padded = np.concatenate([boxes, np.full((3, 4), 50, np.float32)])  # a padded row would match if it counted
    return anchor_targets(
        jnp.asarray(data["all_anchors"]),
        jnp.ones(len(data["all_anchors"]), bool),
        jnp.asarray(padded),
        jnp.arange(len(padded)) < len(boxes),
        jnp.asarray(data[f"{case}/im_hw"]),
        jax.random.key(seed),
        **RULES | rules,
    )


def candidates(data, case):
    """Objects and background before sampling, from the two cases that the original draws nothing in.

    With a huge batch the original keeps every object and draws no background; in `allbg` it draws as many as there are.
    """
    return data[f"{case}/huge/rpn_labels_int32_wide"] == 1


@pytest.mark.parametrize("case", ["a", "b"])
def test_objects_and_their_deltas_equal_the_original(golden, case):
    data = golden("rpn_targets.npz")
    ours = call(data, case, batch_size_per_im=100_000)
    positive = data[f"{case}/huge/rpn_labels_int32_wide"] == 1
    np.testing.assert_array_equal(np.asarray(ours.labels) == 1, positive)
    np.testing.assert_allclose(
        np.asarray(ours.deltas)[positive], data[f"{case}/huge/rpn_bbox_targets_wide"][positive], atol=2e-6
    )
    inside = np.zeros(len(positive), bool)
    inside[data[f"{case}/inds_inside"]] = True
    assert (np.asarray(ours.labels)[~inside] == -1).all()


@pytest.mark.parametrize("case", ["a", "b"])
def test_background_is_drawn_from_the_originals_candidates(golden, case):
    data = golden("rpn_targets.npz")
    everything = np.asarray(call(data, case, batch_size_per_im=100_000).labels)
    for name in ("allbg", "real256"):
        theirs = data[f"{case}/{name}/rpn_labels_int32_wide"]
        # The original may overwrite an object with background; ours never does.
        assert np.isin(everything[theirs == 0], [0, 1]).all()
        assert (everything[theirs == 1] == 1).all()


@pytest.mark.parametrize("case", ["a", "b"])
def test_the_sample_has_the_originals_size(golden, case):
    data = golden("rpn_targets.npz")
    ours = np.asarray(call(data, case).labels)
    theirs = data[f"{case}/real256/rpn_labels_int32_wide"]
    everything = np.asarray(call(data, case, batch_size_per_im=100_000).labels)
    assert (ours == 1).sum() == min(128, (everything == 1).sum())
    assert (ours >= 0).sum() == 256
    # With replacement the original draws a few anchors twice.
    assert 240 <= (theirs >= 0).sum() <= 256
    assert (ours[ours >= 0] == everything[ours >= 0]).all()
    assert not np.array_equal(ours, np.asarray(call(data, case, seed=1).labels))


def test_no_box_no_object(golden):
    data = golden("rpn_targets.npz")
    data["a/gt_boxes"] = np.zeros((0, 4), np.float32)
    labels = np.asarray(call(data, "a").labels)
    assert (labels == 0).sum() == 256
    assert (labels == 1).sum() == 0


def test_a_box_that_no_anchor_touches_makes_no_object(golden):
    """The original makes all 1,837 anchors that touch nothing objects then."""
    data = golden("rpn_targets.npz")
    anchors, height, width = data["all_anchors"], *data["a/im_hw"]
    inside = (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
    corner = np.array([[0, 0, 1, 1]], np.float32)
    reach = (anchors[inside, 0] <= 1) & (anchors[inside, 1] <= 1)
    data["all_anchors"] = anchors[inside][~reach]
    data["a/gt_boxes"] = corner
    labels = np.asarray(call(data, "a").labels)
    assert (labels == 1).sum() == 0
    assert (labels == 0).sum() == 256
