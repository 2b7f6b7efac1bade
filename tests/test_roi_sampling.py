"""Golden files: roi_labels, and the RoIs of model_train_outputs."""

import dataclasses
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from views import at_scale

from diou_jax.boxes import decode
from diou_jax.configs import base
from diou_jax.detection.roi_sampling import sample_rois
from diou_jax.detection.rules import RoiRules
from diou_jax.options import build
from diou_jax.structures import GroundTruth, Proposals

RULES = RoiRules(
    batch_size_per_im=512,
    fg_fraction=0.25,
    fg_thresh=0.5,
    bg_thresh_hi=0.5,
    bg_thresh_lo=0.0,
    crowd_filter_thresh=0.0,
)
HEAD = build.heads(base.get_config(), 81)[0]
ALL = {"batch_size_per_im": 2048, "fg_fraction": 0.5}  # room for every RoI: nothing is left to chance
CASES = [("a", "nofilter"), ("a", "filter0.7"), ("b_crowd", "nofilter"), ("b_crowd", "filter0.7")]


class Sampled(NamedTuple):
    rois: np.ndarray
    labels: np.ndarray
    deltas: np.ndarray
    valid: np.ndarray


def sample(proposals, gt, keys, *, rules):
    """RoIs at the scale of the original images, and the box head's targets."""
    samples = sample_rois(proposals, gt, keys, placement=at_scale(np.ones(len(keys))), rules=rules)
    return Sampled(samples.rois, samples.labels, HEAD.targets(samples, gt), samples.valid)


compiled = jax.jit(sample, static_argnames="rules")


def proposed(boxes, valid):
    return Proposals(boxes, np.zeros(valid.shape, np.float32), valid)


def call(rois, boxes, classes, crowd, seed=0, **rules):
    """With three rows of padding behind the boxes and five behind the RoIs, which would match if they counted."""
    count, padding = len(boxes), np.resize([*rois[:3], [60, 60, 80, 80]], (3, 4))
    proposals = proposed(
        np.concatenate([rois, np.resize(padding, (5, 4))]).astype(np.float32), np.arange(len(rois) + 5) < len(rois)
    )
    gt = GroundTruth(
        boxes=np.concatenate([boxes, padding]).astype(np.float32),
        classes=np.concatenate([classes, np.ones(3)]).astype(np.int32),
        crowd=np.concatenate([crowd, np.zeros(3)]).astype(bool),
        valid=np.arange(count + 3) < count,
    )
    proposals, gt, key = jax.tree.map(lambda x: x[None], (proposals, gt, jax.random.key(seed)))
    sampled = compiled(proposals, gt, key, rules=dataclasses.replace(RULES, **rules))
    return jax.tree.map(lambda x: np.asarray(x[0]), sampled)


def load(data, case):
    rois = data[f"{case}/rois"][:, 1:] * np.float32(1 / data[f"{case}/im_scale"].astype(np.float64))
    return rois, data[f"{case}/gt_boxes"], data[f"{case}/gt_classes"], data[f"{case}/is_crowd"]


def drawn(sampled):
    """The valid rows' RoIs, labels and deltas."""
    return sampled.rois[sampled.valid], sampled.labels[sampled.valid], sampled.deltas[sampled.valid]


def deltas_of_class(expanded, labels):
    """The original's (N, 4K) targets to (N, 4)."""
    return np.take_along_axis(expanded, 4 * labels[:, None] + np.arange(4), 1)


def ordered(rois, labels, deltas):
    """Rows in an order that does not depend on the draw."""
    order = np.lexsort((*np.round(rois, 2).T, labels))
    return rois[order], labels[order], deltas[order]


