"""Golden files: postproc, and the final detections of model_r50fpn_outputs."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from conftest import slow
from views import at_scale

from diou_jax.configs import base
from diou_jax.detection.box_vote import SCORING_METHODS, box_vote
from diou_jax.detection.detections import suppress
from diou_jax.detection.rules import BoxVoteRules, DetectionRules, SoftNmsRules, Thresholds
from diou_jax.detection.soft_nms import soft_nms
from diou_jax.kernels.nms import nms
from diou_jax.options import build
from diou_jax.structures import Proposals, blank_batch

VARIANTS = {"greedy": (False, 1.0), "diou_b1.0": (True, 1.0), "diou_b0.9": (True, 0.9)}


RULES = DetectionRules(Thresholds(score=0.05, nms=0.5), diou_nms=True, beta1=1.0, detections_per_im=100)
HEAD = build.heads(base.get_config(), 81)[0]


@functools.partial(jax.jit, static_argnames="rules")
def compiled(found, outputs, batch, thresholds, rules):
    return dataclasses.replace(HEAD, detection=rules).select(outputs, found, batch, thresholds=thresholds)


@functools.partial(jax.jit, static_argnames=("nms_thresh", "rules"))
def jitted_suppress(boxes, scores, nms_thresh, rules):
    candidate = np.ones(scores.shape, bool)
    return suppress(boxes, scores, candidate, thresholds=Thresholds(0.05, nms_thresh), rules=rules)


def call(rois, scores, deltas, *, valid=None, scale=1.0, size=(100, 100), score_thresh=0.05, **rules):
    """The box head's detections in images of one size and scale."""
    images = len(rois)
    valid = np.ones(rois.shape[:2], bool) if valid is None else valid
    found = Proposals(rois.astype(np.float32), np.zeros(valid.shape, np.float32), valid)
    batch = blank_batch(images, *size).replace(placement=at_scale(np.full(images, scale)))
    outputs = scores.astype(np.float32), deltas.astype(np.float32)
    thresholds = Thresholds(np.float32(score_thresh), np.float32(0.5))
    found = compiled(found, outputs, batch, thresholds, dataclasses.replace(RULES, **rules))
    return jax.tree.map(np.asarray, found)


def from_original(scores, boxes, *, variant, limit, nms_thresh=0.5):
    """The original's (R, K) scores and (R, 4K) boxes through `suppress`, as rows of class, box, score."""
    count, classes = scores.shape
    boxes = boxes.reshape(count, classes, 4).transpose(1, 0, 2)[None, 1:]
    diou, beta = VARIANTS[variant]
    rules = dataclasses.replace(RULES, diou_nms=diou, beta1=beta, detections_per_im=limit)
    return rows(jitted_suppress(boxes, scores.T[None, 1:], nms_thresh, rules))


def rows(found, image=0):
    valid = np.asarray(found.valid[image])
    return np.column_stack([found.classes[image], found.boxes[image], found.scores[image]])[valid]


