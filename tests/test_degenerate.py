"""Degenerate arithmetic: whatever the boxes, deltas and scores, results are finite and within their bounds.

The bounds are those of real arithmetic, each with its reason. What float32 adds to them is one allowance, `ROUNDING`:
no result here is more than a sum of four quotients, each at most two in magnitude and rounded a few times. Inputs in
bfloat16 are exact in float32, so it holds for them as well; only gradients come back in bfloat16, rounded once more.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax import build
from diou_jax.anchors import cell_anchors, grid_anchors
from diou_jax.boxes import MAX_LOG_RATIO, clip, decode, encode
from diou_jax.detector.anchor_targets import anchor_targets
from diou_jax.detector.detections import detect
from diou_jax.detector.proposals import propose
from diou_jax.detector.roi_targets import sample_rois
from diou_jax.detector.rules import BoxVoteRules, SoftNmsRules
from diou_jax.losses import BOX_LOSSES, sigmoid_cross_entropy, softmax_cross_entropy
from diou_jax.overlaps import EPSILON, OVERLAPS, pairwise_iou
from diou_jax.train_step import create_state, make_train_step, replicate, to_devices
from kernels import nms as kernel

PAIRS = 1_000_000
ROUNDING = 16 * float(np.finfo(np.float32).eps)
DTYPES = ("float32", "bfloat16")
HEAD, UNIT = (10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0)

# One minus IoU, plus GIoU's uncovered share of the enclosing box or the squared distance over the squared diagonal,
# each at most 1, plus CIoU's v^2 / (1 - IoU + v), at most 1/2 where IoU is 0; the sum falls as IoU grows.
LARGEST_LOSS = {"iou": 1.0, "giou": 2.0, "diou": 2.0, "ciou": 2.5}

# Of |gradient by a corner| times the box's side w. IoU: area and intersection grow by at most h, and w h is within the
# union. Union over enclosing area C: each of the two grows by at most C / w, and the terms have opposite signs.
# Squared distance over squared diagonal, with centres at most C's side less w / 2 apart: 1/2 by the distance and, of
# 2 s ((1 - s / 2)^2 + r) / (1 + r)^2 for s <= 1, 2/3 by the diagonal. Alpha v: 8 / pi^2 |arctan - arctan| w h /
# (w^2 + h^2), with pi / 2 and 1/2, as alpha <= 1.
STEEPEST = {"iou": 1.0, "giou": 1.0 + 1.0, "diou": 1.0 + 1 / 2 + 2 / 3, "ciou": 1.0 + 1 / 2 + 2 / 3 + 2 / math.pi}


def slack(dtype):
    """Relative rounding of a gradient that is returned in a dtype."""
    return ROUNDING + float(jnp.finfo(dtype).eps)


def boxes_of_all_sizes(rng, count):
    """Corners and sides, float64 (count, 2) each: sides from 1e-8 to 1e8 alike or not, about as far from the origin."""

    def magnitude(axes):
        return 10.0 ** rng.integers(-8, 9, (count, axes))

    side = np.where(rng.random((count, 1)) < 0.5, magnitude(1), magnitude(2)) * rng.uniform(0.1, 1, (count, 2))
    return magnitude(1) * rng.uniform(-1, 1, (count, 2)), side


@functools.cache
def pairs(dtype):
    """`PAIRS` pairs of boxes, as two (PAIRS, 4) arrays, and the slice of each kind of pair.

    Rounding is monotone, so what is nested, apart or touching here is still so in `dtype`.
    """
    rng = np.random.default_rng(0)
    kinds = ("identical", "nested", "apart", "touching", "pixels", "inverted", "empty", "mixed")
    count = PAIRS // len(kinds)
    a, b = {}, {}
    for kind in kinds:
        low, side = boxes_of_all_sizes(rng, count)
        a[kind] = b[kind] = np.concatenate([low, low + side], 1)
        axis = rng.integers(0, 2, count)[:, None] == np.arange(2)
        if kind == "nested":
            inner = np.sort(rng.choice([0.0, 0.5, 1.0, *rng.random(5)], (2, count, 2)), 0)
            b[kind] = np.concatenate(low + side * inner, 1)
        elif kind in ("apart", "touching"):
            gap = side * rng.random((count, 2)) if kind == "apart" else 0.0
            low = np.where(axis, low + side + gap, low + side * rng.uniform(-1, 1, (count, 2)))
            b[kind] = np.concatenate([low, low + side], 1)
        elif kind == "pixels":
            low = rng.integers(-2000, 2000, (count, 2)).astype(np.float64)
            other = low + rng.integers(-2, 3, (count, 2))
            last = rng.integers(0, 2, (count, 1))  # the last pixel's number, or where it ends
            a[kind], b[kind] = np.concatenate([low, low + last], 1), np.concatenate([other, other + last], 1)
        elif kind in ("inverted", "empty"):
            axis |= rng.random((count, 2)) < 0.3
            a[kind] = np.concatenate([low, low + np.where(axis, -side if kind == "inverted" else 0.0, side)], 1)
            b[kind] = np.where(rng.random((count, 1)) < 0.5, b[kind], np.roll(b[kind], 1, 0))
        elif kind == "mixed":
            other, side = boxes_of_all_sizes(rng, count)
            low = np.where(rng.random((count, 1)) < 0.5, other, low + side * rng.uniform(-1, 1, (count, 2)))
            b[kind] = np.concatenate([low, low + side], 1)
    slices = {kind: slice(i * count, (i + 1) * count) for i, kind in enumerate(kinds)}
    both = (jnp.asarray(np.concatenate(list(x.values())), jnp.float32).astype(dtype) for x in (a, b))
    return *both, slices


@functools.cache
def exact_overlaps(dtype):
    """The papers' formulas of `pairs` in float64, with the original's epsilons; and the boxes' sides."""
    a, b, _ = (np.float64(x) if isinstance(x, jax.Array) else x for x in pairs(dtype))
    low, other_low = a[:, :2], b[:, :2]
    high, other_high = np.maximum(a[:, 2:], low), np.maximum(b[:, 2:], other_low)
    sides, other_sides = high - low, other_high - other_low
    shared = np.maximum(np.minimum(high, other_high) - np.maximum(low, other_low), 0).prod(1)
    union = sides.prod(1) + other_sides.prod(1) - shared + EPSILON
    around = np.maximum(high, other_high) - np.minimum(low, other_low)
    iou = shared / union
    distance = (((low + high) / 2 - (other_low + other_high) / 2) ** 2).sum(1) / ((around**2).sum(1) + EPSILON)
    points = (sides.max(1) == 0) | (other_sides.max(1) == 0)
    angle = np.where(points, 0, np.arctan2(*sides.T) - np.arctan2(*other_sides.T))
    v = 4 / np.pi**2 * angle**2
    diou = iou - distance
    values = {
        "iou": iou,
        "giou": iou - 1 + union / (around.prod(1) + EPSILON),
        "diou": diou,
        "ciou": diou - v * v / np.where(v > 0, 1 - iou + v, 1.0),
    }
    return values, sides, other_sides


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OVERLAPS)
def test_overlaps_of_a_million_pairs(name, dtype):
    a, b, kinds = pairs(dtype)

    @jax.jit
    def evaluate(a, b):
        value, pull_back = jax.vjp(OVERLAPS[name], a, b)
        return value, *pull_back(jnp.ones_like(value))

    value, *gradients = (np.asarray(x, np.float32) for x in evaluate(a, b))
    exact, *sides = exact_overlaps(dtype)
    np.testing.assert_allclose(value, exact[name], rtol=0, atol=ROUNDING)
    assert value.max() <= 1 + ROUNDING and 1 - value.min() <= LARGEST_LOSS[name] + ROUNDING
    for side, gradient in zip(sides, gradients, strict=True):
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient) * np.tile(side, 2)).max() <= STEEPEST[name] * (1 + slack(dtype))

    if name == "iou":
        assert value.min() >= 0
        assert (value[kinds["apart"]] == 0).all() and (value[kinds["touching"]] == 0).all()
        assert (value[kinds["inverted"]] == 0).all() and (value[kinds["empty"]] == 0).all()
    else:
        above = exact["diou" if name == "ciou" else "iou"]
        assert (value <= above + ROUNDING).all()
    area = sides[0][kinds["identical"]].prod(1)
    np.testing.assert_allclose(value[kinds["identical"]], area / (area + EPSILON), rtol=0, atol=ROUNDING)


