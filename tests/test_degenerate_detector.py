"""Degenerate inputs of the parts of the detector: whatever the boxes, scores and outputs, results are sound."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import slow
from hostile import DTYPES, HEAD, ROUNDING, hostile_boxes, inclusive_iou
from hypothesis import example, given, settings
from hypothesis import strategies as st
from views import at_scale

from diou_jax.configs import base
from diou_jax.detection.anchor_targets import anchor_targets
from diou_jax.detection.anchors import cell_anchors, grid_anchors
from diou_jax.detection.proposals import propose
from diou_jax.detection.roi_sampling import sample_rois
from diou_jax.detection.rules import (
    AnchorRules,
    BoxVoteRules,
    DetectionRules,
    ProposalRules,
    RoiRules,
    SoftNmsRules,
    Thresholds,
)
from diou_jax.devices import replicate, to_devices
from diou_jax.kernels import nms as kernel
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.structures import Anchors, GroundTruth, Proposals, blank_batch
from diou_jax.training.step import make_train_step

nms = jax.jit(kernel.nms, static_argnames=("overlap", "beta"))


def nms_overlaps(boxes, overlap):
    """Of every box with every other as `nms` defines it, float64; NaN where either is not finite."""
    boxes = np.where(np.isfinite(boxes), np.float64(boxes), np.nan)
    value = np.where(np.isnan(boxes).any(1) | np.isnan(boxes).any(1)[:, None], np.nan, inclusive_iou(boxes, boxes))
    if overlap == "diou":
        a, b = boxes[:, None], boxes[None]
        across = np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])
        diagonal = (across**2).sum(-1)
        distance = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) ** 2).sum(-1) / 4
        value = value - np.where(diagonal > 0, distance / np.where(diagonal > 0, diagonal, 1), 0)
    return value


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["iou", "diou"]))
@example(753, 0.0, "iou")  # two equal boxes, 9e-9 pixels wide
def test_suppression_of_hostile_boxes(seed, threshold, overlap):
    rng = np.random.default_rng(seed)
    count = 300
    boxes = hostile_boxes(rng, count)
    # In float32 a side this short may be none, and a box without area suppresses nothing.
    with np.errstate(invalid="ignore"):  # infinity less infinity
        sides = np.abs(np.float64(boxes[:, 2:]) - boxes[:, :2] + 1)
    boxes = np.where((sides < 1e-6).any(1, keepdims=True), np.nan, boxes).astype(np.float32)
    if threshold == 0:  # which the IoU with an infinite box, 0, attains
        boxes = np.where(np.isinf(boxes), np.nan, boxes)
    scores = rng.choice([0.0, -1.0, 0.5, 1e8, -1e8, np.inf, -np.inf, np.nan], count).astype(np.float32)
    keep = np.asarray(nms(boxes, scores, threshold, overlap=overlap))
    assert not keep[np.isnan(scores)].any()
    value = nms_overlaps(boxes, overlap)
    index = np.arange(count)
    earlier = (scores[:, None] > scores) | ((scores[:, None] == scores) & (index[:, None] < index))
    assert not ((value > threshold + ROUNDING) & earlier)[keep][:, keep].any()
    suppressed = ((value >= threshold - ROUNDING) & earlier)[keep].any(0)
    assert (keep | suppressed | np.isnan(scores)).all()

    # As if boxes that are not finite had not been there.
    finite = np.isfinite(boxes).all(1)
    without = nms(boxes, scores, threshold, valid=finite, overlap=overlap)
    np.testing.assert_array_equal(keep[finite], np.asarray(without)[finite])


@pytest.mark.parametrize("overlap", ["iou", "diou"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_suppression_at_the_ends_of_the_threshold(overlap, dtype):
    rng = np.random.default_rng(5)
    low = rng.uniform(0, 500, (50, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 90, (50, 2))], 1)
    boxes = jnp.asarray(np.tile(boxes, (6, 1)), dtype)
    scores = jnp.ones(300, dtype)
    first = np.arange(300) < 50
    at_one = nms(boxes, scores, 1.0, overlap=overlap)
    np.testing.assert_array_equal(at_one, first)
    at_zero = np.asarray(nms(boxes, scores, 0.0, overlap=overlap))
    assert at_zero[0] and not at_zero[~first].any()
    if overlap == "iou":
        assert at_zero.sum() == 1, "any IoU is at least 0"


ODDITIES = [0.0, 1.0, -1.0, 1e4, -1e4, np.inf, -np.inf, np.nan]
ANCHORS = [
    grid_anchors(6, 8, stride=stride, cell=cell_anchors(stride=stride, size=2 * stride, aspect_ratios=(0.5, 1.0, 2.0)))
    for stride in (16, 32)
]
PROPOSAL_RULES = ProposalRules(pre_nms_top_n=60, post_nms_top_n=40, nms_thresh=0.7, min_size=0, collect_top_n=50)
DETECTION_RULES = DetectionRules(Thresholds(score=0.05, nms=0.5), diou_nms=True, beta1=0.9, detections_per_im=30)
BOX_HEAD = build.heads(base.get_config(), 4)[0]


@jax.jit
def compiled_propose(logits, deltas, exists):
    placement = at_scale(np.ones(len(LIMIT)))
    return propose((logits, deltas), Anchors(ANCHORS, exists), LIMIT, placement=placement, rules=PROPOSAL_RULES)


SUPPRESSION = {
    "greedy": {},
    "soft": {"soft_nms": SoftNmsRules(method="gaussian", sigma=0.5, beta1=0.8)},
    "vote": {"bbox_vote": BoxVoteRules(vote_th=0.5, scoring_method="TEMP_AVG", scoring_method_beta=2.0)},
}
SUPPRESSION["both"] = SUPPRESSION["soft"] | SUPPRESSION["vote"]


@functools.partial(jax.jit, static_argnames="suppression")
def compiled_detect(rois, valid, scores, deltas, scale, suppression):
    found = Proposals(rois, jnp.zeros(valid.shape), valid)
    batch = blank_batch(len(rois), 32, 32).replace(placement=at_scale(scale), original_size=LIMIT)
    rules = dataclasses.replace(DETECTION_RULES, **SUPPRESSION[suppression])
    head = dataclasses.replace(BOX_HEAD, detection=rules)
    return head.select((scores, deltas), found, batch, thresholds=rules.thresholds)


LIMIT = np.array([[96, 128], [60, 70]])


def oddities(rng, shape, *, share=0.5):
    return np.where(rng.random(shape) < share, rng.choice(ODDITIES, shape), rng.normal(size=shape)).astype(np.float32)


def assert_sound(boxes, scores, valid, limit):
    """Boxes within the image, by descending score; zeros where they are not valid."""
    assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= np.tile(limit[:, None, ::-1] - 1, 2)).all()
    assert (scores >= 0).all() and (scores <= 1).all() and (np.diff(np.where(valid, scores, -1)) <= 0).all()
    assert (boxes[~valid] == 0).all() and (scores[~valid] == 0).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_proposals_from_any_outputs(seed):
    rng = np.random.default_rng(seed)
    logits = [oddities(rng, (2, len(anchors))) for anchors in ANCHORS]
    deltas = [oddities(rng, (2, len(anchors), 4), share=0.2) for anchors in ANCHORS]
    exists = [rng.random(x.shape) < rng.choice([0.0, 0.5, 1.0], (2, 1)) for x in logits]
    found = jax.tree.map(np.asarray, compiled_propose(logits, deltas, exists))
    assert_sound(found.boxes, found.scores, found.valid, LIMIT)
    assert not found.valid[~np.concatenate(exists, 1).any(1)].any()
    assert (found.boxes[..., 2:] >= found.boxes[..., :2]).all(), "a pixel or more"


@pytest.mark.parametrize("suppression", ["greedy", *map(slow, ("soft", "vote", "both"))])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_detections_from_any_outputs(suppression, seed):
    rng = np.random.default_rng(seed)
    rois = np.sort(rng.uniform(0, 60, (2, 2, 40, 2)), 0).transpose(1, 2, 0, 3).reshape(2, 40, 4).astype(np.float32)
    valid = rng.random((2, 40)) < 0.8
    scores = rng.choice([0.0, 0.05, 0.5, 1.0, np.nan], (2, 40, 4)).astype(np.float32)
    deltas = oddities(rng, (2, 40, 4, 4), share=0.2)
    found = compiled_detect(rois, valid, scores, deltas, np.array([0.5, 2.0], np.float32), suppression)
    found = jax.tree.map(np.asarray, found)
    assert_sound(found.boxes, found.scores, found.valid, LIMIT)
    assert (found.scores[found.valid] > (0.05 if suppression == "greedy" else 0)).all()
    assert (found.classes[found.valid] >= 1).all() and (found.classes <= 3).all() and (found.classes >= 0).all()


def test_equal_scores_go_by_index_and_low_ones_nowhere():
    logits = [np.zeros((2, len(anchors)), np.float32) for anchors in ANCHORS]
    deltas = [np.zeros((2, len(anchors), 4), np.float32) for anchors in ANCHORS]
    exists = [np.ones(x.shape, bool) for x in logits]
    found = compiled_propose(logits, deltas, exists)
    np.testing.assert_array_equal(found.boxes[0, 0], np.clip(ANCHORS[0][0], 0, [127, 95, 127, 95]))
    assert (np.asarray(found.scores)[found.valid] == 0.5).all()

    rois, valid = np.zeros((2, 40, 4), np.float32), np.zeros((2, 40), bool)
    rois[0, :3], valid[0, :3] = [[10, 10, 20, 20], [10, 10, 20, 20], [50, 50, 60, 60]], True
    for score, wanted in ((0.25, [1, 1, 2, 2, 3, 3]), (0.05, [])):
        scores, deltas = np.full((2, 40, 4), score, np.float32), np.zeros((2, 40, 4, 4), np.float32)
        found = compiled_detect(rois, valid, scores, deltas, np.ones(2, np.float32), "greedy")
        np.testing.assert_array_equal(np.asarray(found.classes)[found.valid], wanted)
        boxes = np.tile(rois[0, [0, 2]], (len(wanted) // 2, 1))
        np.testing.assert_array_equal(np.asarray(found.boxes)[found.valid], boxes)


ANCHOR_RULES = AnchorRules(
    batch_size_per_im=64, fg_fraction=0.5, positive_overlap=0.7, negative_overlap=0.3, straddle_thresh=-1
)
ROI_RULES = RoiRules(
    batch_size_per_im=32,
    fg_fraction=0.25,
    fg_thresh=0.5,
    bg_thresh_hi=0.5,
    bg_thresh_lo=0.0,
    crowd_filter_thresh=0.7,
)


@jax.jit
def compiled_anchor_targets(gt, key):
    exists = [jnp.ones((1, len(anchors)), bool) for anchors in ANCHORS]
    return anchor_targets(Anchors(ANCHORS, exists), gt, key[None], size=LIMIT[:1], rules=ANCHOR_RULES)


@jax.jit
def compiled_sample_rois(proposals, gt, key):
    samples = sample_rois(proposals, gt, key[None], placement=at_scale([1]), rules=ROI_RULES)
    return samples, BOX_HEAD.targets(samples, gt)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_targets_of_any_ground_truth(seed, share):
    """Boxes from a fraction of a pixel to 1e8, inside out or beside the image; those not valid may be anything."""
    rng = np.random.default_rng(seed)
    count = 20
    boxes = hostile_boxes(rng, count)
    finite = np.isfinite(boxes).all(1)
    valid = finite & (rng.random(count) < share)
    crowd = rng.random(count) < 0.2
    key = jax.random.key(seed % 1000)
    classes = rng.integers(1, 5, count).astype(np.int32)
    gt = jax.tree.map(lambda x: x[None], GroundTruth(boxes, classes, crowd, valid))
    targets = compiled_anchor_targets(gt, key)
    labels, deltas = np.asarray(targets.labels[0]), np.asarray(targets.deltas[0], np.float64)
    assert (labels >= 0).sum() <= 64 and (labels == 1).sum() <= 32 and labels.min() >= -1 and labels.max() <= 1
    assert (deltas[labels != 1] == 0).all()
    # They overlap, so their centres are at most half of both sides apart.
    assert (np.abs(deltas[:, :2]) <= (1 + np.exp(deltas[:, 2:])) / 2 * (1 + ROUNDING)).all()

    proposals = hostile_boxes(rng, 60)
    proposals = np.clip(np.nan_to_num(np.concatenate([proposals[:, :2], proposals[:, :2] + 9], 1)), -1e8, 1e8)
    proposals[:10] = boxes[rng.integers(0, count, 10)] + rng.normal(size=(10, 4))
    proposals = proposals.astype(np.float32)
    exists = np.isfinite(proposals).all(1) & (rng.random(60) < 0.9)
    proposals = Proposals(proposals[None], np.zeros((1, 60), np.float32), exists[None])
    sampled, deltas = compiled_sample_rois(proposals, gt, key)
    rois, labels, deltas, drawn = (np.asarray(x[0]) for x in (sampled.rois, sampled.labels, deltas, sampled.valid))
    assert np.isfinite(rois).all() and (labels > 0).sum() <= 8
    assert (labels[~drawn] == 0).all() and (rois[~drawn] == 0).all() and (deltas[labels == 0] == 0).all()
    # From IoU 1/2 on, sides differ by 2 at most, and centres by half a side of the RoI.
    assert (np.abs(deltas) <= np.array(HEAD) * [0.5, 0.5, math.log(2), math.log(2)] * (1 + ROUNDING)).all()
    if not valid.any():
        assert not (np.asarray(targets.labels) == 1).any() and not labels.any()


@pytest.mark.slow
def test_devices_without_objects(tiny_config):
    """The whole step, by an optimiser that turns gradients into differences of parameters."""
    config = tiny_config()
    rule = build.rule(config)
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    batch, _ = build.train_reader(config, data, rule.batch)(0)
    optimizer = optax.sgd(1.0)
    step = make_train_step(detector, optimizer, seed=0, iter_size=1, log_every=1)
    variables = jax.device_get(detector.network.init_variables(jax.random.key(0)))

    def differences(batch):
        state = create_state(variables, optimizer, detector.loss_names)
        state, metrics = step(replicate(state), next(to_devices([batch], ahead=0)))
        metrics = {name: float(value) for name, value in metrics.items()}
        assert all(np.isfinite(value) for value in metrics.values())
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(state.params), variables["params"])
        moved = {"/".join(key.key for key in path): x for path, x in jax.tree_util.tree_leaves_with_path(moved)}
        assert all(np.isfinite(x) for x in moved.values())
        return metrics, moved

    def with_truth(**changes):
        return batch.replace(gt=batch.gt.replace(**changes))

    with_objects, moved = differences(batch)
    learning = {name for name, x in moved.items() if x > 0}
    boxes = {f"{head}/deltas/{leaf}" for head in ("rpn", "box_head") for leaf in ("kernel", "bias")}
    assert with_objects["loss_bbox"] > 0 and boxes < learning

    none = with_truth(valid=np.zeros_like(batch.gt.valid))
    metrics, moved = differences(none)
    for name in ("loss_rpn_bbox", "loss_bbox", "bbox_sl1", "bbox_iou", "bbox_giou"):
        assert metrics[name] == 0
    assert metrics["loss_rpn_cls"] > 0 and metrics["loss_cls"] > 0
    learning_without = {name for name, x in moved.items() if x > 0}
    assert {"rpn/logits/kernel", "box_head/logits/kernel"} < learning_without <= learning - boxes

    half = with_truth(valid=batch.gt.valid & (np.arange(len(batch.gt.valid)) == 0)[:, None])
    metrics, moved = differences(half)
    assert 0 < metrics["loss_bbox"] < with_objects["loss_bbox"]
    assert all(moved[name] > 0 for name in boxes)

    only_crowds = with_truth(crowd=np.ones_like(batch.gt.crowd))
    assert differences(only_crowds)[0]["loss_rpn_bbox"] == 0
    hostile = hostile_boxes(np.random.default_rng(6), batch.gt.valid.size).reshape(batch.gt.boxes.shape)
    differences(with_truth(boxes=np.where(np.isfinite(hostile), hostile, 0), valid=np.ones_like(batch.gt.valid)))
    differences(batch.replace(image=np.zeros_like(batch.image)))
