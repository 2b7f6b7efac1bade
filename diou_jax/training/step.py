"""The compiled update."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.devices import AXIS, mean_over_devices
from diou_jax.optimization.guard import count, gradient_norm, is_sound, select
from diou_jax.optimization.state import TrainState
from diou_jax.optimization.window import extend_window
from diou_jax.programs import Programs
from diou_jax.structures import Batch


def make_train_step(
    detector: FasterRCNN,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    iter_size: int,
    log_every: int,
    guarded: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Programs:
    """``step(state, batch) -> (state, metrics)``: a `step_program`, which explains the arguments, with a seed."""
    program = step_program(
        detector, optimizer, iter_size=iter_size, log_every=log_every, guarded=guarded, devices=devices
    )
    return bind_run(program, seed=seed)


def bind_run(program: jax.stages.Wrapped, *, seed: int, window_start: int = 0) -> Programs:
    """A `step_program` with the arguments of a run: ``step(state, batch) -> (state, metrics)``.

    Seed and window start are arguments of the program, so that one compiled program on disk serves all runs.

    Args:
      program: the result of `step_program`.
      seed: seed of all sampling. Seed, step and an image's place in the batch determine every draw; the number of
        devices does not.
      window_start: number of updates done when the present value of `log_every` took effect.
    """
    seed_data = np.asarray(jax.random.key_data(jax.random.key(seed)))
    return Programs("training step", program, seed_data, np.int32(window_start))


def step_program(
    detector: FasterRCNN,
    optimizer: optax.GradientTransformation,
    *,
    iter_size: int,
    log_every: int,
    guarded: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> jax.stages.Wrapped:
    """The whole update as one function: ``step(state, batch, seed_data, window_start) -> (state, metrics)``.

    As in the original, each device normalises its own losses, and gradients are summed over `iter_size` minibatches and
    averaged over devices. If a loss or gradient is not finite on one device, the update is skipped on all. The state is
    donated; ``metrics`` are the state's window, since the last multiple of `log_every` or since `window_start`.

    Args:
      detector: network and rules.
      optimizer: the optimiser, which gets the averaged gradient.
      iter_size: SOLVER.ITER_SIZE; the batch's leading axis is devices, then iter_size times the device's images.
      log_every: length of the window of the metrics, in updates.
      guarded: whether the guard checks updates; False is for measuring its cost.
      devices: the devices to run on; None: all devices of all processes.
    """

    def minibatch_gradient(params, state, batch, keys):
        def loss(params):
            return detector.training_losses(state.replace(params=params).variables, batch, keys)

        (_, (metrics, statistics)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return gradient, metrics, statistics

    def step(state: TrainState, batch: Batch, seed_data: jax.Array, window_start: jax.Array):
        images = batch.image.shape[0]
        slots = jax.lax.axis_index(AXIS) * images + jnp.arange(images)
        key = jax.random.fold_in(jax.random.wrap_key_data(seed_data), state.step)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(slots)

        minibatches = jax.tree.map(lambda x: x.reshape(iter_size, -1, *x.shape[1:]), (batch, keys))
        if iter_size == 1:
            first = jax.tree.map(lambda x: x[0], minibatches)
            gradient, metrics, statistics = minibatch_gradient(state.params, state, *first)
        else:

            def accumulate(carry, minibatch):
                total, statistics = carry
                now = dataclasses.replace(state, statistics=statistics)
                gradient, metrics, statistics = minibatch_gradient(state.params, now, *minibatch)
                return (jax.tree.map(jnp.add, total, gradient), statistics), metrics

            zeros = jax.tree.map(jnp.zeros_like, state.params)
            (gradient, statistics), metrics = jax.lax.scan(accumulate, (zeros, state.statistics), minibatches)
            metrics = jax.tree.map(lambda x: x.mean(0), metrics)

        gradient, metrics = mean_over_devices((gradient, metrics))
        done = jnp.minimum(state.step % log_every, jnp.maximum(state.step - window_start, 0))
        return update(state, gradient, metrics, statistics, done)

    @jax.named_scope("optimiser")
    def update(state, gradient, metrics, statistics, done):
        metrics["grad_norm"] = gradient_norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params, guard, ema = optax.apply_updates(state.params, updates), state.guard, state.ema
        if ema is not None:
            ema = ema.updated(params, state.step - guard.total, statistics)
        good = jnp.array(True)
        if guarded:
            good = is_sound(metrics["loss"], metrics["grad_norm"])
            before = state.params, state.opt_state, state.ema, state.statistics
            params, opt_state, ema, statistics = select(good, (params, opt_state, ema, statistics), before)
            guard = count(guard, state.step, good)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            window=extend_window(state.window, metrics, done=done, good=good),
            guard=guard,
            ema=ema,
            statistics=statistics,
        )
        return state, state.window

    return jax.pmap(step, AXIS, in_axes=(None, 0, None, None), out_axes=None, devices=devices, donate_argnums=0)
