"""An update that is not finite leaves the weights alone and is counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_optimizer import RULES

from diou_jax.configs import base
from diou_jax.optimization.guard import LARGEST_NORM, RECENT, ROW, count, gradient_norm, is_sound, no_faults, select
from diou_jax.optimization.optimizer import OptimizerRules, make_optimizer


def test_counts_and_the_ring_of_recent_ones():
    guard = no_faults()
    bad = [1, 2, 5, *range(10, 10 + RECENT)]
    for step in range(10 + RECENT):
        guard = jax.jit(count)(guard, step, jnp.array(step not in bad))
        if step == 2:
            assert int(guard.in_a_row) == 2 and sorted(guard.recent.tolist())[-2:] == [1, 2]
        if step == 6:
            assert int(guard.in_a_row) == 0 and int(guard.total) == 3
    assert int(guard.in_a_row) == RECENT and int(guard.total) == len(bad)
    assert set(guard.recent.tolist()) == set(bad[-RECENT:])


def test_the_norm_is_that_of_all_leaves_together():
    rng = np.random.default_rng(0)
    shapes = [(), (3,), (ROW,), (4, 3, 3, ROW), (ROW + 1,), (2, ROW // 2, 3)]
    gradient = [rng.normal(0, 10.0**power, shape).astype(np.float32) for power, shape in enumerate(shapes)]
    wanted = np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in gradient))
    assert jax.jit(gradient_norm)(gradient) == pytest.approx(wanted, rel=1e-6)
    for leaf in range(len(shapes)):
        alone = [x * (place == leaf) for place, x in enumerate(gradient)]
        assert gradient_norm(alone) == pytest.approx(np.linalg.norm(np.float64(gradient[leaf])), rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_one_bad_value_anywhere_is_seen(value):
    gradient = {"a": jnp.ones((3, 4)), "b": jnp.ones(5)}
    assert is_sound(jnp.float32(1), gradient_norm(gradient))
    gradient["b"] = gradient["b"].at[2].set(value)
    assert not is_sound(jnp.float32(1), gradient_norm(gradient))


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_bad_loss_is_seen(loss):
    assert not is_sound(jnp.float32(loss), jnp.float32(1))


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("decay", [False, True])
def test_what_is_sound_stays_finite(kind, decay):
    """The largest rate that a config may name, the largest gradients that pass, without friction: a million steps."""
    limits = {option.name: getattr(option.kind, "high", None) for option in base.OPTIONS}
    rate = limits["solver.base_lr"]
    rules = OptimizerRules(
        type=kind,
        momentum=limits["solver.momentum"],
        weight_decay=decay / rate,
        weight_decay_gn=0.0,
        bias_double_lr=True,
        bias_weight_decay=decay,
        scale_momentum=False,
        scale_momentum_threshold=1.1,
    )
    optimizer = make_optimizer(lambda _: jnp.float32(rate), frozen=lambda _: False, rules=rules)
    params = {"conv": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 0.7 * LARGEST_NORM), params)
    assert is_sound(jnp.float32(1), gradient_norm(gradient))

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    end = jax.jit(lambda carry: jax.lax.fori_loop(0, 1_000_000, step, carry))((params, optimizer.init(params)))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(end))


def test_counters_go_on():
    new, old = {"w": jnp.ones(2), "count": jnp.array(4)}, {"w": jnp.zeros(2), "count": jnp.array(3)}
    chosen = select(jnp.array(False), new, old)
    assert (chosen["w"] == 0).all() and chosen["count"] == 4
    assert (select(jnp.array(True), new, old)["w"] == 1).all()


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
@pytest.mark.parametrize("skipped", [0, 20])
def test_skipped_updates_advance_the_schedule_and_not_the_count_of_adams_means(kind, skipped):
    rules = dataclasses.replace(RULES, type=kind, weight_decay=0.0)
    optimizer = make_optimizer(lambda step: 1.0 + step, frozen=lambda _: False, rules=rules)
    params = {"conv": {"kernel": jnp.zeros(3)}}
    gradient = jax.tree.map(jnp.ones_like, params)
    state = optimizer.init(params)
    for _ in range(skipped):
        _, new = optimizer.update(jax.tree.map(lambda x: x * jnp.nan, gradient), state, params)
        state = select(jnp.array(False), new, state)
    updates, _ = optimizer.update(gradient, state, params)
    # Adam's first update is the learning rate, whatever the gradient.
    np.testing.assert_allclose(updates["conv"]["kernel"], -(1.0 + skipped), rtol=1e-4)