def assert_same(actual, wanted):
    for a, b, tolerance in zip(ordered(*actual), ordered(*wanted), (1e-3, 0, 1e-4), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_with_room_for_all_every_roi_gets_the_originals_label_and_deltas(golden, case, variant):
    data = golden("roi_labels.npz")
    ours = call(*load(data, case), crowd_filter_thresh={"nofilter": 0.0, "filter0.7": 0.7}[variant], **ALL)
    labels = data[f"{case}/{variant}/blob_labels_int32"]
    rois = data[f"{case}/{variant}/blob_rois"][:, 1:] / data[f"{case}/im_scale"]
    assert_same(drawn(ours), (rois, labels, deltas_of_class(data[f"{case}/{variant}/blob_bbox_targets"], labels)))


def test_a_sample_has_the_originals_size_and_its_rows_their_labels(golden):
    data = golden("roi_labels.npz")
    ours = call(*load(data, "a"), batch_size_per_im=64)
    theirs = data["a/real64/labels"]
    assert ours.valid.sum() == len(theirs) == 64
    assert (ours.labels > 0).sum() == (theirs > 0).sum() == 16
    assert (ours.labels[:16] > 0).all(), "objects come first"

    everything = call(*load(data, "a"), **ALL)
    label_of = {roi.tobytes(): label for roi, label in zip(*drawn(everything)[:2])}
    assert [label_of[roi.tobytes()] for roi in ours.rois] == ours.labels.tolist()
    assert len({roi.tobytes() for roi in ours.rois}) == 64, "no RoI is drawn twice"
    assert not np.array_equal(ours.rois, call(*load(data, "a"), batch_size_per_im=64, seed=1).rois)


def test_in_a_training_step_rois_get_the_originals_labels_and_deltas(golden):
    """Every object is taken, as there are fewer than 16; the background is drawn. Two objects are a crowd's."""
    data = golden("model_train_outputs.npz")
    scores, proposals = (
        np.concatenate([data[f"{name}_fpn{level}"] for level in range(2, 7)]) for name in ("rpn_rois_prob", "rpn_rois")
    )
    proposals = proposals[np.argsort(-scores[:, 0], kind="stable")[:500]]  # as the step collected them
    for image in (0, 1):
        scale = data["im_info"][image, 2]
        truth = [data[f"{name}_im{image}"] for name in ("gt_boxes", "gt_classes", "is_crowd")]
        rois = proposals[proposals[:, 0] == image, 1:] / scale
        mine = data["rois"][:, 0] == image
        labels = data["labels_int32"][mine]
        theirs = (data["rois"][mine, 1:] / scale, labels, deltas_of_class(data["bbox_targets"][mine], labels))

        ours = call(rois, *truth, batch_size_per_im=64)
        assert ours.valid.all()
        objects = labels > 0
        assert_same([x[ours.labels > 0] for x in drawn(ours)], [x[objects] for x in theirs])
        background = drawn(call(rois, *truth, **ALL))
        background = background[0][background[1] == 0]
        distance = np.abs(theirs[0][~objects][:, None] - background).max(-1).min(1)
        assert distance.max() < 1e-3


def test_a_proposal_on_a_crowd_is_an_object_of_its_class_and_a_crowd_is_never_drawn():
    boxes = np.array([[0, 0, 99, 99], [10, 10, 29, 29]])
    truth = (boxes, np.array([5, 2]), np.array([True, False]))
    proposals = np.array([[0, 0, 99, 89], [9, 9, 29, 29], [5, 50, 25, 70]])
    ours = call(proposals, *truth, batch_size_per_im=32)
    assert sorted(zip(ours.rois[ours.valid].tolist(), ours.labels[ours.valid])) == [
        ([0, 0, 99, 89], 5),
        ([5, 50, 25, 70], 0),
        ([9, 9, 29, 29], 2),
        ([10, 10, 29, 29], 2),
    ]
    # All three proposals lie within the crowd; the ground truth does as well and stays.
    filtered = call(proposals, *truth, batch_size_per_im=32, crowd_filter_thresh=0.7)
    assert filtered.rois[filtered.valid].tolist() == [[10, 10, 29, 29]]


def test_two_boxes_on_the_same_pixels_keep_their_classes():
    boxes = np.array([[10, 10, 50, 50], [10, 10, 50, 50]])
    ours = call(np.zeros((0, 4)), boxes, np.array([3, 4]), np.zeros(2), batch_size_per_im=32)
    assert sorted(ours.labels[ours.valid]) == [3, 4]
    np.testing.assert_allclose(ours.deltas, 0, atol=1e-6)


def test_the_band_of_background_is_closed_below_and_open_above():
    boxes, truth = np.array([[0, 0, 9, 9]]), (np.array([1]), np.array([False]))
    share = np.array([0, 1, 3, 5, 10]) / 10  # of the box's rows
    proposals = np.array([[0, 0, 9, 10 * s - 1] if s else [200, 200, 209, 209] for s in share])
    ours = call(proposals, boxes, *truth, bg_thresh_lo=0.1, batch_size_per_im=32)
    assert (ours.labels > 0).sum() == 3, "the box, and the proposals of 0.5 and 1"
    background = ours.rois[ours.valid & (ours.labels == 0)]
    assert sorted(background[:, 3].tolist()) == [0, 2]


def test_no_boxes_or_only_crowds_far_away_give_background():
    rois = np.random.default_rng(0).uniform(0, 100, (40, 4))
    rois[:, 2:] += rois[:, :2]
    nothing = call(rois, np.zeros((0, 4)), np.zeros(0), np.zeros(0), batch_size_per_im=64)
    crowd = call(rois, np.array([[500, 500, 600, 600]]), np.array([3]), np.array([True]), batch_size_per_im=64)
    for ours in (nothing, crowd):
        assert ours.valid.sum() == 40
        assert (ours.labels == 0).all() and (ours.deltas == 0).all()


def test_nothing_at_all_gives_nothing():
    ours = call(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0), np.zeros(0), batch_size_per_im=16)
    assert not ours.valid.any()
    assert (ours.rois == 0).all() and (ours.labels == 0).all()


