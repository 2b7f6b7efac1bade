import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.optimization.ema import start_ema


def reference(start, parameters, decay):
    """The average in float64 by its definition."""
    average = np.float64(start)
    for taken, new in enumerate(parameters):
        keep = min(decay, (1 + taken) / (10 + taken))
        average = keep * average + (1 - keep) * np.float64(new)
    return average


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9998])
def test_it_is_the_weighted_mean_of_the_parameters(decay):
    walk = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32).cumsum(0)
    ema = start_ema({"w": jnp.asarray(walk[0])}, decay)
    update = jax.jit(lambda ema, params, taken: ema.updated(params, taken))
    for taken, new in enumerate(walk[1:]):
        ema = update(ema, {"w": jnp.asarray(new)}, jnp.int32(taken))
    np.testing.assert_allclose(ema.params["w"], reference(walk[0], walk[1:], decay), rtol=2e-6)


def test_after_the_warm_up_a_jump_is_forgotten_by_the_decay():
    ema = start_ema({"w": jnp.float32(1)}, 0.75)
    for _ in range(3):
        ema = ema.updated({"w": jnp.float32(0)}, jnp.int32(10**6))
    assert float(ema.params["w"]) == 0.75**3


def test_what_is_frozen_stays_to_the_last_bit():
    weights = jax.random.normal(jax.random.key(0), (1000,))
    ema = start_ema({"w": weights}, 0.999)
    for taken in range(50):
        ema = ema.updated({"w": weights}, jnp.int32(taken))
    assert np.asarray(ema.params["w"]).tobytes() == np.asarray(weights).tobytes()


def test_it_has_memory_of_its_own_and_none_if_switched_off():
    weights = {"w": jnp.ones(3)}
    jax.jit(lambda params: jax.tree.map(lambda x: x * 0, params), donate_argnums=0)(weights)
    assert start_ema({"w": jnp.ones(3)}, 0.0) is None
    weights = {"w": jnp.ones(3)}
    ema = start_ema(weights, 0.5)
    jax.block_until_ready(jax.jit(lambda params: jax.tree.map(lambda x: x * 0, params), donate_argnums=0)(weights))
    assert ema.params["w"].tolist() == [1, 1, 1]
