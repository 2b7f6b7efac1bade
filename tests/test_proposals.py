"""Golden files: rpn_proposals, and the RoIs of model_r50fpn_outputs."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from views import at_scale

from diou_jax.detection.anchors import cell_anchors, grid_anchors
from diou_jax.detection.proposals import propose
from diou_jax.detection.rules import ProposalRules
from diou_jax.overlaps import pairwise_iou
from diou_jax.structures import Anchors

LEVELS = range(2, 7)
SETTINGS = {
    "TRAIN": {"pre_nms_top_n": 2000, "post_nms_top_n": 2000, "collect_top_n": 2000},
    "TEST": {"pre_nms_top_n": 1000, "post_nms_top_n": 1000, "collect_top_n": 1000},
}

compiled = jax.jit(propose, static_argnames=("rules", "per_image", "edges"))


def rpn_outputs(data):
    logits, deltas, anchors = [], [], []
    for level in LEVELS:
        batch, _, height, width = data[f"rpn_cls_logits_fpn{level}"].shape
        logits.append(data[f"rpn_cls_logits_fpn{level}"].transpose(0, 2, 3, 1).reshape(batch, -1))
        deltas.append(data[f"rpn_bbox_pred_fpn{level}"].transpose(0, 2, 3, 1).reshape(batch, -1, 4))
        cell = cell_anchors(stride=2**level, size=8 * 2**level, aspect_ratios=(0.5, 1.0, 2.0))
        anchors.append(grid_anchors(height, width, stride=2**level, cell=cell))
    return logits, deltas, anchors, [np.ones(x.shape, bool) for x in logits]


def call(outputs, info, **options):
    flags = {name: options.pop(name, False) for name in ("per_image", "edges")}
    rules = ProposalRules(**{"nms_thresh": 0.7, "min_size": 0, **SETTINGS["TEST"], **options})
    logits, deltas, anchors, exists = outputs
    where = {"limit": info[:, :2], "placement": at_scale(info[:, 2])}
    found = compiled((logits, deltas), Anchors(anchors, exists), **where, rules=rules, **flags)
    return jax.tree.map(np.asarray, found)


def one_image(outputs, image):
    logits, deltas, anchors, exists = outputs
    pick = slice(image, image + 1)
    return [x[pick] for x in logits], [x[pick] for x in deltas], anchors, [x[pick] for x in exists]


def by_score(boxes, scores):
    """Rows of box and score, in an order that does not depend on how equal scores lie."""
    rows = np.column_stack([boxes, scores])
    return rows[np.lexsort((*np.round(rows[:, :4].T, 2), -rows[:, 4]))]


@pytest.mark.parametrize("mode", ["TRAIN", "TEST"])
def test_the_proposals_of_all_levels_equal_the_original(golden, mode):
    data = golden("rpn_proposals.npz")
    ours = call(rpn_outputs(data), data["im_info"], **SETTINGS[mode] | {"collect_top_n": 10**6})
    theirs = np.concatenate([data[f"{mode}/rois_fpn{level}"] for level in LEVELS])
    scores = np.concatenate([data[f"{mode}/probs_fpn{level}"] for level in LEVELS])[:, 0]
    for image in (0, 1):
        mask, valid = theirs[:, 0] == image, ours.valid[image]
        wanted = by_score(theirs[mask, 1:], scores[mask])
        actual = by_score(ours.boxes[image, valid], ours.scores[image, valid])
        assert actual.shape == wanted.shape
        np.testing.assert_allclose(actual[:, 4], wanted[:, 4], atol=1e-6)
        np.testing.assert_allclose(actual[:, :4], wanted[:, :4], atol=2e-4)


@pytest.mark.parametrize("mode", ["TRAIN", "TEST"])
def test_collecting_over_the_minibatch_equals_the_original(golden, mode):
    data = golden("rpn_proposals.npz")
    ours = call(rpn_outputs(data), data["im_info"], **SETTINGS[mode])
    theirs = data[f"{mode}/collected_rois"]
    assert ours.valid.sum() == len(theirs) == SETTINGS[mode]["collect_top_n"]
    for image in (0, 1):
        wanted = theirs[theirs[:, 0] == image, 1:]
        np.testing.assert_allclose(ours.boxes[image, ours.valid[image]], wanted, atol=2e-4)


def test_the_rois_of_a_photo_equal_the_original(golden):
    data = golden("model_r50fpn_outputs.npz")
    ours = call(rpn_outputs(data), data["im_info"])
    assert ours.valid.all()
    np.testing.assert_allclose(
        by_score(ours.boxes[0], np.zeros(1000)), by_score(data["rois"][:, 1:], np.zeros(1000)), atol=1e-3
    )


@pytest.mark.slow
def test_an_image_alone_is_proposed_what_it_is_proposed_in_company(golden):
    data = golden("rpn_proposals.npz")
    outputs = rpn_outputs(data)
    together = call(outputs, data["im_info"], per_image=True)
    for image in (0, 1):
        alone = call(one_image(outputs, image), data["im_info"][image : image + 1], per_image=True)
        np.testing.assert_array_equal(together.valid[image], alone.valid[0])
        np.testing.assert_array_equal(together.boxes[image], alone.boxes[0])
        assert alone.valid.sum() == 1000


def row_of_anchors(count, side=10):
    """Anchors that do not touch, of one image, whose size and scale come with them."""
    left = np.arange(count) * 2 * side
    anchors = np.stack([left, np.zeros(count), left + side - 1, np.full(count, side - 1)], 1).astype(np.float32)
    return anchors, np.array([[side, 2 * side * count, 1]], np.float32)


def test_the_best_by_probability_are_kept_and_equals_by_place():
    """Logits of 20 and 30 are the same probability in float32: the original cannot tell them apart, nor may we."""
    anchors, info = row_of_anchors(8)
    logits = np.array([[20, 30, -1, 25, 0, 40, 90, 1]], np.float32)
    outputs = ([logits], [np.zeros((1, 8, 4), np.float32)], [anchors], [np.ones((1, 8), bool)])
    ours = call(outputs, info, pre_nms_top_n=3)
    np.testing.assert_array_equal(ours.boxes[0], anchors[[0, 1, 3]])
    assert (ours.scores[0] == 1).all()
    ours = call(outputs, info)
    np.testing.assert_array_equal(ours.boxes[0], anchors[[0, 1, 3, 5, 6, 7, 4, 2]])


@pytest.mark.slow
def test_limits_before_and_after_suppression_hold_for_each_level():
    anchors, info = row_of_anchors(6)
    twice = np.concatenate([anchors, anchors])
    logits = np.linspace(3, -3, 12, dtype=np.float32)[None]
    deltas, exists = np.zeros((1, 12, 4), np.float32), np.ones((1, 12), bool)
    outputs = ([logits, logits - 9], [deltas] * 2, [twice] * 2, [exists] * 2)
    assert call(outputs, info).valid.sum() == 6 + 6, "levels do not suppress each other"
    assert call(outputs, info, pre_nms_top_n=5).valid.sum() == 5 + 5
    limited = call(outputs, info, post_nms_top_n=2)
    assert limited.valid.shape == (1, 4) and limited.valid.all()
    np.testing.assert_array_equal(limited.boxes[0], anchors[[0, 1, 0, 1]])


def test_anchors_that_do_not_exist_and_outputs_that_are_not_numbers_are_never_proposed():
    anchors, info = row_of_anchors(16)
    logits = np.linspace(-2, 2, 16, dtype=np.float32)[None]
    deltas = np.zeros((1, 16, 4), np.float32)
    exists = np.arange(16)[None] < 12
    logits[0, 3], deltas[0, 5, 2], deltas[0, 6] = np.nan, np.nan, np.inf
    ours = call(([logits], [deltas], [anchors], [exists]), info)
    assert np.isfinite(ours.boxes).all() and np.isfinite(ours.scores).all()
    assert ours.valid.sum() == 12 - 2, "an infinite shift is clipped to the border"
    assert ours.scores.max() < 1 / (1 + np.exp(-logits[0, 12]))
    assert call(([logits], [deltas], [anchors], [exists]), info, pre_nms_top_n=1).valid.all()
    nothing = call(([logits], [deltas], [anchors], [np.zeros((1, 16), bool)]), info)
    assert not nothing.valid.any() and (nothing.boxes == 0).all() and (nothing.scores == 0).all()


@pytest.mark.parametrize("edges", [False, True])
def test_min_size_is_in_pixels_of_the_original_image(edges):
    anchors = [np.array([[0, 0, 9, 9], [30, 30, 49, 49], [30, 0, 49, 9], [0, 30, 9, 49]], np.float32)]
    logits = np.array([[1, 0, -1, -2]], np.float32)
    outputs = ([logits], [np.zeros((1, 4, 4), np.float32)], anchors, [np.ones((1, 4), bool)])
    sides = {1: {10: 4, 10.5: 1, 15: 1, 20: 1, 20.5: 0}, 0.5: {15: 4, 19: 4, 20.5: 1, 39: 1, 40.5: 0}, 2: {15: 0, 5: 4}}
    for scale, counts in sides.items():
        info = np.array([[64, 64, scale]], np.float32)
        for side, kept in counts.items():
            found = call(outputs, info, min_size=side, edges=edges)
            assert found.valid.sum() == kept, (scale, side)
            if kept == 1:
                np.testing.assert_allclose(found.boxes[found.valid], anchors[0][1:2], atol=1e-4)
            # A box that is too small takes no place from others.
            assert call(outputs, info, min_size=side, edges=edges, post_nms_top_n=1).valid.sum() == min(kept, 1)


def test_by_edges_a_box_outside_the_image_has_no_area():
    """The clipped box of a pixel that is left otherwise has its centre in the image."""
    anchors = [np.array([[70, 10, 89, 29], [10, -30, 29, -11], [10, 10, 29, 29]], np.float32)]
    outputs = ([np.zeros((1, 3), np.float32)], [np.zeros((1, 3, 4), np.float32)], anchors, [np.ones((1, 3), bool)])
    found = call(outputs, np.array([[64, 64, 1]], np.float32), edges=True)
    np.testing.assert_allclose(found.boxes[found.valid], anchors[0][2:], atol=1e-4)


def test_no_gradient_passes():
    anchors, info = row_of_anchors(4)

    def total(logits, deltas):
        there = Anchors([anchors], [np.ones((1, 4), bool)])
        found = propose(([logits], [deltas]), there, info[:, :2], placement=at_scale(info[:, 2]), rules=rules)
        return found.boxes.sum() + found.scores.sum()

    rules = ProposalRules(nms_thresh=0.7, min_size=0, **SETTINGS["TEST"])
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.zeros((1, 4)), jnp.ones((1, 4, 4)))
    assert all((gradient == 0).all() for gradient in gradients)


@functools.cache
def small_levels():
    sizes = ((8, 6, 8), (16, 3, 4))
    return [
        grid_anchors(h, w, stride=s, cell=cell_anchors(stride=s, size=3 * s, aspect_ratios=(1.0,))) for s, h, w in sizes
    ]


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 30.0]))
def test_proposals_are_ordered_lie_in_their_image_and_are_the_best_of_the_minibatch(seed, spread):
    """`spread` of the logits: all equal, distinct, or mostly saturated."""
    rng = np.random.default_rng(seed)
    anchors = small_levels()
    logits = [(spread * rng.standard_normal((2, len(a)))).astype(np.float32) for a in anchors]
    deltas = [rng.standard_normal((2, len(a), 4)).astype(np.float32) for a in anchors]
    exists = [rng.random((2, len(a))) < 0.9 for a in anchors]
    info = np.array([[40, 60, 0.5], [48, 50, 2]], np.float32)
    options = {"pre_nms_top_n": 20, "post_nms_top_n": 15}
    every = call((logits, deltas, anchors, exists), info, collect_top_n=30, per_image=True, **options)
    joint = call((logits, deltas, anchors, exists), info, collect_top_n=16, **options)

    for found in (every, joint):
        assert np.isfinite(found.boxes).all()
        assert (np.diff(found.scores, axis=1) <= 0).all()
        for image, (height, width, _) in enumerate(info):
            boxes = found.boxes[image, found.valid[image]]
            assert (boxes >= 0).all() and (boxes[:, 2:] <= [width - 1, height - 1]).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= -1e-3).all()
    assert joint.valid.sum() == min(16, every.valid.sum())
    best = np.sort(every.scores[every.valid])[::-1][:16]
    np.testing.assert_array_equal(np.sort(joint.scores[joint.valid])[::-1], best)


def test_proposals_of_a_level_do_not_overlap_much():
    rng = np.random.default_rng(0)
    anchors = small_levels()[:1]
    outputs = (
        [rng.standard_normal((1, 48)).astype(np.float32)],
        [0.2 * rng.standard_normal((1, 48, 4)).astype(np.float32)],
        anchors,
        [np.ones((1, 48), bool)],
    )
    ours = call(outputs, np.array([[48, 64, 1]], np.float32), nms_thresh=0.3)
    boxes = ours.boxes[0, ours.valid[0]]
    overlaps = np.asarray(pairwise_iou(boxes, boxes))
    assert 5 < len(boxes) < 48
    assert (overlaps[~np.eye(len(boxes), dtype=bool)] < 0.3).all()