def random_image(rng, objects, proposals):
    def some(count):
        corner = rng.uniform(0, 150, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(5, 100, (count, 2))], 1)

    boxes, classes, crowd = some(objects), rng.integers(1, 9, objects), rng.random(objects) < 0.3
    near = boxes[rng.integers(0, objects, proposals)] + rng.normal(0, 12, (proposals, 4)) if objects else boxes
    return np.concatenate([near, some(proposals - len(near))]), boxes, classes, crowd


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.integers(0, 10**6), st.sampled_from([0, 4]), st.sampled_from([0.0, 0.25, 1.0]))
def test_a_sample_is_within_its_limits_and_its_deltas_lead_to_boxes_of_its_class(seed, objects, fg_fraction):
    rois, boxes, classes, crowd = random_image(np.random.default_rng(seed), objects, 30)
    size = 16
    ours = call(rois, boxes, classes, crowd, seed, batch_size_per_im=size, fg_fraction=fg_fraction)
    found = (ours.labels > 0).sum()
    assert found <= round(fg_fraction * size)
    assert (np.diff(ours.valid.astype(int)) <= 0).all() and (ours.labels[~ours.valid] == 0).all()
    assert (ours.labels[:found] > 0).all()
    assert np.isin(ours.labels, [0, *classes]).all()
    assert np.isfinite(ours.deltas).all() and (ours.deltas[ours.labels == 0] == 0).all()
    reached = np.asarray(decode(ours.rois, ours.deltas, weights=HEAD.reg_weights))
    for box, label in zip(reached[:found], ours.labels[:found]):
        assert np.abs(boxes[classes == label] - box).max(1).min() < 1e-2
    # Crowds themselves are no RoIs.
    assert not (ours.rois[:, None] == boxes[crowd].astype(np.float32)).all(-1).any()


@pytest.mark.slow
def test_a_batch_of_images_equals_one_after_the_other_and_no_gradient_passes():
    rng = np.random.default_rng(1)
    images = [random_image(rng, 3, 20) for _ in range(2)]
    rois, boxes, classes, crowd = (np.stack(x).astype(d) for x, d in zip(zip(*images), ("f4", "f4", "i4", "?")))
    keys = jax.random.split(jax.random.key(0), 2)
    rules = dataclasses.replace(RULES, batch_size_per_im=16)
    gt, valid = GroundTruth(boxes, classes, crowd, np.ones((2, 3), bool)), np.ones((2, 20), bool)
    arguments = proposed(rois, valid), gt, keys
    together = compiled(*arguments, rules=rules)
    for image in (0, 1):
        alone = compiled(*jax.tree.map(lambda x, i=image: x[i : i + 1], arguments), rules=rules)
        jax.tree.map(lambda a, b, i=image: np.testing.assert_allclose(a[i], b[0], atol=1e-5), together, alone)

    def total(rois):
        return sum(x.astype(jnp.float32).sum() for x in sample(proposed(rois, valid), gt, keys, rules=rules))

    assert (jax.jit(jax.grad(total))(rois) == 0).all()
