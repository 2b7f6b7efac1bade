"""Golden files: rpn_targets, and the RPN's labels in model_train_outputs."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from diou_jax.boxes import decode
from diou_jax.detection.anchor_targets import anchor_targets
from diou_jax.detection.anchors import cell_anchors, grid_anchors
from diou_jax.detection.rules import AnchorRules
from diou_jax.overlaps import pairwise_iou
from diou_jax.structures import Anchors, GroundTruth

RULES = AnchorRules(
    batch_size_per_im=256, fg_fraction=0.5, positive_overlap=0.7, negative_overlap=0.3, straddle_thresh=0
)
ALL = 100_000  # room for every anchor: nothing is left to chance
ROWS = 8

compiled = jax.jit(anchor_targets, static_argnames="rules")


def truth(boxes, valid):
    """Ground truth of B images, without a crowd."""
    return GroundTruth(boxes, np.ones(valid.shape, np.int32), np.zeros(valid.shape, bool), valid)


def call(anchors, boxes, size, *, exists=None, seed=0, **rules):
    """Labels and deltas, the boxes padded with rows that would match if they counted."""
    padded = np.concatenate([boxes, np.full((ROWS - len(boxes), 4), 50)]).astype(np.float32)
    exists = np.ones(len(anchors), bool) if exists is None else exists
    gt = truth(padded[None], np.arange(ROWS)[None] < len(boxes))
    keys, rules = jax.random.key(seed)[None], dataclasses.replace(RULES, **rules)
    targets = compiled(Anchors([anchors], [exists[None]]), gt, keys, size=np.asarray(size)[None], rules=rules)
    return np.asarray(targets.labels[0]), np.asarray(targets.deltas[0])


def call_golden(data, case, **options):
    return call(data["all_anchors"], data[f"{case}/gt_boxes"], data[f"{case}/im_hw"], **options)


@pytest.fixture(scope="module")
def anchors():
    """Of an image of 96 x 128 pixels, two levels."""
    levels = ((8, 32), (16, 64))
    cells = [cell_anchors(stride=stride, size=size, aspect_ratios=(0.5, 1.0, 2.0)) for stride, size in levels]
    return np.concatenate(
        [grid_anchors(96 // s, 128 // s, stride=s, cell=cell) for (s, _), cell in zip(levels, cells, strict=True)]
    )


@pytest.mark.parametrize("case", ["a", "b"])
def test_with_room_for_all_labels_and_deltas_equal_the_original(golden, case):
    """`allbg`: every candidate of the background labelled, none left to a draw."""
    data = golden("rpn_targets.npz")
    labels, deltas = call_golden(data, case, batch_size_per_im=ALL)
    np.testing.assert_array_equal(labels, data[f"{case}/allbg/rpn_labels_int32_wide"])
    np.testing.assert_allclose(deltas, data[f"{case}/allbg/rpn_bbox_targets_wide"], atol=2e-6)


@pytest.mark.parametrize("case", ["a", "b"])
def test_a_batch_beyond_all_candidates_takes_them_all(golden, case):
    """`huge`: the original then draws no background at all; ours has it, beside the same objects."""
    data = golden("rpn_targets.npz")
    labels, deltas = call_golden(data, case, batch_size_per_im=ALL)
    theirs = data[f"{case}/huge/rpn_labels_int32_wide"]
    assert (theirs == 0).sum() == 0 < (labels == 0).sum()
    np.testing.assert_array_equal(labels == 1, theirs == 1)
    np.testing.assert_allclose(deltas, data[f"{case}/huge/rpn_bbox_targets_wide"], atol=2e-6)


@pytest.mark.parametrize("case", ["a", "b"])
def test_a_sample_holds_the_originals_objects_and_draws_among_its_background(golden, case):
    """`real256`: the original draws with replacement, so a few of its 256 are missing; ours are 256."""
    data = golden("rpn_targets.npz")
    theirs = data[f"{case}/real256/rpn_labels_int32_wide"]
    background = data[f"{case}/allbg/rpn_labels_int32_wide"] == 0
    labels, _ = call_golden(data, case)
    np.testing.assert_array_equal(labels == 1, theirs == 1)
    assert background[theirs == 0].all() and background[labels == 0].all()
    assert (labels >= 0).sum() == 256 > (theirs >= 0).sum()
    assert not np.array_equal(labels, call_golden(data, case, seed=1)[0])


def test_in_a_training_step_objects_and_their_deltas_equal_the_original(golden):
    """The step's photos have fewer objects than the limit: only the background is drawn."""
    data = golden("model_train_outputs.npz")
    theirs = {"labels": [], "bbox_targets": []}
    anchors = []
    for level in range(2, 7):
        field = data[f"rpn_labels_int32_wide_fpn{level}"].shape[-1]
        cell = cell_anchors(stride=2**level, size=8 * 2**level, aspect_ratios=(0.5, 1.0, 2.0))
        anchors.append(grid_anchors(field, field, stride=2**level, cell=cell))
        # Channels are a, or a * 4 + k.
        labels = data[f"rpn_labels_int32_wide_fpn{level}"].transpose(0, 2, 3, 1)
        deltas = data[f"rpn_bbox_targets_wide_fpn{level}"].transpose(0, 2, 3, 1)
        theirs["labels"].append(labels.reshape(2, -1))
        theirs["bbox_targets"].append(deltas.reshape(2, -1, 4))
    theirs = {name: np.concatenate(levels, 1) for name, levels in theirs.items()}
    for image in (0, 1):
        height, width, scale = data["im_info"][image]
        boxes = data[f"gt_boxes_im{image}"][~data[f"is_crowd_im{image}"]] * scale
        labels, deltas = call(np.concatenate(anchors), boxes, (height, width), batch_size_per_im=ALL)
        objects = theirs["labels"][image] == 1
        assert objects.sum() == (10, 14)[image]
        np.testing.assert_array_equal(labels == 1, objects)
        np.testing.assert_allclose(deltas[objects], theirs["bbox_targets"][image][objects], atol=1e-5)
        assert (labels[theirs["labels"][image] == 0] == 0).all()


