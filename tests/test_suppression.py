"""The decision between two boxes: the original's number, and the same bit whatever a compiler fuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.kernels import suppression
from diou_jax.kernels.suppression import excess, suppresses

KINDS = [("iou", 1.0), ("diou", 1.0), ("diou", 0.9), ("diou", 0.6), ("diou", 2.0)]


@functools.cache
def decide(overlap, beta):
    @jax.jit
    def compiled(a, b, threshold):
        return suppresses(a.T, b.T, threshold, overlap=overlap, beta=beta)

    return compiled


def draw_pairs(count, *, whole=False):
    """Pairs of boxes that mostly meet."""
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 900, (count, 2)), np.exp(rng.uniform(0, 6, (count, 2)))
    shift = rng.normal(0, 0.2, (count, 2)) * size
    other = size * np.exp(rng.normal(0, 0.3, (count, 2)))
    pairs = [np.concatenate([corner, corner + size], 1), np.concatenate([corner + shift, corner + shift + other], 1)]
    return [np.float32(np.round(boxes) if whole else boxes) for boxes in pairs]


def measure(a, b):
    """I and U, and four times D and C, of boxes (4, N) in a type that does not round them."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1) + 1
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1) + 1
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1)
    distance = (ax1 + ax2 - bx1 - bx2) ** 2 + (ay1 + ay2 - by1 - by2) ** 2
    diagonal = (np.maximum(ax2, bx2) - np.minimum(ax1, bx1)) ** 2 + (np.maximum(ay2, by2) - np.minimum(ay1, by1)) ** 2
    return shared, areas - shared, distance, 4 * diagonal


def overlaps(pairs, overlap, beta):
    """Their IoU or DIoU in float64."""
    shared, union, distance, diagonal = measure(*(np.float64(boxes).T for boxes in pairs))
    return shared / union - ((distance / diagonal) ** beta if overlap == "diou" else 0)


@pytest.mark.parametrize(("overlap", "beta"), KINDS)
def test_it_is_the_definition_but_for_a_few_units_in_the_last_place(overlap, beta):
    pairs = draw_pairs(4000)
    values = overlaps(pairs, overlap, beta)
    for threshold in np.float32([0.05, 0.3, 0.5, 0.7]):
        found = decide(overlap, beta)(*pairs, threshold)
        clear = abs(values - threshold) > 5e-7
        assert clear.mean() > 0.999
        np.testing.assert_array_equal(found[clear], (values >= threshold)[clear])
        assert 0.001 < np.mean(found) < 0.999


@pytest.mark.parametrize(("overlap", "beta"), KINDS)
def test_fused_or_not_it_decides_alike(overlap, beta):
    """At thresholds that are the pairs' own values, where the last bit of everything counts."""
    pairs = draw_pairs(4000)
    thresholds = np.float32(overlaps(pairs, overlap, beta))
    thresholds = (thresholds.view(np.int32) + np.random.default_rng(1).integers(-1, 2, 4000, np.int32)).view(np.float32)
    fused = decide(overlap, beta)(*pairs, thresholds)
    with jax.disable_jit():
        one_by_one = suppresses(*(jnp.asarray(x).T for x in pairs), thresholds, overlap=overlap, beta=beta)
    np.testing.assert_array_equal(fused, one_by_one)
    assert 0.1 < np.mean(fused) < 0.9


@pytest.mark.parametrize("overlap", ["iou", "diou"])
def test_whole_coordinates_and_binary_thresholds_are_decided_exactly(overlap):
    rng = np.random.default_rng(2)
    corner, size = rng.integers(0, 6, (2, 300_000, 2)), rng.integers(0, 8, (2, 300_000, 2))
    pairs = np.concatenate([corner, corner + size], -1)
    shared, union, distance, diagonal = measure(*np.moveaxis(pairs, -1, 1))
    if overlap == "iou":
        distance = 0
    diagonal = np.maximum(diagonal, 1)
    ties = 0
    for quarters in range(5):
        found = decide(overlap, 1.0)(*np.float32(pairs), np.float32(quarters / 4))
        # Everything times 4 C U, and C and D four times themselves: whole numbers.
        left, right = 4 * (shared * diagonal - distance * union), quarters * union * diagonal
        np.testing.assert_array_equal(found, left >= right)
        ties += (left == right) & (shared > 0) & (distance > 0 if overlap == "diou" else True)
    assert np.sum(ties) > 100