def counted_sides(boxes):
    """Inclusive sides, as `encode` counts them: at least what is left of a pixel, or a whole one."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return np.where(sides > 0, sides, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_encoding_a_million_pairs(dtype):
    boxes, targets, _ = pairs(dtype)

    @jax.jit
    def evaluate(boxes, targets):
        deltas, pull_back = jax.vjp(functools.partial(encode, weights=HEAD), boxes, targets)
        return deltas, *pull_back(jnp.ones_like(deltas))

    deltas, *gradients = (np.asarray(x, np.float64) for x in evaluate(boxes, targets))
    # Sides as float32 has them: next to nothing, the one pixel is all that counts or all that cancels.
    sides, target_sides = (np.float64(counted_sides(np.float32(x))) for x in (boxes, targets))
    ends, target_ends = (np.float64(np.asarray(x)) for x in (boxes, targets))
    shift = 0.5 * (target_ends[:, :2] + target_ends[:, 2:] - ends[:, :2] - ends[:, 2:]) / sides
    exact = np.concatenate([shift, np.log(target_sides / sides)], 1) * HEAD
    # A centre is rounded in the coordinates' precision, a quotient in its own.
    largest = np.maximum(np.abs(ends), np.abs(target_ends)).reshape(-1, 2, 2).max(1) + 1
    allowance = ROUNDING * (np.abs(exact) + np.concatenate([largest / sides, np.ones_like(sides)], 1) * HEAD)
    assert (np.abs(deltas - exact) <= allowance).all()

    # The slope of the centre is 1/2, of a side 1, of a logarithm 1 / side.
    by_box, by_target = (np.abs(gradient).reshape(-1, 2, 2).max(1) for gradient in gradients)
    weight, log_weight = HEAD[0], HEAD[2]
    steepest = weight * (0.5 + np.abs(exact[:, :2] / weight)) / sides + log_weight / sides
    assert (by_box <= steepest * (1 + slack(dtype)) + allowance[:, :2] / sides).all()
    steepest = 0.5 * weight / sides + log_weight / target_sides
    assert (by_target <= steepest * (1 + slack(dtype))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_a_million_pairs(dtype):
    """References of an edge's width and more; deltas of any size."""
    rng = np.random.default_rng(1)
    boxes = pairs(dtype)[0]
    boxes = jnp.concatenate([boxes[:, :2], jnp.maximum(boxes[:, :2], boxes[:, 2:])], 1)
    deltas = jnp.asarray(wild_deltas(rng, PAIRS), dtype)

    @jax.jit
    def evaluate(boxes, deltas):
        decoded, pull_back = jax.vjp(functools.partial(decode, weights=UNIT), boxes, deltas)
        ends = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0]), decoded.shape)  # by both ends sizes would cancel
        return decoded, clip(decoded, 600, 800), *pull_back(ends)

    decoded, clipped, by_box, by_delta = (np.asarray(x, np.float64) for x in evaluate(boxes, deltas))
    boxes, deltas = (np.asarray(x, np.float64) for x in (boxes, deltas))
    sides = counted_sides(boxes)
    move, new_sides = deltas[:, :2] * sides, np.exp(np.minimum(deltas[:, 2:], MAX_LOG_RATIO)) * sides
    centre = boxes[:, :2] + sides / 2 + move
    exact = np.concatenate([centre - new_sides / 2, centre + new_sides / 2 - 1], 1)
    # Each term is rounded in its own precision; so is the exponent, by which a size is off in proportion.
    largest = np.abs(boxes).reshape(-1, 2, 2).max(1) + np.abs(move) + new_sides + 1
    assert (np.abs(decoded - exact) <= ROUNDING * np.tile(largest, 2)).all()
    assert (clipped >= 0).all() and (clipped <= [799, 599, 799, 599]).all()

    np.testing.assert_allclose(by_delta[:, :2], sides, rtol=slack(dtype))
    assert (by_delta[:, 2:] >= 0).all()
    assert (by_delta[:, 2:] <= 1000 / 16 / 2 * sides * (1 + slack(dtype))).all()
    steepest = np.tile(np.abs(deltas[:, :2]) + 1000 / 16 / 2 + 1, 2)
    assert (np.abs(by_box) <= steepest * (1 + slack(dtype))).all()


