"""Golden file: boxes, its overlaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.losses import ciou_loss, diou_loss, giou_loss, iou_loss
from diou_jax.overlaps import OVERLAPS, pairwise_iou

LOSSES = {"iou": (iou_loss, 1.0), "giou": (giou_loss, 2.0), "diou": (diou_loss, 2.0), "ciou": (ciou_loss, 3.0)}


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
def test_identical_boxes_overlap_by_one_without_gradient_of_the_place(name):
    boxes = random_boxes(100, 5)
    np.testing.assert_allclose(OVERLAPS[name](boxes, boxes), 1, atol=1e-6)


def test_the_distance_tells_apart_what_iou_does_not():
    target = np.array([0, 0, 10, 10], np.float32)
    inside = np.array([[4, 4, 6, 6], [0, 0, 2, 2]], np.float32)
    iou, diou = (OVERLAPS[name](inside, target) for name in ("iou", "diou"))
    assert iou[0] == iou[1] and diou[0] > diou[1]
    far = np.array([[20, 0, 30, 10], [80, 0, 90, 10]], np.float32)
    gradient = jax.grad(lambda boxes: iou_loss(boxes, target).sum())(far)
    assert (gradient == 0).all(), "IoU gives no direction to boxes that do not meet"
    for loss in (giou_loss, diou_loss, ciou_loss):
        gradient = jax.grad(lambda boxes, loss=loss: loss(boxes, target).sum())(far)
        assert (gradient[:, [0, 2]].sum(1) > 0).all(), "descending moves them towards the target"


@pytest.mark.parametrize("name", ["iou", "giou", "diou"])
def test_gradients_equal_finite_differences(name):
    a, b = random_boxes(40, 6), random_boxes(40, 7)
    gradient = np.asarray(jax.grad(lambda a: OVERLAPS[name](a, b).sum())(a))
    for axis in range(4):
        step = np.zeros(4)
        step[axis] = 1e-6
        for row in range(len(a)):
            up, down = (oracle(name, np.float64(a[row]) + sign * step, b[row]) for sign in (1, -1))
            assert abs((up - down) / 2e-6 - gradient[row, axis]) < 2e-5


def test_alpha_of_ciou_is_a_constant_to_the_gradient():
    a, b = random_boxes(40, 8), random_boxes(40, 9)
    gradient = np.asarray(jax.grad(lambda a: OVERLAPS["ciou"](a, b).sum())(a))

    def frozen(box, target, alpha):
        width, height = box[2] - box[0], box[3] - box[1]
        wanted = np.arctan(np.float64(target[2] - target[0]) / np.float64(target[3] - target[1]))
        v = 4 / np.pi**2 * (wanted - np.arctan(width / height)) ** 2
        return oracle("diou", box, target) - (
            alpha * v if alpha is not None else v / (1 - oracle("iou", box, target) + v)
        ), v

    for row in range(len(a)):
        box = np.float64(a[row])
        _, v = frozen(box, b[row], None)
        alpha = v / (1 - oracle("iou", box, b[row]) + v)
        for axis in range(4):
            step = np.zeros(4)
            step[axis] = 1e-6
            up, down = (frozen(box + sign * step, b[row], alpha)[0] for sign in (1, -1))
            assert abs((up - down) / 2e-6 - gradient[row, axis]) < 2e-5


HOSTILE = [-1e8, -1e4, -1.0, -1e-8, 0.0, 1e-8, 1e-4, 0.5, 1.0, 1e4, 1e8]


@pytest.mark.parametrize("name", OVERLAPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_stay_finite_and_bounded_for_any_boxes(name, dtype):
    """Identical, nested, inside out, without area, one-pixel, 1e-8 and 1e8: a million pairs."""
    rng = np.random.default_rng(10)
    a, b = (jnp.asarray(rng.choice(HOSTILE, (500_000, 4)), dtype) for _ in range(2))
    a, b = jnp.concatenate([a, a]), jnp.concatenate([b, a])
    loss, most = LOSSES[name]
    value = loss(a, b)
    gradients = jax.grad(lambda a, b: loss(a, b).sum(), (0, 1))(a, b)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all() and (value >= -1e-6).all() and (value <= most + 1e-5).all()
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-2e4, 2e4, width=32), min_size=8, max_size=8))
def test_bounds_hold_for_arbitrary_boxes(numbers):
    a, b = (np.array(numbers[i : i + 4], np.float32) for i in (0, 4))
    for name, (loss, most) in LOSSES.items():
        assert -1e-6 <= loss(a, b) <= most + 1e-5, name