@pytest.mark.parametrize("threshold", [0.05, 0.123456, 0.25, 0.3, 0.5, 0.7, 0.95, 1.0])
def test_the_threshold_is_met_by_whatever_quotient_rounds_to_it(threshold):
    """IoU is compared without dividing; ties of whole numbers, and the next floats on both sides of others."""
    rng, threshold = np.random.default_rng(0), np.float32(threshold)
    whole = rng.integers(1, 2**21, 200_000).astype(np.float32)
    union = np.concatenate([whole, rng.uniform(1, 1e6, 200_000), 2.0 ** rng.uniform(-20, 40, 200_000)]).astype(
        np.float32
    )
    near = np.round(whole * np.float64(threshold) + rng.integers(-2, 3, len(whole)))
    near = np.concatenate([near.astype(np.float32), union[len(whole) :] * threshold])
    ulps = np.where(near > 1, rng.integers(-3, 4, len(near)), 0).astype(np.int32)
    ulps[: len(whole)] = 0
    intersection = np.clip((near.view(np.int32) + ulps).view(np.float32), 0, union)
    found = jax.jit(lambda *operands: excess(*operands) >= 0)(intersection, union, threshold)
    np.testing.assert_array_equal(found, intersection / union >= threshold)
    assert 0.2 < np.mean(found) <= 1


def test_every_mantissa_of_a_threshold():
    """Halves of 12 bits for all of them, the powers of two included."""
    rng = np.random.default_rng(3)
    thresholds = np.concatenate([2.0 ** -np.arange(20.0), rng.uniform(0, 1, 10**6)]).astype(np.float32)
    union = np.float32(rng.uniform(1, 1e6, len(thresholds)))
    units = rng.integers(-2, 3, len(thresholds), np.int32)
    part = ((union * thresholds).view(np.int32) + units).view(np.float32)
    found = jax.jit(lambda *operands: excess(*operands) >= 0)(part, union, thresholds)
    np.testing.assert_array_equal(found, part / union >= thresholds)


def test_a_penalty_without_end_or_without_weight():
    pairs = draw_pairs(1000)
    for threshold in np.float32([0.3, 0.7]):
        by_iou = np.asarray(decide("iou", 1.0)(*pairs, threshold))
        np.testing.assert_array_equal(decide("diou", 1e30)(*pairs, threshold), by_iou)
        # The power of next to nothing is 1, and no IoU exceeds that.
        assert not decide("diou", 1e-30)(*pairs, threshold).any()


def test_the_power():
    x = np.float32(np.exp2(np.random.default_rng(4).uniform(-30, 0, 10**5)))
    np.testing.assert_allclose(jax.jit(suppression._log2)(x), np.log2(np.float64(x)), atol=2e-6)
    near_one = np.float32(np.linspace(0.5, 2, 10**5))
    np.testing.assert_allclose(jax.jit(suppression._log2)(near_one), np.log2(np.float64(near_one)), atol=3e-7)
    y = np.float32(np.linspace(-120, 0, 10**5))
    np.testing.assert_allclose(jax.jit(suppression._exp2)(y), np.exp2(np.float64(y)), rtol=4e-7)
    assert suppression._exp2(jnp.float32(-1e30)) < 1e-37


@pytest.mark.parametrize(("overlap", "beta"), KINDS)
def test_boxes_without_area_or_that_are_no_numbers_have_no_part_in_it(overlap, beta):
    box = np.float32([[10, 10, 20, 20]])
    strange = [[20, 10, 10, 20], [10, 10, 9, 20], [20, 20, 10, 10], [np.nan, 10, 20, 20], [10, 10, np.inf, 20]]
    strange += [[-np.inf, -np.inf, np.inf, np.inf], [-3e38, -3e38, 3e38, 3e38]]
    for other in np.float32(strange)[:, None]:
        for threshold in np.float32([-1, 0, 0.5]):
            assert not decide(overlap, beta)(box, other, threshold)
            assert not decide(overlap, beta)(other, box, threshold)
    for same in np.float32([[5, 5, 5, 5], [0, 0, 1e9, 1e9], [10, 10, 20, 20]])[:, None]:
        assert decide(overlap, beta)(same, same, np.float32(1))
        assert not decide(overlap, beta)(same, same, np.float32(1.1))
        assert not decide(overlap, beta)(same, same, np.float32(np.inf))
