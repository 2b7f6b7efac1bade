"""Golden file: losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow

from diou_jax.boxes import MAX_LOG_RATIO, decode
from diou_jax.errors import UserError
from diou_jax.losses import (
    BOX_LOSSES,
    box_loss,
    ciou_loss,
    diou_loss,
    giou_loss,
    iou_loss,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)

NAMES = ["smooth_l1", "iou", "giou", "diou", "ciou"]


def reduced(data, case, loss, **options):
    """The original's reduction over the class-expanded layout, of our loss of the true class's columns."""
    labels = data[f"{case}/labels"]
    columns = 4 * labels[:, None] + np.arange(4)
    targets = np.take_along_axis(data[f"{case}/bbox_targets"], columns, 1)
    weight = (data[f"{case}/inside"] * data[f"{case}/outside"]).sum(1) / 4

    def total(predicted):
        return (loss(jnp.take_along_axis(predicted, columns, 1), targets, **options) * weight).sum() / len(labels)

    return jax.jit(jax.value_and_grad(total))(jnp.asarray(data[f"{case}/bbox_pred"]))


@pytest.mark.parametrize("case", ["case0", "case1"])
@pytest.mark.parametrize("name", [*NAMES, "smooth_l1_beta_1_9"])
def test_values_and_gradients_equal_the_original(golden, case, name):
    data = golden("losses.npz")
    loss, options = (BOX_LOSSES["sl1"], {"beta": 1 / 9}) if "beta" in name else (BOX_LOSSES[name], {})
    value, gradient = reduced(data, case, loss, **options)
    np.testing.assert_allclose(value, data[f"{case}/loss_{name}"], rtol=1e-6)
    wanted = data[f"{case}/grad_{name}"]
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("name", NAMES[1:])
def test_values_and_gradients_equal_the_original_under_other_reg_weights(golden, name):
    data = golden("losses.npz")
    value, gradient = reduced(data, "case0", BOX_LOSSES[name], reg_weights=(1.0, 1.0, 1.0, 1.0))
    wanted, wanted_gradient = (data[f"case0/unit_weights/{kind}_{name}"] for kind in ("loss", "grad"))
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-5, atol=1e-6 * np.abs(wanted_gradient).max())


def test_the_default_weights_are_the_originals(golden):
    weights = golden("losses.npz")["transform_weights"]
    deltas = np.random.default_rng(4).normal(size=(9, 4)).astype(np.float32)
    for name in NAMES:
        default, stated = (
            BOX_LOSSES[name](deltas, 0 * deltas),
            BOX_LOSSES[name](deltas, 0 * deltas, reg_weights=weights),
        )
        np.testing.assert_array_equal(default, stated)


def test_the_limit_of_growth_is_the_originals(golden):
    assert golden("losses.npz")["bbox_xform_clip_f64"] == pytest.approx(MAX_LOG_RATIO, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_perfect_deltas_cost_nothing_whatever_their_size(name):
    """The original's CIoU is NaN where the boxes are identical and large: 0 / 0."""
    deltas = np.random.default_rng(0).normal(0, 3, (1000, 4)).astype(np.float32)
    value = BOX_LOSSES[name](deltas, deltas)
    np.testing.assert_allclose(value, 0, atol=3e-4)
    assert np.isfinite(jax.jit(jax.grad(lambda d: BOX_LOSSES[name](d, deltas).sum()))(deltas)).all()