def test_objects_are_limited_and_background_fills_the_rest(golden):
    data = golden("rpn_targets.npz")
    everything, _ = call_golden(data, "a", batch_size_per_im=ALL)
    labels, deltas = call_golden(data, "a", batch_size_per_im=32)
    assert (labels == 1).sum() == 16 < (everything == 1).sum()
    assert (labels == 0).sum() == 16
    assert (everything[labels >= 0] == labels[labels >= 0]).all()
    assert (deltas[labels != 1] == 0).all()


def test_without_boxes_all_is_background(golden):
    data = golden("rpn_targets.npz")
    data["a/gt_boxes"] = np.zeros((0, 4), np.float32)
    labels, deltas = call_golden(data, "a")
    assert (labels == 0).sum() == 256
    assert (labels == 1).sum() == 0
    assert (deltas == 0).all()


def test_a_box_that_no_anchor_touches_makes_no_object(anchors):
    """The original makes an object of every anchor that touches nothing then."""
    corner = np.array([[0, 0, 1, 1]])
    apart = anchors[(anchors[:, :2] > 1).any(1)]
    labels, _ = call(apart, corner, (96, 128), batch_size_per_im=ALL)
    assert (labels == 1).sum() == 0 < (labels == 0).sum()


def test_the_best_anchor_of_a_box_is_never_background(anchors):
    """Also below the negative overlap, where the original may overwrite it."""
    speck = np.array([[60, 50, 63, 53]])
    overlap = np.asarray(pairwise_iou(anchors, speck))[:, 0]
    labels, _ = call(anchors, speck, (96, 128), batch_size_per_im=ALL)
    assert 0 < overlap.max() < 0.3
    assert (labels == 1).sum() >= 1
    assert (overlap[labels == 1] == overlap.max()).all()
    unsampled, _ = call(anchors, speck, (96, 128), batch_size_per_im=ALL, fg_fraction=0.0)
    np.testing.assert_array_equal(unsampled, np.where(labels == 1, -1, labels))


