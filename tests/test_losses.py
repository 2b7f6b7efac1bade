"""Golden file: losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.boxes import MAX_LOG_RATIO
from diou_jax.errors import UserError
from diou_jax.losses import BOX_LOSSES, box_loss, sigmoid_cross_entropy, softmax_cross_entropy

NAMES = ["smooth_l1", "iou", "giou", "diou", "ciou"]


def reduced(data, case, loss, **options):
    """The original's reduction over the class-expanded layout, of our loss of the true class's columns."""
    labels = data[f"{case}/labels"]
    columns = 4 * labels[:, None] + np.arange(4)
    targets = np.take_along_axis(data[f"{case}/bbox_targets"], columns, 1)
    weight = (data[f"{case}/inside"] * data[f"{case}/outside"]).sum(1) / 4

    def total(predicted):
        return (loss(jnp.take_along_axis(predicted, columns, 1), targets, **options) * weight).sum() / len(labels)

    return jax.value_and_grad(total)(jnp.asarray(data[f"{case}/bbox_pred"]))


@pytest.mark.parametrize("case", ["case0", "case1"])
@pytest.mark.parametrize("name", [*NAMES, "smooth_l1_beta_1_9"])
def test_values_and_gradients_equal_the_original(golden, case, name):
    data = golden("losses.npz")
    loss, options = (BOX_LOSSES["sl1"], {"beta": 1 / 9}) if "beta" in name else (BOX_LOSSES[name], {})
    value, gradient = reduced(data, case, loss, **options)
    np.testing.assert_allclose(value, data[f"{case}/loss_{name}"], rtol=1e-6)
    wanted = data[f"{case}/grad_{name}"]
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(gradient, wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("name", NAMES[1:])
def test_other_reg_weights(golden, name):
    data = golden("losses.npz")
    value, gradient = reduced(data, "case0", BOX_LOSSES[name], reg_weights=(1.0, 1.0, 1.0, 1.0))
    wanted, wanted_gradient = (data[f"case0/unit_weights/{kind}_{name}"] for kind in ("loss", "grad"))
    if np.isfinite(wanted):
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    known = np.isfinite(wanted_gradient)
    np.testing.assert_allclose(
        np.asarray(gradient)[known], wanted_gradient[known], atol=1e-6 * np.abs(wanted_gradient[known]).max()
    )


def test_the_limit_of_growth_is_the_originals(golden):
    assert golden("losses.npz")["bbox_xform_clip_f64"] == pytest.approx(MAX_LOG_RATIO, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_perfect_deltas_cost_nothing_whatever_their_size(name):
    """The original's CIoU is NaN where the boxes are identical and large: 0 / 0."""
    deltas = np.random.default_rng(0).normal(0, 3, (1000, 4)).astype(np.float32)
    value, gradient = jax.vmap(jax.value_and_grad(lambda d, t: BOX_LOSSES[name](d[None], t[None])[0]))(deltas, deltas)
    np.testing.assert_allclose(value, 0, atol=3e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_stay_finite_for_any_deltas(name, dtype):
    rng = np.random.default_rng(1)
    values = [-1e8, -1e4, -500.0, -20.0, -1.0, 0.0, 1e-8, 1.0, 20.0, 500.0, 1e4, 1e8]
    deltas, targets = (jnp.asarray(rng.choice(values, (200_000, 4)), dtype) for _ in range(2))
    loss = BOX_LOSSES[name](deltas, targets)
    gradient = jax.grad(lambda d: BOX_LOSSES[name](d, targets).sum())(deltas)
    assert loss.shape == (200_000,) and loss.dtype == jnp.float32
    assert np.isfinite(loss).all() and (loss >= -1e-6).all()
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_jitted_and_unreduced(name):
    deltas = np.random.default_rng(2).normal(size=(7, 4)).astype(np.float32)
    loss = jax.jit(BOX_LOSSES[name])(deltas, deltas + 1)
    assert loss.shape == (7,)
    np.testing.assert_allclose(loss[2:3], BOX_LOSSES[name](deltas[2:3], deltas[2:3] + 1), rtol=1e-5)


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
