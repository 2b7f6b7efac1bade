"""Degenerate arithmetic: whatever the boxes, deltas and logits, results are finite and within their bounds.

The bounds are those of real arithmetic, each with its reason. The rounding of float32 is one allowance, `ROUNDING`:
no result here is more than a sum of four quotients, each at most two in magnitude and rounded a few times. Inputs in
bfloat16 are exact in float32, so it holds for them as well; only gradients come back in bfloat16, rounded once more.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from hostile import DTYPES, HEAD, ROUNDING, boxes_of_all_sizes, inclusive_iou

from diou_jax.boxes import MAX_LOG_RATIO, clip, decode, encode
from diou_jax.losses import BOX_LOSSES, sigmoid_cross_entropy, softmax_cross_entropy
from diou_jax.overlaps import EPSILON, OVERLAPS, pairwise_iou

PAIRS = 1_000_000
UNIT = (1.0, 1.0, 1.0, 1.0)

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


@functools.cache
def pairs(dtype):
    """`PAIRS` pairs of boxes, as two (PAIRS, 4) arrays, and the slice of each kind of pair.

    Rounding is monotone, so boxes that are nested, apart or touching here are still so in `dtype`.
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


@pytest.mark.parametrize("dtype", [DTYPES[0], *map(slow, DTYPES[1:])])
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
    """Inclusive sides, as `encode` counts them: at least the rest of a pixel, or a whole one."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return np.where(sides > 0, sides, 1.0)


@pytest.mark.parametrize("dtype", [DTYPES[0], *map(slow, DTYPES[1:])])
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


@pytest.mark.parametrize("dtype", [DTYPES[0], *map(slow, DTYPES[1:])])
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


@pytest.mark.parametrize("dtype", [DTYPES[0], *map(slow, DTYPES[1:])])
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


@pytest.mark.parametrize("dtype", [DTYPES[0], *map(slow, DTYPES[1:])])
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


@pytest.mark.parametrize("dtype", [DTYPES[0], *map(slow, DTYPES[1:])])
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
    # Below a pixel the one cancels the difference of the coordinates, whose rounding float32 does not tell.
    whole, other_whole = (np.asarray(x[:, 2:] >= x[:, :2]).all(1) for x in (a, b))
    whole, other_whole = np.flatnonzero(whole), np.flatnonzero(other_whole)
    exact = inclusive_iou(np.asarray(a)[whole], np.asarray(b)[other_whole])
    np.testing.assert_allclose(value[np.ix_(whole, other_whole)], exact, rtol=0, atol=ROUNDING)
    same = np.intersect1d(whole, np.arange(0, side, 2))
    np.testing.assert_allclose(value[same, same], 1, rtol=0, atol=ROUNDING)
