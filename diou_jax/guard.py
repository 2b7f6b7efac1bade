"""What keeps a loss or gradient that is not finite out of the weights, and remembers that there was one."""

import flax.struct
import jax
import jax.numpy as jnp

RECENT = 64


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


def is_finite(*trees) -> jax.Array:
    """Whether every value is, of floating arrays: a bool scalar. Values whose squares overflow in sum do not count."""
    leaves = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.isfinite(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves))


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
