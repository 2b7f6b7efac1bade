"""Golden file: lr_schedule."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from diou_jax.errors import UserError
from diou_jax.optimization.optimizer import (
    OptimizerRules,
    make_optimizer,
    momentum_correction,
    parameter_group,
    rate_factor,
)
from diou_jax.optimization.schedules import Annealed, MultiStep, WarmUp

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


def test_a_decay_within_the_warm_up_holds_from_its_end_on():
    rate = schedule(0.02, (0, 5, 30), warm_up_iters=10, warm_up_method="constant")
    np.testing.assert_allclose([rate(step) for step in (5, 9, 10, 29, 30)], [0.02 / 3, 0.02 / 3, 2e-3, 2e-3, 2e-4])


def test_steps_beyond_int32_are_refused_where_the_linear_rule_may_have_made_them():
    for make, option in (
        (lambda step: schedule(0.1, (0, step)), "steps"),
        (lambda step: Annealed(0.1, "cosine", last=step, warm_up=WarmUp(5, 0.1, "linear")), "max_iter"),
        (lambda step: schedule(0.1, (0, 9), warm_up_iters=step), "warm_up_iters"),
    ):
        assert np.isfinite(make(2**31 - 1)(7))
        with pytest.raises(UserError, match=rf"solver\.{option}: step 2147483648 exceeds 2147483647, .*scale_with_dev"):
            make(2**31)


def half_cosine(done):
    return (1 + np.cos(np.pi * done)) / 2


CURVES = {"cosine": half_cosine, "linear": lambda done: 1 - done}


@pytest.mark.parametrize(("method", "iters"), [("linear", 500), ("constant", 500), ("linear", 0)])
@pytest.mark.parametrize("curve", CURVES)
def test_an_annealed_rate_rises_falls_and_ends_at_zero(curve, method, iters):
    """The closed form in float64, at every one of 20000 steps; the last digits of the small rates count, too."""
    base, last, factor = 0.02, 20000, 1 / 3
    rates = jax.jit(jax.vmap(Annealed(base, curve, last=last, warm_up=WarmUp(iters, factor, method))))(jnp.arange(last))
    step = np.arange(last, dtype=np.float64)
    warm = factor + (1 - factor) * step / iters if method == "linear" and iters else np.full(last, factor)
    done = (step - iters) / (last - iters)
    np.testing.assert_allclose(rates, base * np.where(step < iters, warm, CURVES[curve](done)), rtol=2e-6)
    assert (np.diff(rates[iters:]) <= 0).all() and 0 < rates[-1] < 2e-6
    assert Annealed(base, curve, last=last, warm_up=WarmUp(iters, factor, method))(last) == 0


def test_annealed_rates_are_those_of_optax():
    warm_up = WarmUp(50, 0.1, "linear")
    cosine = optax.warmup_cosine_decay_schedule(0.03, 0.3, warmup_steps=50, decay_steps=400)
    line = optax.join_schedules(
        [optax.linear_schedule(0.03, 0.3, 50), optax.linear_schedule(0.3, 0.0, 350)], boundaries=[50]
    )
    for curve, theirs in (("cosine", cosine), ("linear", line)):
        rates = jax.vmap(Annealed(0.3, curve, last=400, warm_up=warm_up))(jnp.arange(401))
        np.testing.assert_allclose(rates, jax.vmap(theirs)(jnp.arange(401)), rtol=1e-5, atol=1e-7)


def test_a_warm_up_longer_than_the_run_is_all_of_it():
    rates = jax.vmap(Annealed(1.0, "cosine", last=10, warm_up=WarmUp(100, 0.0, "linear")))(jnp.arange(10))
    np.testing.assert_allclose(rates, np.arange(10) / 100, rtol=1e-6)


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


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_adam_takes_the_decay_into_its_moments_and_adamw_beside_them(kind):
    """Kingma and Ba, 2015, algorithm 1, with torch's decay; Loshchilov and Hutter, 2019, algorithm 2.

    Biases have twice the learning rate and do not decay, nor do scales of a norm; a part of the backbone is slower.
    """
    rate = schedule(0.05, (0, 4), warm_up_iters=3)
    random = np.random.default_rng(0)
    paths = {  # factor of the rate, decay
        ("fc", "kernel"): (1, RULES.weight_decay),
        ("fc", "bias"): (2, 0.0),
        ("norm", "scale"): (1, 0.0),
        ("backbone", "res4_0", "kernel"): (0.5 * 0.8, RULES.weight_decay),
    }
    wanted = {path: random.normal(size=(3, 2)) for path in paths}
    moments = dict.fromkeys(wanted, (0.0, 0.0))
    params = traverse_util.unflatten_dict({path: jnp.float32(value) for path, value in wanted.items()})
    optimizer = optimizer_of(rate, type=kind, backbone_lr=0.5, layer_decay=0.8)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(6):
        gradient = {path: random.normal(size=(3, 2)) for path in paths}
        updates, state = update(
            traverse_util.unflatten_dict({path: jnp.float32(value) for path, value in gradient.items()}), state, params
        )
        params = optax.apply_updates(params, updates)
        for path, (factor, decay) in paths.items():
            g = gradient[path] + (decay * wanted[path] if kind == "Adam" else 0)
            first, second = moments[path]
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            moments[path] = first, second
            direction = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
            direction = direction + (decay * wanted[path] if kind == "AdamW" else 0)
            wanted[path] = wanted[path] - factor * float(rate(step)) * direction
            found = traverse_util.flatten_dict(params)[path]
            np.testing.assert_allclose(found, wanted[path], rtol=2e-5, atol=2e-6)


def test_adamw_is_optaxs():
    params = {"fc": {"kernel": jnp.linspace(-1, 1, 6)}}
    ours = optimizer_of(schedule(0.01, (0,), warm_up_iters=0), type="AdamW")
    theirs = optax.adamw(0.01, weight_decay=RULES.weight_decay)
    states = [one.init(params) for one in (ours, theirs)]
    for step in range(3):
        gradient = jax.tree.map(jnp.sin, jax.tree.map(functools.partial(jnp.add, step), params))
        found = [one.update(gradient, state, params) for one, state in zip((ours, theirs), states)]
        states = [state for _, state in found]
        np.testing.assert_allclose(*(updates["fc"]["kernel"] for updates, _ in found), rtol=1e-6)


@pytest.mark.parametrize(
    ("path", "factor"),
    [
        ("backbone/res5_2/conv1/kernel", 0.5),
        ("backbone/res4_0/conv1/norm/scale", 0.25),
        ("backbone/res2_0/shortcut/kernel", 0.0625),
        ("backbone/conv1/kernel", 0.03125),
        ("neck/output2/bias", 1.0),
        ("box_head/res5_0/kernel", 1.0),
    ],
)
def test_the_rate_falls_from_stage_to_stage(path, factor):
    assert rate_factor(path, rules=dataclasses.replace(RULES, backbone_lr=0.5, layer_decay=0.5)) == factor


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
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
        ("backbone/GroupNorm_0/scale", "norm"),  # of somebody else's backbone, as Flax names it
        ("backbone/normal/kernel", "weight"),
        ("frozen/kernel", "frozen"),
    ],
)
def test_groups(path, group):
    assert parameter_group(path, frozen) == group


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="there are SGD, Adam, AdamW"):
        optimizer_of(schedule(0.1, (0,)), type="sgdd")
    with pytest.raises(UserError, match="linear, constant"):
        schedule(0.1, (0,), warm_up_method="cubic")(jnp.int32(0))
