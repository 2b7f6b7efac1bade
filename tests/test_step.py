"""The compiled update with a made-up detector of one parameter, on two devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diou_jax.devices import AXIS, mean_over_devices, replicate, to_devices
from diou_jax.optimization.state import create_state
from diou_jax.structures import blank_batch
from diou_jax.training.step import bind_run, make_train_step, step_program

RATE, DECAY = 0.125, 0.75


def losses(variables, batch, keys):
    """Half the squared distance of the weights from the image's row, NaN for row 9."""
    row = batch.index.mean()
    loss = ((variables["params"]["fc"]["kernel"] - row) ** 2).mean() / 2 * jnp.where(row == 9, jnp.nan, 1.0)
    return loss, {"loss": loss}


def training_losses(variables, batch, keys):
    """As `losses`, with statistics that count minibatches, half a one for row 9."""
    loss, values = losses(variables, batch, keys)
    counted = {
        "norm": {"mean": variables["batch_stats"]["norm"]["mean"] + jnp.where(batch.index.mean() == 9, 0.5, 1.0)}
    }
    return loss, (values, counted)


DETECTOR = types.SimpleNamespace(training_losses=training_losses)


@pytest.fixture(scope="module")
def steps():
    """``steps(rows, ema_decay)``: the states after an update for each row, from weights of 1 and statistics of 0."""
    optimizer = optax.sgd(RATE)
    step = make_train_step(DETECTOR, optimizer, seed=0, iter_size=1, log_every=1)

    def run(rows, ema_decay):
        variables = {"params": {"fc": {"kernel": jnp.ones((4,))}}, "batch_stats": {"norm": {"mean": jnp.zeros(2)}}}
        state = replicate(create_state(variables, optimizer, ("loss",), ema_decay=ema_decay))
        states = []
        for row in rows:
            batch = jax.tree.map(lambda x: np.repeat(x, 2, 0), blank_batch(1, 32, 32))
            batch = batch.replace(index=np.full(2, row, batch.index.dtype))
            state, _ = step(state, next(to_devices([batch], ahead=0)))
            for leaf in jax.tree.leaves(state):
                assert len({np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards}) == 1
            states.append(jax.device_get(state))
        return states

    return run


def test_the_average_follows_every_update_and_leaves_out_the_skipped_ones(steps):
    states = steps([3, 9, 5, 9, 9, 2], DECAY)
    weight, average, taken, counted = 1.0, 1.0, 0, 0.0
    for state, row in zip(states, [3, 9, 5, 9, 9, 2], strict=True):
        if row != 9:
            weight -= RATE * (weight - row) / 4  # the mean over four weights
            keep = min(DECAY, (1 + taken) / (10 + taken))
            average, taken = keep * average + (1 - keep) * weight, taken + 1
            counted = keep * counted + (1 - keep) * taken
        np.testing.assert_allclose(state.params["fc"]["kernel"], weight, rtol=1e-6)
        np.testing.assert_allclose(state.averaged["params"]["fc"]["kernel"], average, rtol=1e-6)
        np.testing.assert_array_equal(state.statistics["norm"]["mean"], taken)  # a skipped update leaves them
        np.testing.assert_allclose(state.averaged["batch_stats"]["norm"]["mean"], counted, rtol=1e-6)
    assert int(states[-1].guard.total) == 3 and int(states[-1].step) == 6


def test_with_and_without_an_average_the_weights_are_the_same_to_the_last_bit(steps):
    one, other = steps([3, 5, 2], DECAY)[-1], steps([3, 5, 2], 0.0)[-1]
    assert other.ema is None and other.averaged == other.variables
    same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), one.replace(ema=None), other)
    assert all(jax.tree.leaves(same))


def test_a_window_of_another_length_begins_where_the_run_goes_on():
    """The first line has the mean of the updates since then; before, the updates of the older window counted, too."""
    optimizer = optax.sgd(RATE)
    detector = types.SimpleNamespace(training_losses=lambda *inputs: (losses(*inputs)[0], (losses(*inputs)[1], None)))
    state = replicate(create_state({"params": {"fc": {"kernel": jnp.ones((4,))}}}, optimizer, ("loss",)))

    def advance(state, rows, log_every, window_start=0):
        program = step_program(detector, optimizer, iter_size=1, log_every=log_every)
        step = bind_run(program, seed=0, window_start=window_start)
        found = []
        for row in rows:
            batch = jax.tree.map(lambda x: np.repeat(x, 2, 0), blank_batch(1, 32, 32))
            batch = batch.replace(index=np.full(2, row, batch.index.dtype))
            found.append(float(((state.params["fc"]["kernel"] - row) ** 2).mean() / 2))
            state, window = step(state, next(to_devices([batch], ahead=0)))
        return state, found, float(window["loss"])

    state, found, mean = advance(state, [3, 7, 2], log_every=2)
    assert mean == pytest.approx(found[-1])
    state, found, mean = advance(state, [4, 9, 6], log_every=8, window_start=3)
    assert mean == pytest.approx((found[0] + found[2]) / 2)
    # Stopped and started again with the same length, it goes on.
    state, more, mean = advance(state, [1, 5], log_every=8, window_start=3)
    assert mean == pytest.approx((found[0] + found[2] + sum(more)) / 4)
    state, found, mean = advance(state, [1], log_every=8, window_start=3)
    assert int(state.step) == 9 and mean == pytest.approx(found[0])


@pytest.mark.parametrize("devices", [1, 2])
def test_one_device_sums_nothing(devices):
    mean = jax.pmap(mean_over_devices, axis_name=AXIS, devices=jax.devices()[:devices])
    rows = np.float32([[1, 5], [3, 6]])[:devices]
    np.testing.assert_array_equal(mean(rows), np.broadcast_to(rows.mean(0), rows.shape))
    assert ("all_reduce" in mean.lower(rows).as_text()) == (devices > 1)
