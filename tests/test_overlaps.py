"""Golden file: boxes, its overlaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.losses import ciou_loss, diou_loss, giou_loss, iou_loss
from diou_jax.overlaps import OVERLAPS, pairwise_iou

LOSSES = {"iou": (iou_loss, 1.0), "giou": (giou_loss, 2.0), "diou": (diou_loss, 2.0), "ciou": (ciou_loss, 2.5)}


def oracle(name, a, b):
    """The papers' formulas in float64, one pair at a time, for boxes with area."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = np.float64(a), np.float64(b)
    shared = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    iou = shared / union
    width, height = max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    if name == "giou":
        return iou - (width * height - union) / (width * height)
    distance = ((ax1 + ax2 - bx1 - bx2) ** 2 + (ay1 + ay2 - by1 - by2) ** 2) / 4 / (width**2 + height**2)
    v = 4 / np.pi**2 * (np.arctan((bx2 - bx1) / (by2 - by1)) - np.arctan((ax2 - ax1) / (ay2 - ay1))) ** 2
    alpha = v / (1 - iou + v) if v > 0 else 0.0
    return iou - {"iou": 0, "diou": distance, "ciou": distance + alpha * v}[name]


def random_boxes(count, seed, *, offset=20.0):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, offset, (count, 2)), rng.uniform(1, 30, (count, 2))
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def test_pairwise_iou_equals_the_original(golden):
    data = golden("boxes.npz")
    ours = pairwise_iou(data["overlaps_boxes"], data["overlaps_query"])
    np.testing.assert_allclose(ours, data["bbox_overlaps"], atol=3e-7)


def test_pairwise_iou_is_symmetric_bounded_and_equals_the_elementwise_one_of_boxes_a_pixel_larger():
    a, b = random_boxes(30, 11), random_boxes(40, 12)
    ours = pairwise_iou(a, b)
    np.testing.assert_allclose(pairwise_iou(b, a).T, ours, atol=1e-7)
    np.testing.assert_allclose(np.diag(pairwise_iou(a, a)), 1)
    one = np.array([0, 0, 1, 1], np.float32)
    np.testing.assert_allclose(OVERLAPS["iou"](a[:, None] + one, b + one), ours, atol=1e-6)