# With zeros the box stays about the origin, where the smallest sizes survive rounding.
MAGNITUDES = [0.0] + [sign * 10.0 ** (power / 4) for power in range(-32, 33) for sign in (-1, 1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
@pytest.mark.parametrize("reg_weights", [(10.0, 10.0, 5.0, 5.0), slow((1.0, 1.0, 1.0, 1.0))])
def test_values_and_gradients_stay_finite_for_any_deltas(name, dtype, reg_weights):
    rng = np.random.default_rng(1)
    deltas, targets = (
        jnp.asarray(np.where(rng.random((100_000, 4)) < 0.3, 0, rng.choice(MAGNITUDES, (100_000, 4))), dtype)
        for _ in range(2)
    )
    function = jax.jit(functools.partial(BOX_LOSSES[name], reg_weights=reg_weights))
    loss = function(deltas, targets)
    gradient = jax.jit(jax.grad(lambda d: function(d, targets).sum()))(deltas)
    assert loss.shape == (100_000,) and loss.dtype == jnp.float32 and gradient.dtype == dtype
    assert np.isfinite(loss).all() and (loss >= -1e-6).all()
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
    upcast = function(deltas.astype(jnp.float32), targets.astype(jnp.float32))
    np.testing.assert_array_equal(loss, upcast)


@pytest.mark.parametrize("size", [-20.0, -60.0, -85.0])
def test_ciou_survives_predictions_whose_squared_size_vanishes(size):
    """The original divides by the height's square in the gradient of atan(w / h)."""
    deltas = jnp.array([[0, 0, 0, size], [0, 0, size, 0], [0, 0, size, size]])
    loss = functools.partial(BOX_LOSSES["ciou"], reg_weights=(1.0, 1.0, 1.0, 1.0))
    gradient = jax.jit(jax.grad(lambda d: loss(d, jnp.zeros((3, 4))).sum()))(deltas)
    assert np.isfinite(gradient).all()
    # Two empty-looking strips of a square: no overlap, v = 1/4, alpha = v / (1 + v).
    np.testing.assert_allclose(loss(deltas, jnp.zeros((3, 4)))[:2], 1 + 0.25 * 0.25 / 1.25, atol=1e-5)


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou"])
def test_the_family_measures_the_boxes_that_the_deltas_lead_to(name):
    rng = np.random.default_rng(5)
    deltas, targets = rng.normal(size=(2, 200, 4)).astype(np.float32)
    # A square: the deltas' unit box, enlarged. The last pixel is a whole one.
    reference, one = np.array([100, 50, 179, 129], np.float32), np.array([0, 0, 1, 1], np.float32)
    boxes, target_boxes = (decode(reference, d, weights=(10.0, 10.0, 5.0, 5.0)) + one for d in (deltas, targets))
    plain = {"iou": iou_loss, "giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}[name](boxes, target_boxes)
    np.testing.assert_allclose(BOX_LOSSES[name](deltas, targets), plain, atol=5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_of_one_roi_and_map(name):
    deltas = np.random.default_rng(2).normal(size=(7, 4)).astype(np.float32)
    loss = jax.jit(BOX_LOSSES[name])(deltas, deltas + 1)
    assert loss.shape == (7,)
    np.testing.assert_allclose(loss[2:3], BOX_LOSSES[name](deltas[2:3], deltas[2:3] + 1), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(BOX_LOSSES[name])(deltas, deltas + 1), loss, rtol=1e-5)
    assert BOX_LOSSES[name](deltas[:0], deltas[:0]).shape == (0,)


def test_smooth_l1_is_a_parabola_up_to_beta_and_a_line_beyond():
    deltas = jnp.array([[0.5, 0, 0, 0], [3, 0, 0, 0], [-3, 1, 0, 0]])
    np.testing.assert_allclose(BOX_LOSSES["smooth_l1"](deltas, 0 * deltas), [0.125, 2.5, 3.0])
    np.testing.assert_allclose(BOX_LOSSES["smooth_l1"](deltas, 0 * deltas, beta=2.0), [0.0625, 2.0, 2.25])


def test_smooth_l1_with_a_beta_of_0_is_l1():
    deltas = jnp.array([[0.5, 0, -2, 3]])
    loss = functools.partial(BOX_LOSSES["smooth_l1"], target_deltas=jnp.zeros((1, 4)), beta=0.0)
    value, gradient = jax.value_and_grad(lambda x: loss(x).sum())(deltas)
    assert value == 5.5
    np.testing.assert_array_equal(gradient, [[1, 0, -1, 1]])


def test_names():
    assert list(BOX_LOSSES) == ["smooth_l1", "sl1", "iou", "giou", "diou", "ciou"]
    assert box_loss("sl1") is box_loss("smooth_l1")
    with pytest.raises(UserError, match="unknown box loss 'l1'; there are smooth_l1, sl1, iou, giou, diou, ciou"):
        box_loss("l1")


def test_cross_entropies_equal_float64():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 20, (50, 6)).astype(np.float32)
    labels = rng.integers(0, 6, 50)
    exact = np.float64(logits)
    log_sum = np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1)) + exact.max(1)
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), log_sum - exact[np.arange(50), labels], atol=1e-5)
    ones = rng.integers(0, 2, (50, 6))
    np.testing.assert_allclose(
        sigmoid_cross_entropy(logits, ones),
        np.logaddexp(0, -exact) * ones + np.logaddexp(0, exact) * (1 - ones),
        atol=1e-5,
    )
    assert np.isfinite(sigmoid_cross_entropy(jnp.array([-1e30, 1e30]), jnp.array([1, 0]))).all()