def ordered(rows):
    return rows[np.lexsort((*np.round(rows[:, 1:5].T, 2), -rows[:, 5], rows[:, 0]))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_detections_equal_the_original(golden, variant):
    data = golden("postproc.npz")
    ours = from_original(data["a/scores"], data["a/boxes"], variant=variant, limit=100)
    np.testing.assert_array_equal(ordered(ours), ordered(data[f"a/dets_{variant}"]))
    assert (np.diff(ours[:, 5]) <= 0).all(), "best first"


def test_another_limit(golden):
    data = golden("postproc.npz")
    ours = from_original(data["a/scores"], data["a/boxes"], variant="greedy", limit=20)
    np.testing.assert_array_equal(ordered(ours), ordered(data["a/dets_greedy_lim20"]))


@pytest.mark.parametrize(
    ("variant", "limit", "name"),
    [("greedy", 100, "greedy"), ("diou_b1.0", 100, "diou_b1.0"), ("greedy", 20, "greedy_lim20")],
)
def test_ties_at_the_limit_are_cut_by_class_then_roi(golden, variant, limit, name):
    """The original keeps every tie, 203 detections instead of 100; ours are its first ones in class and RoI order."""
    data = golden("postproc.npz")
    theirs = data[f"b_ties/dets_{name}"]
    ours = from_original(data["b_ties/scores"], data["b_ties/boxes"], variant=variant, limit=limit)
    assert len(theirs) > limit == len(ours)
    # The original lists a class's detections in RoI order, so a stable sort by score is the rule.
    wanted = theirs[np.argsort(-theirs[:, 5], kind="stable")][:limit]
    np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize(
    ("variant", "name", "limit", "nms_thresh"),
    [
        *((variant, variant, 100, 0.5) for variant in VARIANTS),
        *(slow(variant, f"{variant}_nolimit", 2000, 0.5) for variant in VARIANTS),
        *(slow(variant, f"{variant}_t0.3_lim300", 300, 0.3) for variant in VARIANTS),
    ],
)
def test_detections_in_a_photo_equal_the_original(golden, variant, name, limit, nms_thresh):
    data = golden("model_r50fpn_outputs.npz")
    theirs = ordered(data[f"dets_{name}"])
    ours = ordered(
        from_original(data["scores"], data["pred_boxes"], variant=variant, limit=limit, nms_thresh=nms_thresh)
    )
    assert len(ours) == len(theirs)
    np.testing.assert_array_equal(ours, theirs)


def test_decoding_equals_the_original(golden):
    data = golden("model_r50fpn_outputs.npz")
    found = call(
        data["rois"][None, :, 1:],
        data["scores"][None],
        data["bbox_pred"].reshape(1, 1000, -1, 4),
        scale=data["im_scale_f64"][0],
        size=data["im_shape"][:2],
    )
    ours, theirs = ordered(rows(found)), ordered(data["dets_diou_b1.0"])
    np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
    np.testing.assert_allclose(ours[:, 1:5], theirs[:, 1:5], atol=1e-3)
    np.testing.assert_array_equal(ours[:, 5], theirs[:, 5])


APART = np.array([[[0, 0, 9, 9], [50, 50, 69, 79], [20, 0, 39, 9]]])


def test_class_agnostic_boxes_are_shared_and_what_is_not_a_number_is_dropped():
    scores = np.array([[[0.1, 0.5, 0.4], [0.1, 0.2, 0.7], [0.0, np.nan, 1.0]]])
    deltas = np.zeros((1, 3, 1, 4))
    deltas[0, 2, 0, 0] = np.nan
    found = call(APART, scores, deltas, detections_per_im=10)
    first, second = APART[0, :2]
    wanted = [[2, *second, 0.7], [1, *first, 0.5], [2, *first, 0.4], [1, *second, 0.2]]
    np.testing.assert_array_equal(rows(found), np.array(wanted, np.float32))
    assert found.valid.shape == (1, 10)
    assert (found.boxes[0, 4:] == 0).all() and (found.scores[0, 4:] == 0).all() and (found.classes[0, 4:] == 0).all()


def test_each_class_has_its_own_box():
    deltas = np.zeros((1, 3, 3, 4))
    deltas[0, :, 1, 0], deltas[0, :, 2, 1] = 1.0, 2.0  # a tenth of the width to the right; a fifth of the height down
    found = call(APART, np.tile([0, 0.6, 0.4], (1, 3, 1)), deltas, score_thresh=0.5)
    np.testing.assert_allclose(found.boxes[0, :3], APART[0] + [[1, 0, 1, 0], [2, 0, 2, 0], [2, 0, 2, 0]], atol=1e-5)
    found = call(APART, np.tile([0, 0.4, 0.6], (1, 3, 1)), deltas, score_thresh=0.5)
    np.testing.assert_allclose(found.boxes[0, :3], APART[0] + [[0, 2, 0, 2], [0, 6, 0, 6], [0, 2, 0, 2]], atol=1e-5)


def test_equal_scores_come_by_class_then_roi():
    found = call(APART, np.full((1, 3, 3), 1 / 3), np.zeros((1, 3, 1, 4)), detections_per_im=5)
    np.testing.assert_array_equal(found.classes[0], [1, 1, 1, 2, 2])
    np.testing.assert_array_equal(found.boxes[0], APART[0, [0, 1, 2, 0, 1]])


def test_a_score_must_exceed_the_threshold_and_a_roi_be_valid():
    scores = np.array([[[0.95, 0.05], [0.9, 0.1], [0.8, 0.2]]])
    found = call(APART, scores, np.zeros((1, 3, 1, 4)), valid=np.array([[True, True, False]]))
    np.testing.assert_array_equal(rows(found), np.float32([[1, *APART[0, 1], 0.1]]))


def test_an_invalid_roi_suppresses_nothing():
    rois = np.tile(APART[:, :1], (1, 2, 1))
    scores = np.array([[[0.1, 0.9], [0.5, 0.5]]])
    found = call(rois, scores, np.zeros((1, 2, 1, 4)), valid=np.array([[False, True]]))
    np.testing.assert_array_equal(found.scores[0, found.valid[0]], [0.5])


def test_boxes_are_clipped_to_the_original_image():
    rois = np.array([[[-20, -20, 300, 90]]])
    found = call(rois, np.array([[[0.1, 0.9]]]), np.zeros((1, 1, 1, 4)), scale=0.5, size=(70, 90))
    np.testing.assert_array_equal(found.boxes[0, 0], [0, 0, 89, 69])


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 1.0]), st.booleans())
def test_detections_are_finite_ordered_and_those_of_each_image_alone(seed, spoilt, diou_nms):
    """`spoilt`: the share of scores, deltas and RoIs that are not numbers."""
    rng = np.random.default_rng(seed)

    def spoil(x):
        return np.where(rng.random(x.shape) < spoilt, np.nan, x)

    corner = rng.uniform(0, 60, (2, 12, 2))
    rois = spoil(np.concatenate([corner, corner + rng.uniform(5, 60, (2, 12, 2))], -1))
    scores = spoil(rng.dirichlet(np.ones(4), (2, 12)).round(1))  # with ties
    deltas = spoil(rng.standard_normal((2, 12, 4, 4)))
    valid = rng.random((2, 12)) < 0.8
    found = call(rois, scores, deltas, valid=valid, size=(80, 90), diou_nms=diou_nms, detections_per_im=20)
    assert all(np.isfinite(x).all() for x in (found.boxes, found.scores))
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert (np.diff(found.valid.astype(int), axis=1) <= 0).all()
    assert (found.scores[found.valid] > 0.05).all() and np.isin(found.classes[found.valid], [1, 2, 3]).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [89, 79, 89, 79]).all()
    if spoilt == 1:
        assert not found.valid.any()
    flipped = call(
        rois[::-1],
        scores[::-1],
        deltas[::-1],
        valid=valid[::-1],
        size=(80, 90),
        diou_nms=diou_nms,
        detections_per_im=20,
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), found, flipped)


