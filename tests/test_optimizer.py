"""Golden file: lr_schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diou_jax.errors import UserError
from diou_jax.optimization.optimizer import OptimizerRules, make_optimizer, momentum_correction, parameter_group
from diou_jax.optimization.schedules import MultiStep, WarmUp

RULES = OptimizerRules(
    type="SGD",
    momentum=0.9,
    weight_decay=0.01,
    weight_decay_gn=0.0,
    bias_double_lr=True,
    bias_weight_decay=False,
    scale_momentum=True,
    scale_momentum_threshold=1.1,
)


def frozen(path):
    return path.startswith("frozen")


def optimizer_of(rate, **changes):
    return make_optimizer(rate, frozen=frozen, rules=dataclasses.replace(RULES, **changes))


def schedule(base_lr, steps, *, warm_up_iters=500, warm_up_method="linear"):
    return MultiStep(base_lr, steps, gamma=0.1, warm_up=WarmUp(warm_up_iters, 1 / 3, warm_up_method))


@pytest.mark.parametrize(
    ("name", "base_lr", "steps"), [("1x", 0.02, (0, 60000, 80000)), ("bs2", 0.0025, (0, 480000, 640000))]
)
def test_rates_equal_the_original(golden, name, base_lr, steps):
    data = golden("lr_schedule.npz")
    rates = jax.jit(jax.vmap(schedule(base_lr, steps)))(jnp.asarray(data[f"{name}_steps"], jnp.int32))
    np.testing.assert_allclose(rates, data[f"{name}_lr_weights_f64"], rtol=3e-7)
    np.testing.assert_allclose(2 * rates, data[f"{name}_lr_bias_f64"], rtol=3e-7)


def test_momentum_is_corrected_at_each_decay_and_not_in_the_warm_up(golden):
    rate = schedule(0.02, (0, 60000, 80000))
    factors = jax.jit(jax.vmap(lambda step: momentum_correction(step, rate, threshold=1.1)))(jnp.arange(90000))
    corrected = np.flatnonzero(np.asarray(factors) != 1)
    np.testing.assert_array_equal(corrected, [60000, 80000])
    np.testing.assert_allclose(np.asarray(factors)[corrected], 0.1, rtol=1e-6)
    whole = golden("lr_schedule.npz")["1x_momentum_multiplier_after"]  # of buffers that started at 1
    np.testing.assert_allclose(np.prod(factors), whole, rtol=1e-6)


def test_three_groups_follow_the_originals_trajectories(golden):
    data = golden("lr_schedule.npz")
    rate = schedule(0.05, (0, 8, 11), warm_up_iters=4)
    names = {"w": ("fc", "kernel"), "b": ("fc", "bias"), "gn": ("norm", "scale")}
    params = {"fc": {"kernel": data["sgd/w_init"], "bias": data["sgd/b_init"]}, "norm": {"scale": data["sgd/gn_init"]}}
    params = jax.tree.map(jnp.asarray, params)
    optimizer = optimizer_of(rate)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(len(data["sgd/lr_f64"])):
        gradient = {"fc": {"kernel": data["sgd/w_grads"][step], "bias": data["sgd/b_grads"][step]}}
        gradient["norm"] = {"scale": data["sgd/gn_grads"][step]}
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for short, (module, leaf) in names.items():
            np.testing.assert_allclose(
                params[module][leaf], data[f"sgd/{short}_trajectory"][step], rtol=1e-6, atol=1e-6
            )
            buffers = [
                value
                for path, value in jax.tree_util.tree_leaves_with_path(state)
                if "momentum" in jax.tree_util.keystr(path)
                and f"'{module}'" in jax.tree_util.keystr(path)
                and f"'{leaf}'" in jax.tree_util.keystr(path)
            ]
            assert len(buffers) == 1
            np.testing.assert_allclose(buffers[0], data[f"sgd/{short}_momentum_after_step"][step], rtol=2e-6, atol=2e-6)


def test_adam_takes_the_decay_into_its_moments_and_doubles_the_rate_of_biases():
    """Kingma and Ba, 2015, algorithm 1, with torch's decay: part of the gradient, unlike AdamW's."""
    rate = schedule(0.05, (0, 4), warm_up_iters=3)
    random = np.random.default_rng(0)
    params = {"fc": {"kernel": random.normal(size=(3, 2)), "bias": random.normal(size=2)}}
    wanted = {name: value.copy() for name, value in params["fc"].items()}
    moments = dict.fromkeys(wanted, (0.0, 0.0))
    params = jax.tree.map(jnp.float32, params)
    optimizer = optimizer_of(rate, type="Adam")
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(6):
        gradient = {name: random.normal(size=value.shape) for name, value in wanted.items()}
        updates, state = update({"fc": jax.tree.map(jnp.float32, gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        for name, factor, decay in (("kernel", 1, RULES.weight_decay), ("bias", 2, 0.0)):
            g = gradient[name] + decay * wanted[name]
            first, second = moments[name]
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            moments[name] = first, second
            direction = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
            wanted[name] = wanted[name] - factor * float(rate(step)) * direction
            np.testing.assert_allclose(params["fc"][name], wanted[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_frozen_parameters_stay_and_take_no_memory(kind):
    params = {"frozen": {"kernel": jnp.ones(1000)}, "free": {"kernel": jnp.ones(3)}}
    optimizer = optimizer_of(schedule(0.1, (0,)), type=kind)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    assert (updates["frozen"]["kernel"] == 0).all()
    assert (updates["free"]["kernel"] < 0).all()
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 100


def test_clipping_limits_the_norm_of_the_whole_gradient():
    params = {"a": {"kernel": jnp.zeros(4)}, "b": {"kernel": jnp.zeros(4)}}
    optimizer = optimizer_of(schedule(1.0, (0,), warm_up_iters=0), weight_decay=0.0, clip_norm=1.0)
    updates, _ = optimizer.update(jax.tree.map(lambda x: x + 100, params), optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("backbone/res3_0/conv1/kernel", "weight"),
        ("neck/output2/bias", "bias"),
        ("backbone/res3_0/conv1/norm/scale", "norm"),
        ("backbone/res3_0/conv1/norm/bias", "bias"),
        ("frozen/kernel", "frozen"),
    ],
)
def test_groups(path, group):
    assert parameter_group(path, frozen) == group


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="there are SGD, Adam"):
        optimizer_of(schedule(0.1, (0,)), type="sgdd")
    with pytest.raises(UserError, match="linear, constant"):
        schedule(0.1, (0,), warm_up_method="cubic")(jnp.int32(0))
