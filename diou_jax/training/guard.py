"""What keeps a loss or gradient that is not finite out of the weights, and remembers that there was one."""

import flax.struct
import jax
import jax.numpy as jnp

RECENT = 64
# Of a gradient; squares of what is not much larger overflow.
LARGEST_NORM = 1e18
ROW = 512  # divides the layers that are large


@flax.struct.dataclass
class Guard:
    """Updates that were skipped; part of the training state.

    Attributes:
      in_a_row: int32 scalar, up to the last update.
      total: int32 scalar, of the whole run.
      recent: int32 (RECENT,), numbers of the last ones, from 0, in a ring; -1 where there is none.
    """

    in_a_row: jax.Array
    total: jax.Array
    recent: jax.Array


def no_faults() -> Guard:
    """The guard of a run that starts."""
    return Guard(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.full(RECENT, -1, jnp.int32))


def gradient_norm(gradient) -> jax.Array:
    """The root of the sum of the squares of a pytree of floats.

    Rows of all leaves are summed first, then their sums together. Leaf by leaf, GPUs would take two kernels for each.
    """
    sums = []
    for leaf in jax.tree.leaves(gradient):
        squares = jnp.square(leaf)
        # A leaf that makes no whole rows is small.
        sums.append(squares.reshape(-1, ROW).sum(1) if leaf.size % ROW == 0 else squares.ravel())
    # XLA would sum before it joins.
    return jnp.sqrt(jax.lax.optimization_barrier(jnp.concatenate(sums)).sum())


def is_sound(loss: jax.Array, gradient_norm: jax.Array) -> jax.Array:
    """Whether an update may be taken: a bool scalar.

    Known before the update is, so that the optimiser's pass over the weights chooses as it writes. A finite update
    follows: gradients below `LARGEST_NORM`, at rates that `configs/base.py` allows, carry no weight out of float32.
    """
    return jnp.isfinite(loss) & (gradient_norm < LARGEST_NORM)


def count(guard: Guard, step: jax.Array, good: jax.Array) -> Guard:
    """The guard after update number `step`, which was taken if `good`."""
    slot = jnp.where(good, RECENT, guard.total % RECENT)
    return Guard(
        in_a_row=jnp.where(good, 0, guard.in_a_row + 1),
        total=guard.total + ~good,
        recent=guard.recent.at[slot].set(step, mode="drop"),
    )


def choose(good: jax.Array, new, old):
    """The new tree if `good`, else the old one; its counters go on either way, as the schedule follows them."""
    return jax.tree.map(lambda n, o: jnp.where(good, n, o) if jnp.issubdtype(n.dtype, jnp.floating) else n, new, old)
