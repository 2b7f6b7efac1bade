"""Golden file: nms (greedy and DIoU)."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering import lower_for_cuda, on_both_devices

from diou_jax.kernels import nms as kernel

# Compiled once for each shape and overlap, whatever the threshold.
nms = jax.jit(kernel.nms, static_argnames=("overlap", "beta"))


def oracle(boxes, scores, threshold, *, overlap="iou", beta=1.0):
    """One box after the other, float32, as the definition reads."""
    boxes, scores = np.float32(boxes), np.float32(scores)
    order = sorted((i for i in range(len(scores)) if not np.isnan(scores[i])), key=lambda i: (-scores[i], i))
    kept = []
    for j in order:
        a, b = boxes[kept], boxes[j]
        sides = np.maximum(np.minimum(a[:, 2:], b[2:]) - np.maximum(a[:, :2], b[:2]) + 1, 0)
        shared = sides[:, 0] * sides[:, 1]
        value = shared / ((a[:, 2:] - a[:, :2] + 1).prod(1) + (b[2:] - b[:2] + 1).prod() - shared)
        if overlap == "diou":
            diagonal = ((np.maximum(a[:, 2:], b[2:]) - np.minimum(a[:, :2], b[:2])) ** 2).sum(1)
            distance = (((a[:, :2] + a[:, 2:]) / 2 - (b[:2] + b[2:]) / 2) ** 2).sum(1)
            value -= np.where(diagonal > 0, distance / np.where(diagonal > 0, diagonal, 1), 0) ** np.float32(beta)
        if not (value >= threshold).any():
            kept.append(j)
    keep = np.zeros(len(scores), bool)
    keep[kept] = True
    return keep


def random_problem(rng, count, *, side=100, grid=None):
    corner = rng.uniform(0, side, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, side / 2, (count, 2))], 1)
    scores = rng.uniform(0, 1, count)
    if grid:
        boxes, scores = np.round(boxes / grid) * grid, np.round(scores, 1)
    return boxes.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize(
    ("boxes", "scores", "valid"),
    [((5, 4), (4,), None), ((5, 3), (5,), None), ((2, 5, 4), (5,), None), ((4,), (), None), ((5, 4), (5,), (1,))],
)
def test_shapes_that_do_not_belong_together_are_named(boxes, scores, valid):
    valid = None if valid is None else np.ones(valid, bool)
    with pytest.raises(ValueError, match=re.escape(str(scores))):
        inspect.unwrap(kernel.nms)(np.zeros(boxes, np.float32), np.zeros(scores, np.float32), 0.5, valid=valid)


@pytest.mark.parametrize("size", ["n1", slow("n17"), "n300", slow("n1000"), slow("n2000")])
def test_every_golden_case(golden, size):
    data = golden("nms.npz")
    dets = data[f"{size}/dets"]
    tried = 0
    for name, wanted in data.items():
        match = re.fullmatch(rf"{size}/keep_(nms|diounms)_t([\d.]+?)(?:_b([\d.]+))?", name)
        if not match:
            continue
        options = {"overlap": "diou", "beta": float(match[3])} if match[1] == "diounms" else {}
        keep = nms(dets[:, :4], dets[:, 4], float(match[2]), **options)
        np.testing.assert_array_equal(np.flatnonzero(keep), wanted, err_msg=name)
        tried += 1
    assert tried == 15


@pytest.mark.parametrize("count", [1, 2, slow(127), slow(128), 129, slow(300)])
@pytest.mark.parametrize("overlap", ["iou", "diou"])
def test_many_problems_with_ties_equal_one_box_after_the_other(count, overlap):
    """A coarse grid makes equal boxes, equal scores and overlaps at the threshold."""
    rng = np.random.default_rng(count)
    problems = [random_problem(rng, count, grid=4) for _ in range(6)]
    boxes, scores = (np.stack(part) for part in zip(*problems, strict=True))
    for threshold in (0.0, 0.25, 0.5, 0.9):
        keep = nms(boxes.reshape(2, 3, count, 4), scores.reshape(2, 3, count), threshold, overlap=overlap)
        wanted = [oracle(b, s, threshold, overlap=overlap) for b, s in problems]
        np.testing.assert_array_equal(np.reshape(keep, (6, count)), wanted)


def test_what_is_not_valid_neither_stays_nor_suppresses():
    rng = np.random.default_rng(0)
    boxes, scores = random_problem(rng, 200)
    valid = rng.random(200) < 0.5
    scores[rng.random(200) < 0.1] = np.nan
    keep = np.asarray(nms(boxes, scores, 0.3, valid=jnp.asarray(valid)))
    wanted = np.zeros(200, bool)
    wanted[valid] = oracle(boxes[valid], scores[valid], 0.3)
    np.testing.assert_array_equal(keep, wanted)
    assert not keep[np.isnan(scores)].any()
    assert not nms(boxes, scores, 0.3, valid=jnp.zeros(200, bool)).any()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5)])
def test_nothing_to_do(shape):
    assert nms(jnp.zeros((*shape, 4)), jnp.zeros(shape), 0.5).shape == shape


def test_boxes_that_are_not_finite_disturb_no_other():
    rng = np.random.default_rng(1)
    boxes, scores = random_problem(rng, 60)
    hostile = np.array([[np.nan] * 4, [np.inf, 0, 1, 1], [-np.inf, -np.inf, np.inf, np.inf], [1e38] * 4], np.float32)
    for overlap in ("iou", "diou"):
        keep = nms(
            np.concatenate([hostile, boxes]), np.concatenate([np.ones(4, np.float32), scores]), 0.5, overlap=overlap
        )
        np.testing.assert_array_equal(keep[4:], oracle(boxes, scores, 0.5, overlap=overlap))


def test_identical_pixels_have_no_penalty():
    """The original divides by zero here."""
    pixel = np.tile(np.array([[5, 5, 5, 5]], np.float32), (3, 1))
    keep = nms(pixel, np.array([0.1, 0.3, 0.2], np.float32), 0.5, overlap="diou", beta=0.9)
    np.testing.assert_array_equal(keep, [False, True, False])


def test_equal_scores_go_by_index():
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (4, 1))
    np.testing.assert_array_equal(nms(boxes, np.ones(4, np.float32), 0.5), [True, False, False, False])
    zeros = np.array([-0.0, 0.0, -0.0, 0.0], np.float32)
    np.testing.assert_array_equal(nms(boxes, zeros, 0.5), [True, False, False, False])


def test_devices_divide_the_problems_by_shard_map():
    boxes, scores = (np.stack(x) for x in zip(*(random_problem(np.random.default_rng(i), 40) for i in range(4))))
    divided = on_both_devices(lambda boxes, scores: kernel.nms(boxes, scores, 0.5))
    np.testing.assert_array_equal(divided(boxes, scores), nms(boxes, scores, 0.5))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 0.7]), st.sampled_from(["iou", "diou"]))
def test_properties(seed, threshold, overlap):
    rng = np.random.default_rng(seed)
    boxes, scores = random_problem(rng, 64)
    keep = np.asarray(nms(boxes, scores, threshold, overlap=overlap))
    assert keep[scores.argmax()]
    # Boxes that are kept survive on their own: suppression is idempotent.
    again = np.asarray(nms(boxes, scores, threshold, overlap=overlap, valid=jnp.asarray(keep)))
    np.testing.assert_array_equal(again, keep)
    order = rng.permutation(64)
    np.testing.assert_array_equal(nms(boxes[order], scores[order], threshold, overlap=overlap), keep[order])


@pytest.mark.parametrize(("options", "words"), [({"overlap": "giou"}, "giou"), ({"beta": 0.0}, "beta.*0.0")])
def test_options_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        nms(jnp.zeros((1, 4)), jnp.zeros(1), 0.5, **options)


@pytest.mark.parametrize("shape", [(2, 5, 2000), (1, 80, 1000)])
def test_it_lowers_for_cuda_at_the_detectors_sizes(shape):
    boxes, scores = jax.ShapeDtypeStruct((*shape, 4), jnp.float32), jax.ShapeDtypeStruct(shape, jnp.float32)
    assert lower_for_cuda(lambda b, s: nms(b, s, 0.7, overlap="diou", beta=0.9), boxes, scores)