def wild_deltas(rng, count):
    """(count, 4) of either sign and any size from 1e-8 to 1e8, many of them 0 or 1e4."""
    deltas = 10.0 ** rng.uniform(-8, 8, (count, 4)) * rng.choice([-1.0, 1.0], (count, 4))
    return np.where(rng.random((count, 4)) < 0.4, rng.choice([0.0, -1e4, 1e4], (count, 4)), deltas)


def test_no_delta_leads_out_of_the_image_but_one_that_is_not_a_number():
    values = [0.0, 1e4, -1e4, 3e38, -3e38, np.inf, -np.inf]
    deltas = np.stack(np.meshgrid(*[values] * 4), -1).reshape(-1, 4).astype(np.float32)
    boxes = np.array([[0, 0, 0, 0], [5, 5, 4.5, 90], [700, 500, 799, 599]], np.float32)
    inside = jax.jit(lambda boxes, deltas: clip(decode(boxes, deltas), 600, 800))
    clipped = np.asarray(inside(boxes[:, None], deltas))
    assert (clipped >= 0).all() and (clipped <= [799, 599, 799, 599]).all()
    # Sides may shrink to nothing, which as inclusive pixels is one before the first.
    assert (clipped[..., 2:] - clipped[..., :2] + 1 >= -800 * ROUNDING).all()
    assert np.isnan(inside(boxes[:, None], deltas * np.nan)).all()


