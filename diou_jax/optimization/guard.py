"""The guard skips updates whose loss or gradient is not finite, and counts them."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

RECENT = 64
# Largest accepted norm of a gradient; its square must not overflow float32.
LARGEST_NORM = 1e18
ROW = 512  # divides the sizes of all large parameters


@flax.struct.dataclass
class Guard:
    """The skipped updates; part of the training state.

    Attributes:
      in_a_row: int32 scalar, number of skipped updates in a row, up to the last update.
      total: int32 scalar, number of skipped updates of the whole run.
      recent: int32 (RECENT,), a ring of the last skipped updates, numbered from 0; -1 in unused places.
    """

    in_a_row: jax.Array
    total: jax.Array
    recent: jax.Array


def no_faults() -> Guard:
    """The guard of a run that starts."""
    return Guard(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.full(RECENT, -1, jnp.int32))


def gradient_norm(gradient) -> jax.Array:
    """The Euclidean norm of a pytree of floats.

    Rows of all leaves are summed first, then the sums of rows together. A GPU would need two kernels for each leaf if
    leaves were summed one by one.
    """
    sums = []
    for leaf in jax.tree.leaves(gradient):
        squares = jnp.square(leaf)
        # Sizes that ROW does not divide occur in small leaves only, whose squares need no sum here.
        sums.append(squares.reshape(-1, ROW).sum(1) if leaf.size % ROW == 0 else squares.ravel())
    # Without the barrier XLA would sum each leaf before it concatenates.
    return jnp.sqrt(jax.lax.optimization_barrier(jnp.concatenate(sums)).sum())


def is_sound(loss: jax.Array, gradient_norm: jax.Array) -> jax.Array:
    """Whether an update may be taken: a bool scalar.

    It is known before the update is computed, so that the optimiser chooses between old and new weights while it writes
    them. The update is then finite: gradients below `LARGEST_NORM`, at learning rates that `configs/base.py` allows,
    keep weights within float32.
    """
    return jnp.isfinite(loss) & (gradient_norm < LARGEST_NORM)


def count(guard: Guard, step: jax.Array, good: jax.Array) -> Guard:
    """The guard after the update with number `step`, which was taken if `good`."""
    slot = jnp.where(good, RECENT, guard.total % RECENT)
    return Guard(
        in_a_row=jnp.where(good, 0, guard.in_a_row + 1),
        total=guard.total + ~good,
        recent=guard.recent.at[slot].set(step, mode="drop"),
    )


def select(good: jax.Array, new, old):
    """The new tree if `good`, else the old one, but for the counters of the schedule.

    Counters, which are the integers, go on with the state's step, as the learning rate does. Adam's is the exception:
    it says how many gradients its means hold, and if it counted those that were not taken, the means would no longer be
    corrected for their start at 0, and the next updates would be too small.
    """

    def choose(new, old):
        return jnp.where(good, new, old)

    def part(new, old):
        if _is_adam(new):
            return jax.tree.map(choose, new, old)
        return choose(new, old) if jnp.issubdtype(new.dtype, jnp.floating) else new

    return jax.tree.map(part, new, old, is_leaf=_is_adam)


def _is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)