def test_pairwise_iou_of_pixels_that_touch_and_of_boxes_without_area():
    boxes = np.array([[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [5, 5, 4, 9], [9, 9, 2, 2]], np.int32)
    ours = np.asarray(pairwise_iou(boxes, boxes))
    np.testing.assert_allclose(ours[:3, :3], [[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]])
    assert (ours[3:] == 0).all() and (ours[:, 3:] == 0).all()


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlaps_equal_the_papers_formulas(name):
    a, b = random_boxes(500, 1), random_boxes(500, 2)
    wanted = [oracle(name, *pair) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(OVERLAPS[name](a, b), wanted, atol=2e-6)
    np.testing.assert_allclose(LOSSES[name][0](a, b), 1 - np.array(wanted), atol=2e-6)


@pytest.mark.parametrize("name", OVERLAPS)
def test_symmetry_and_independence_of_place_and_scale(name):
    a, b = random_boxes(300, 3), random_boxes(300, 4)
    value = OVERLAPS[name](a, b)
    np.testing.assert_allclose(OVERLAPS[name](b, a), value, atol=2e-6)
    np.testing.assert_allclose(OVERLAPS[name](a + 64, b + 64), value, atol=2e-5)
    np.testing.assert_allclose(OVERLAPS[name](4 * a, 4 * b), value, atol=2e-6)


@pytest.mark.parametrize("name", OVERLAPS)
def test_identical_boxes_overlap_by_one_and_are_not_pulled_away(name):
    boxes = random_boxes(100, 5)
    np.testing.assert_allclose(OVERLAPS[name](boxes, boxes), 1, atol=1e-6)
    gradient = np.asarray(jax.jit(jax.grad(lambda a: OVERLAPS[name](a, boxes).sum()))(boxes))
    # Any overlap has a ridge here: at the two ends of a side, the forces on the box cancel.
    np.testing.assert_allclose(gradient[:, :2] + gradient[:, 2:], 0, atol=1e-6)


def test_order_of_the_overlaps_and_their_limits():
    a, b = random_boxes(500, 13), random_boxes(500, 14)
    iou, giou, diou, ciou = (OVERLAPS[name](a, b) for name in ("iou", "giou", "diou", "ciou"))
    assert (giou <= iou + 1e-6).all() and (diou <= iou + 1e-6).all() and (ciou <= diou + 1e-6).all()
    centre = np.tile(0.5 * (b[:, :2] + b[:, 2:]), 2)
    about_it = a - np.tile(0.5 * (a[:, :2] + a[:, 2:]), 2) + centre
    np.testing.assert_allclose(OVERLAPS["diou"](about_it, b), OVERLAPS["iou"](about_it, b), atol=1e-6)
    alike = (b - centre) * 0.3 + centre + np.float32(7)
    np.testing.assert_allclose(OVERLAPS["ciou"](alike, b), OVERLAPS["diou"](alike, b), atol=1e-6)
    far = a + np.float32(1e6)
    for name in ("giou", "diou"):
        np.testing.assert_allclose(OVERLAPS[name](far, b), -1, atol=1e-3)


def test_the_distance_tells_apart_what_iou_does_not():
    target = np.array([0, 0, 10, 10], np.float32)
    inside = np.array([[4, 4, 6, 6], [0, 0, 2, 2]], np.float32)
    iou, diou = (OVERLAPS[name](inside, target) for name in ("iou", "diou"))
    assert iou[0] == iou[1] and diou[0] > diou[1]
    far = np.array([[20, 0, 30, 10], [80, 0, 90, 10]], np.float32)
    gradient = jax.jit(jax.grad(lambda boxes: iou_loss(boxes, target).sum()))(far)
    assert (gradient == 0).all(), "IoU gives no direction to boxes that do not meet"
    for loss in (giou_loss, diou_loss, ciou_loss):
        gradient = jax.jit(jax.grad(lambda boxes, loss=loss: loss(boxes, target).sum()))(far)
        assert (gradient[:, [0, 2]].sum(1) > 0).all(), "descending moves them towards the target"


@pytest.mark.parametrize("name", ["iou", "giou", "diou"])
def test_gradients_equal_finite_differences(name):
    a, b = random_boxes(40, 6), random_boxes(40, 7)
    gradient = np.asarray(jax.jit(jax.grad(lambda a: OVERLAPS[name](a, b).sum()))(a))
    for box, target, ours in zip(np.float64(a), b, gradient, strict=True):
        for axis, step in enumerate(1e-6 * np.eye(4)):
            up, down = (oracle(name, box + move, target) for move in (step, -step))
            assert abs((up - down) / 2e-6 - ours[axis]) < 2e-5


def test_alpha_of_ciou_is_a_constant_to_the_gradient_and_v_is_not():
    a, b = random_boxes(40, 8), random_boxes(40, 9)
    gradient = np.asarray(jax.grad(lambda a: OVERLAPS["ciou"](a, b).sum())(a))

    def aspect_term(box, target):
        angles = (np.arctan((side[2] - side[0]) / (side[3] - side[1])) for side in np.float64((box, target)))
        return 4 / np.pi**2 * (next(angles) - next(angles)) ** 2

    for box, target, ours in zip(np.float64(a), b, gradient, strict=True):
        v = aspect_term(box, target)
        alpha = v / (1 - oracle("iou", box, target) + v)
        for axis, step in enumerate(1e-6 * np.eye(4)):
            up, down = (
                oracle("diou", box + move, target) - alpha * aspect_term(box + move, target) for move in (step, -step)
            )
            assert abs((up - down) / 2e-6 - ours[axis]) < 2e-5


# Among them sizes whose square vanishes in float32 or overflows it.
HOSTILE = [sign * 10.0**power for power in (-44, -38, -27, -20, -8, -4, 0, 4, 8, 20, 38) for sign in (-1, 1)] + [0.0]


@pytest.mark.parametrize("name", OVERLAPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("largest", [slow(1e4), slow(1e8), 1e38])
def test_values_and_gradients_stay_finite_and_bounded_for_any_boxes(name, dtype, largest):
    """Identical, nested, apart, inside out, without area, from 1e-44 to 1e38: 100,000 pairs."""
    rng = np.random.default_rng(10)
    hostile = [value for value in HOSTILE if abs(value) <= largest]
    a, b = (jnp.asarray(rng.choice(hostile, (50_000, 4)), dtype) for _ in range(2))
    a, b = jnp.concatenate([a, a]), jnp.concatenate([b, a])
    loss, most = LOSSES[name]
    value = jax.jit(loss)(a, b)
    gradients = jax.jit(jax.grad(lambda a, b: loss(a, b).sum(), (0, 1)))(a, b)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all() and (value >= -1e-6).all() and (value <= most + 1e-5).all()
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients)


def test_a_box_inside_out_is_empty_and_lies_at_its_first_corner():
    inverted, point = np.array([[4, 5, 1, 2]], np.float32), np.array([[4, 5, 4, 5]], np.float32)
    target = np.array([[0, 0, 20, 10]], np.float32)
    for name in OVERLAPS:
        assert OVERLAPS[name](inverted, target) == OVERLAPS[name](point, target)
    assert OVERLAPS["iou"](inverted, target) == 0
    # A point has no aspect ratio that could differ; a strip has.
    assert OVERLAPS["ciou"](point, target) == OVERLAPS["diou"](point, target)
    strip = np.array([[4, 5, 4, 9]], np.float32)
    assert OVERLAPS["ciou"](strip, target) < OVERLAPS["diou"](strip, target)


@pytest.mark.parametrize("name", OVERLAPS)
def test_leading_axes_broadcast_and_map(name):
    a, b = random_boxes(6, 15).reshape(2, 3, 4), random_boxes(3, 16)
    value = jax.jit(OVERLAPS[name])(a, b)
    assert value.shape == (2, 3)
    np.testing.assert_allclose(jax.vmap(OVERLAPS[name], (0, None))(a, b), value, atol=1e-6)
    np.testing.assert_allclose(OVERLAPS[name](a[1, 2], b[2]), value[1, 2], atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-2e4, 2e4, width=32), min_size=8, max_size=8))
def test_bounds_hold_for_arbitrary_boxes(numbers):
    a, b = (np.array(numbers[i : i + 4], np.float32) for i in (0, 4))
    for name, (loss, most) in LOSSES.items():
        assert -1e-6 <= loss(a, b) <= most + 1e-5, name
