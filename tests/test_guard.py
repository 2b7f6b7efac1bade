"""An update that is not finite leaves the weights alone and is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.guard import RECENT, choose, count, is_finite, no_faults


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_bad_value_anywhere_is_seen(value, dtype):
    tree = {"a": jnp.ones((3, 4), dtype), "b": {"c": jnp.ones(5, dtype), "count": jnp.array(3)}}
    assert is_finite(tree)
    tree["b"]["c"] = tree["b"]["c"].at[2].set(value)
    assert not is_finite(tree)


def test_counters_go_on():
    new, old = {"w": jnp.ones(2), "count": jnp.array(4)}, {"w": jnp.zeros(2), "count": jnp.array(3)}
    chosen = choose(jnp.array(False), new, old)
    assert (chosen["w"] == 0).all() and chosen["count"] == 4
    assert (choose(jnp.array(True), new, old)["w"] == 1).all()