@pytest.mark.parametrize(
    ("positive", "negative", "label"),
    [(0.5, 0.3, 1), (0.7, 0.5, -1), (0.5001, 0.5, -1), (0.7, 0.5001, 0)],
    ids=["at the positive overlap", "at the negative overlap", "between both", "below the negative overlap"],
)
def test_an_overlap_equal_to_the_positive_one_is_an_object_and_one_equal_to_the_negative_one_is_no_background(
    positive, negative, label
):
    # The box itself and its upper half, whose IoU is 1/2 exactly.
    anchors = np.array([[10, 10, 29, 29], [10, 10, 29, 19]], np.float32)
    rules = {"positive_overlap": positive, "negative_overlap": negative, "batch_size_per_im": 2, "fg_fraction": 1.0}
    labels, _ = call(anchors, anchors[:1], (96, 128), **rules)
    assert labels.tolist() == [1, label]


def test_anchors_that_do_not_exist_neither_count_nor_compete(anchors):
    centre = (6 * 16 + 8) * 3 + 1
    box = anchors[[centre]]
    assert call(anchors, box, (96, 128))[0][centre] == 1
    exists = np.arange(len(anchors)) != centre
    labels, _ = call(anchors, box, (96, 128), exists=exists, batch_size_per_im=ALL)
    without, _ = call(np.delete(anchors, centre, 0), box, (96, 128), batch_size_per_im=ALL)
    assert labels[centre] == -1
    np.testing.assert_array_equal(np.delete(labels, centre), without)


@pytest.mark.parametrize(("straddle_thresh", "margin"), [(0, 0), (10, 10), (-1, np.inf)])
def test_anchors_beyond_the_border_are_left_out(anchors, straddle_thresh, margin):
    labels, _ = call(anchors, np.zeros((0, 4)), (96, 128), batch_size_per_im=ALL, straddle_thresh=straddle_thresh)
    low, high = anchors[:, :2].min(1), (anchors[:, 2:] - [128, 96]).max(1)
    np.testing.assert_array_equal(labels == 0, (low >= -margin) & (high < margin))


boxes_within = st.lists(
    st.tuples(st.floats(0, 120), st.floats(0, 90), st.floats(0, 120), st.floats(0, 90)).map(
        lambda b: [b[0], b[1], min(b[0] + b[2], 127), min(b[1] + b[3], 95)]
    ),
    max_size=ROWS,
)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(boxes_within, st.integers(0, 99))
def test_a_sample_is_within_its_limits_and_its_deltas_lead_to_boxes(anchors, boxes, seed):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels, deltas = call(anchors, boxes, (96, 128), seed=seed, batch_size_per_im=64)
    assert np.isin(labels, [-1, 0, 1]).all()
    assert (labels == 1).sum() <= 32
    assert (labels >= 0).sum() <= 64
    assert np.isfinite(deltas).all()
    reached = np.asarray(decode(anchors, deltas))[labels == 1]
    if len(reached):
        assert np.abs(reached[:, None] - boxes).max(-1).min(1).max() < 1e-2


@pytest.mark.slow
def test_a_batch_of_images_equals_one_after_the_other(anchors):
    boxes = np.array([[[10, 10, 40, 40]], [[60, 20, 120, 90]]], np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    exists, valid, size = np.ones((2, len(anchors)), bool), np.ones((2, 1), bool), np.array([[96, 128]] * 2)
    rules = dataclasses.replace(RULES, batch_size_per_im=64)

    def label(anchors, images):
        there = Anchors([anchors], [exists[images]])
        return compiled(there, truth(boxes[images], valid[images]), keys[images], size=size[images], rules=rules)

    together, own = label(anchors, np.s_[:]), label(np.stack([anchors, anchors]), np.s_[:])
    for image in (0, 1):
        alone = label(anchors, np.s_[image : image + 1])
        for found in (together, own):
            np.testing.assert_array_equal(found.labels[image], alone.labels[0])
            np.testing.assert_allclose(found.deltas[image], alone.deltas[0], atol=1e-6)