def test_more_detections_than_rois_may_be_asked_for():
    found = call(APART, np.tile([0, 0.6, 0.4], (1, 3, 1)), np.zeros((1, 3, 1, 4)), detections_per_im=1000)
    assert found.valid.shape == (1, 1000)
    assert found.valid.sum() == 6


def test_votes_may_raise_a_box_above_the_limit_of_soft_nms():
    """By its own score the first box is the best, by the mean with its other voter the last one is."""
    boxes = np.float32([[0, 0, 19, 19], [1, 0, 20, 19], [50, 50, 69, 69]])
    soft, vote = SoftNmsRules(method="linear", sigma=0.5, beta1=1.0), BoxVoteRules(vote_th=0.8, scoring_method="AVG")
    rules = dataclasses.replace(RULES, soft_nms=soft, bbox_vote=vote, detections_per_im=1)
    found = rows(jitted_suppress(boxes[None, None], np.float32([[[0.9, 0.3, 0.8]]]), 0.5, rules))
    np.testing.assert_allclose(found, [[1, *boxes[2], 0.8]], rtol=1e-6)


alone = {
    "soft": jax.jit(soft_nms, static_argnames=("rules",)),
    "diou": jax.jit(functools.partial(nms, overlap="diou")),
    "vote": jax.jit(box_vote, static_argnames=("rules",)),
}


@pytest.mark.parametrize("soft", ["linear", slow("gaussian"), slow("")])
@pytest.mark.parametrize("scoring", [slow(""), SCORING_METHODS[0], *map(slow, SCORING_METHODS[1:])])
@pytest.mark.slow
def test_soft_nms_and_votes_act_on_each_class_before_the_limit(golden, soft, scoring):
    """As the original has them in its loop over classes, here one class after the other."""
    data = golden("postproc.npz")
    count, classes = data["a/scores"].shape
    boxes = data["a/boxes"].reshape(count, classes, 4).transpose(1, 0, 2)[1:]
    scores = data["a/scores"].T[1:]
    soft_rules = SoftNmsRules(method=soft, sigma=0.5, beta1=0.8) if soft else None
    vote_rules = BoxVoteRules(vote_th=0.6, scoring_method=scoring, scoring_method_beta=1.5) if scoring else None
    rules = dataclasses.replace(RULES, soft_nms=soft_rules, bbox_vote=vote_rules, detections_per_im=25)
    found = rows(jitted_suppress(boxes[None], scores[None], 0.5, rules))

    wanted = []
    for number, (own, score) in enumerate(zip(boxes, scores, strict=True), 1):
        candidate = score > 0.05
        if soft:
            left, keep = alone["soft"](own, score, 0.5, rules=soft_rules, valid=candidate)
        else:
            left, keep = score, alone["diou"](own, score, 0.5, valid=candidate)
        moved = own
        if scoring:
            moved, left = alone["vote"](own, score, left, valid=candidate, rules=vote_rules)
        keep = np.asarray(keep)
        wanted += [[number, *box, value] for box, value in zip(moved[keep], left[keep], strict=True)]
    wanted = np.float32(wanted)
    assert len(wanted) > 25
    wanted = wanted[np.argsort(-wanted[:, 5], kind="stable")][:25]
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-4)