# Of |gradient by a delta| for unit weights: by the logarithm of a side, and by the centre times the target's side W.
# By the logarithm, which moves each end by w / 2, STEEPEST's bounds hold, less that of the distance, which stays. The
# centre moves the intersection but neither area, 2 for IoU. As well the target moves the other way, so W is the side in
# the other bounds, and the distance counts for both of its ends.
STEEPEST_SIDE = {"iou": 1.0, "giou": 2.0, "diou": 1 + 2 / 3, "ciou": 1 + 2 / 3 + 2 / math.pi, "smooth_l1": 1.0}
STEEPEST_CENTRE = {"iou": 2.0, "giou": 2.0 + 1.0, "diou": 2.0 + 1.0 + 2 / 3, "ciou": 2.0 + 1.0 + 2 / 3}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STEEPEST_SIDE)
def test_box_losses_of_a_million_deltas(name, dtype):
    rng = np.random.default_rng(2)
    half, tenth = PAIRS // 2, PAIRS // 10
    # The first half of the targets are sane: a side of 1/4 to 60, centred within 4 of the reference.
    sane = np.concatenate([rng.uniform(-4, 4, (half, 2)), rng.uniform(-1.38, 4.1, (half, 2))], 1)
    targets = jnp.asarray(np.concatenate([sane, wild_deltas(rng, half)]), dtype)
    deltas = np.concatenate([sane + rng.normal(0, 0.5, sane.shape), wild_deltas(rng, half)])
    deltas[half - tenth : half] = wild_deltas(rng, tenth)
    deltas = jnp.asarray(deltas, dtype).at[:tenth].set(targets[:tenth]).at[-tenth:].set(targets[-tenth:])

    @jax.jit
    def evaluate(deltas, targets):
        value, pull_back = jax.vjp(lambda deltas: BOX_LOSSES[name](deltas, targets, reg_weights=UNIT), deltas)
        return value, *pull_back(jnp.ones_like(value))

    value, gradient = evaluate(deltas, targets)
    assert value.dtype == jnp.float32 and gradient.dtype == dtype
    value, gradient, deltas, targets = (np.asarray(x, np.float64) for x in (value, gradient, deltas, targets))
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    if name == "smooth_l1":
        distance = np.abs(deltas - targets)
        exact = np.where(distance < 1, distance**2 / 2, distance - 0.5).sum(1)
        np.testing.assert_allclose(value, exact, rtol=ROUNDING, atol=ROUNDING)
        assert np.abs(gradient).max() <= 1
        return

    assert value.min() >= -ROUNDING and value.max() <= LARGEST_LOSS[name] + ROUNDING
    sides = np.exp(targets[:half, 2:])
    identical = slice(0, tenth)
    assert (value[identical] <= EPSILON / sides[identical].prod(1) + ROUNDING).all()
    # Corners are rounded where they lie, up to 34 of the shortest side away from the origin.
    allowance = slack(dtype) + 34 / 0.25 * np.finfo(np.float32).eps
    gradient = np.abs(gradient[:half])
    assert gradient[:, 2:].max() <= STEEPEST_SIDE[name] * (1 + allowance)
    assert (gradient[:, :2] * sides).max() <= STEEPEST_CENTRE[name] * (1 + allowance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropies_of_a_million_logits(dtype):
    rng = np.random.default_rng(3)
    classes = 8
    logits = 10.0 ** rng.uniform(-8, 30, (PAIRS // classes, classes)) * rng.choice([-1.0, 0.0, 1.0], (1, classes))
    logits[:1000] = logits[:1000, :1]  # all equal
    logits = jnp.asarray(logits, dtype)
    labels = rng.integers(0, classes, len(logits))
    chosen = labels[:, None] == np.arange(classes)

    @jax.jit
    def evaluate(logits):
        softmax, by_softmax = jax.vjp(lambda x: softmax_cross_entropy(x, labels), logits)
        sigmoid, by_sigmoid = jax.vjp(lambda x: sigmoid_cross_entropy(x, chosen), logits)
        return softmax, *by_softmax(jnp.ones_like(softmax)), sigmoid, *by_sigmoid(jnp.ones_like(sigmoid))

    softmax, by_softmax, sigmoid, by_sigmoid = (np.asarray(x, np.float64) for x in evaluate(logits))
    logits = np.asarray(logits, np.float64)
    least = logits.max(1) - logits[chosen]
    assert (softmax >= least * (1 - ROUNDING)).all()
    assert (softmax <= least * (1 + ROUNDING) + math.log(classes) + ROUNDING).all()
    assert (by_softmax[chosen] <= 0).all() and (by_softmax[~chosen] >= 0).all() and np.abs(by_softmax).max() <= 1
    assert np.abs(by_softmax.sum(1)).max() <= slack(dtype)

    least = np.maximum(np.where(chosen, -logits, logits), 0)
    assert (sigmoid >= least * (1 - ROUNDING)).all()
    assert (sigmoid <= least * (1 + ROUNDING) + math.log(2) + ROUNDING).all()
    assert (by_sigmoid[chosen] <= 0).all() and (by_sigmoid[~chosen] >= 0).all() and np.abs(by_sigmoid).max() <= 1


def inclusive_iou(a, b):
    """Of every box of `a` with every box of `b`, float64; 0 where they do not meet."""
    a, b = np.float64(a)[:, None], np.float64(b)[None]
    shared = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1, 0).prod(-1)
    union = sum((x[..., 2:] - x[..., :2] + 1).prod(-1) for x in (a, b)) - shared
    return np.where(shared > 0, shared / np.where(shared > 0, union, 1), 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairwise_iou_of_a_million_pairs(dtype):
    side = math.isqrt(PAIRS)
    chosen = np.random.default_rng(4).choice(PAIRS, side, replace=False)
    a, b = (x[chosen] for x in pairs(dtype)[:2])
    b = b.at[::2].set(a[::2])

    @jax.jit
    def evaluate(a, b):
        value, pull_back = jax.vjp(pairwise_iou, a, b)
        return value, pairwise_iou(b, a), *pull_back(jnp.ones_like(value))

    value, swapped, *gradients = (np.asarray(x, np.float32) for x in evaluate(a, b))
    assert value.min() >= 0 and value.max() <= 1 + ROUNDING
    np.testing.assert_allclose(value, swapped.T, rtol=0, atol=ROUNDING)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    # Below a pixel the one cancels what the coordinates leave, and float32 does not say how much that is.
    whole, other_whole = (np.asarray(x[:, 2:] >= x[:, :2]).all(1) for x in (a, b))
    whole, other_whole = np.flatnonzero(whole), np.flatnonzero(other_whole)
    exact = inclusive_iou(np.asarray(a)[whole], np.asarray(b)[other_whole])
    np.testing.assert_allclose(value[np.ix_(whole, other_whole)], exact, rtol=0, atol=ROUNDING)
    same = np.intersect1d(whole, np.arange(0, side, 2))
    np.testing.assert_allclose(value[same, same], 1, rtol=0, atol=ROUNDING)


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


def hostile_boxes(rng, count):
    """Boxes of a pixel and more up to 1e8, some again and again, inside out, infinite or not numbers."""
    low, side = boxes_of_all_sizes(rng, count)
    low = np.where(rng.random((count, 1)) < 0.7, rng.uniform(-50, 50, (count, 2)), low)
    side = np.where(rng.random((count, 1)) < 0.7, rng.uniform(0, 60, (count, 2)), np.round(side))
    boxes = np.concatenate([low, low + side], 1).astype(np.float32)
    boxes = boxes[rng.integers(0, count, count)]
    inverted = rng.random(count) < 0.1
    boxes[inverted] = boxes[inverted][:, [2, 1, 0, 3]]
    return np.where(rng.random((count, 4)) < 0.01, rng.choice([np.nan, np.inf, -np.inf], (count, 4)), boxes)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["iou", "diou"]))
def test_suppression_of_hostile_boxes(seed, threshold, overlap):
    rng = np.random.default_rng(seed)
    count = 300
    boxes = hostile_boxes(rng, count)
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

    # As if what is not finite had not been there.
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
PROPOSAL_RULES = {"pre_nms_top_n": 60, "post_nms_top_n": 40, "nms_thresh": 0.7, "min_size": 0, "collect_top_n": 50}
DETECTION_RULES = {
    "reg_weights": HEAD,
    "score_thresh": 0.05,
    "nms_thresh": 0.5,
    "diou_nms": True,
    "beta1": 0.9,
    "detections_per_im": 30,
}
compiled_propose = jax.jit(functools.partial(propose, **PROPOSAL_RULES))
SUPPRESSION = {
    "greedy": {},
    "soft": {"soft_nms": SoftNmsRules(method="gaussian", sigma=0.5, beta1=0.8)},
    "vote": {"bbox_vote": BoxVoteRules(vote_th=0.5, scoring_method="TEMP_AVG", scoring_method_beta=2.0)},
}
SUPPRESSION["both"] = SUPPRESSION["soft"] | SUPPRESSION["vote"]
compiled_detect = {
    name: jax.jit(functools.partial(detect, **DETECTION_RULES, **rules)) for name, rules in SUPPRESSION.items()
}
LIMIT = np.array([[96, 128], [60, 70]])


def oddities(rng, shape, *, share=0.5):
    return np.where(rng.random(shape) < share, rng.choice(ODDITIES, shape), rng.normal(size=shape)).astype(np.float32)


def assert_sound(boxes, scores, valid, limit):
    """Boxes within the image, by descending score; zeros for what is not valid."""
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
    found = jax.tree.map(np.asarray, compiled_propose(logits, deltas, ANCHORS, exists, LIMIT, np.ones(2, np.float32)))
    assert_sound(found.boxes, found.scores, found.valid, LIMIT)
    assert not found.valid[~np.concatenate(exists, 1).any(1)].any()
    assert (found.boxes[..., 2:] >= found.boxes[..., :2]).all(), "a pixel or more"


@pytest.mark.parametrize("suppression", SUPPRESSION)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_detections_from_any_outputs(suppression, seed):
    rng = np.random.default_rng(seed)
    rois = np.sort(rng.uniform(0, 60, (2, 2, 40, 2)), 0).transpose(1, 2, 0, 3).reshape(2, 40, 4).astype(np.float32)
    valid = rng.random((2, 40)) < 0.8
    scores = rng.choice([0.0, 0.05, 0.5, 1.0, np.nan], (2, 40, 4)).astype(np.float32)
    deltas = oddities(rng, (2, 40, 4, 4), share=0.2)
    found = compiled_detect[suppression](rois, valid, scores, deltas, np.array([0.5, 2.0], np.float32), LIMIT)
    found = jax.tree.map(np.asarray, found)
    assert_sound(found.boxes, found.scores, found.valid, LIMIT)
    assert (found.scores[found.valid] > (0.05 if suppression == "greedy" else 0)).all()
    assert (found.classes[found.valid] >= 1).all() and (found.classes <= 3).all() and (found.classes >= 0).all()


def test_equal_scores_go_by_index_and_low_ones_nowhere():
    logits = [np.zeros((2, len(anchors)), np.float32) for anchors in ANCHORS]
    deltas = [np.zeros((2, len(anchors), 4), np.float32) for anchors in ANCHORS]
    exists = [np.ones(x.shape, bool) for x in logits]
    found = compiled_propose(logits, deltas, ANCHORS, exists, LIMIT, np.ones(2, np.float32))
    np.testing.assert_array_equal(found.boxes[0, 0], np.clip(ANCHORS[0][0], 0, [127, 95, 127, 95]))
    assert (np.asarray(found.scores)[found.valid] == 0.5).all()

    rois, valid = np.zeros((2, 40, 4), np.float32), np.zeros((2, 40), bool)
    rois[0, :3], valid[0, :3] = [[10, 10, 20, 20], [10, 10, 20, 20], [50, 50, 60, 60]], True
    for score, wanted in ((0.25, [1, 1, 2, 2, 3, 3]), (0.05, [])):
        scores, deltas = np.full((2, 40, 4), score, np.float32), np.zeros((2, 40, 4, 4), np.float32)
        found = compiled_detect["greedy"](rois, valid, scores, deltas, np.ones(2, np.float32), LIMIT)
        np.testing.assert_array_equal(np.asarray(found.classes)[found.valid], wanted)
        boxes = np.tile(rois[0, [0, 2]], (len(wanted) // 2, 1))
        np.testing.assert_array_equal(np.asarray(found.boxes)[found.valid], boxes)


compiled_anchor_targets = jax.jit(
    functools.partial(
        anchor_targets,
        batch_size_per_im=64,
        fg_fraction=0.5,
        positive_overlap=0.7,
        negative_overlap=0.3,
        straddle_thresh=-1,
    )
)
compiled_sample_rois = jax.jit(
    functools.partial(
        sample_rois,
        batch_size_per_im=32,
        fg_fraction=0.25,
        fg_thresh=0.5,
        bg_thresh_hi=0.5,
        bg_thresh_lo=0.0,
        crowd_filter_thresh=0.7,
        reg_weights=HEAD,
    )
)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_targets_of_any_ground_truth(seed, share):
    """Boxes from a fraction of a pixel to 1e8, inside out or beside the image; what is not valid may be anything."""
    rng = np.random.default_rng(seed)
    count = 20
    boxes = hostile_boxes(rng, count)
    finite = np.isfinite(boxes).all(1)
    valid = finite & (rng.random(count) < share)
    crowd = rng.random(count) < 0.2
    key = jax.random.key(seed % 1000)
    anchors = np.concatenate(ANCHORS)
    image = np.ones(len(anchors), bool), boxes, valid & ~crowd, LIMIT[0], key
    targets = compiled_anchor_targets(anchors, *(x[None] for x in image))
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
    classes = rng.integers(1, 5, count)
    sampled = compiled_sample_rois(proposals, exists, boxes, classes, crowd, valid, key)
    rois, labels, deltas, drawn = map(np.asarray, (sampled.rois, sampled.labels, sampled.deltas, sampled.valid))
    assert np.isfinite(rois).all() and (labels > 0).sum() <= 8
    assert (labels[~drawn] == 0).all() and (rois[~drawn] == 0).all() and (deltas[labels == 0] == 0).all()
    # From IoU 1/2 on, sides differ by 2 at most, and centres by half a side of the RoI.
    assert (np.abs(deltas) <= np.array(HEAD) * [0.5, 0.5, math.log(2), math.log(2)] * (1 + ROUNDING)).all()
    if not valid.any():
        assert not (np.asarray(targets.labels) == 1).any() and not labels.any()


def test_devices_without_objects(tiny_config):
    """The whole step, by an optimiser that turns gradients into differences of parameters."""
    config = tiny_config()
    config.resnets.use_gn = config.fpn.use_gn = False  # they take long to compile
    rule = build.rule(config)
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    batch, _ = build.train_reader(config, data, rule)(0)
    optimizer = optax.sgd(1.0)
    step = make_train_step(detector, optimizer, seed=0, iter_size=1, log_every=1)
    variables = jax.device_get(detector.network.init_variables(jax.random.key(0)))

    def differences(batch):
        state = create_state(variables, optimizer)
        state, metrics = step(replicate(state), next(to_devices([batch], ahead=0)))
        metrics = {name: float(value) for name, value in metrics.items()}
        assert all(np.isfinite(value) for value in metrics.values())
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(state.params), variables["params"])
        moved = {"/".join(key.key for key in path): x for path, x in jax.tree_util.tree_leaves_with_path(moved)}
        assert all(np.isfinite(x) for x in moved.values())
        return metrics, moved

    with_objects, moved = differences(batch)
    learning = {name for name, x in moved.items() if x > 0}
    boxes = {f"{head}/deltas/{leaf}" for head in ("rpn", "box_head") for leaf in ("kernel", "bias")}
    assert with_objects["loss_bbox"] > 0 and boxes < learning

    none = batch.replace(valid=np.zeros_like(batch.valid))
    metrics, moved = differences(none)
    for name in ("loss_rpn_bbox", "loss_bbox", "bbox_sl1", "bbox_iou", "bbox_giou"):
        assert metrics[name] == 0
    assert metrics["loss_rpn_cls"] > 0 and metrics["loss_cls"] > 0
    learning_without = {name for name, x in moved.items() if x > 0}
    assert {"rpn/logits/kernel", "box_head/logits/kernel"} < learning_without <= learning - boxes

    half = batch.replace(valid=batch.valid & (np.arange(len(batch.valid)) == 0)[:, None])
    metrics, moved = differences(half)
    assert 0 < metrics["loss_bbox"] < with_objects["loss_bbox"]
    assert all(moved[name] > 0 for name in boxes)

    only_crowds = batch.replace(crowd=np.ones_like(batch.crowd))
    assert differences(only_crowds)[0]["loss_rpn_bbox"] == 0
    hostile = hostile_boxes(np.random.default_rng(6), batch.valid.size).reshape(batch.boxes.shape)
    differences(batch.replace(boxes=np.where(np.isfinite(hostile), hostile, 0), valid=np.ones_like(batch.valid)))
    differences(batch.replace(image=np.zeros_like(batch.image)))
