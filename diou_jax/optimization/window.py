"""The window: running means of the metrics over the updates taken since the last line of the log.

It is part of the training state, so that a resumed run logs the same as an uninterrupted one.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp


def empty_window(names: Sequence[str]) -> dict[str, jax.Array]:
    """The window before the first update: float32 scalars, by the names of the metrics and ``skipped``."""
    return {name: jnp.zeros((), jnp.float32) for name in (*names, "skipped")}


def extend_window(
    window: Mapping[str, jax.Array], metrics: Mapping[str, jax.Array], *, done: jax.Array, good: jax.Array
) -> dict[str, jax.Array]:
    """The window after one more update.

    Args:
      window: the means so far and ``skipped``, the number of skipped updates among them.
      metrics: the metrics of the update, float32 scalars; those without a place in the window are left out.
      done: int32 scalar, number of updates in the window so far; with 0 it starts anew.
      good: bool scalar, whether the update was taken.

    Returns:
      The means over the updates taken, NaN if none was, and ``skipped``.
    """
    skipped = jnp.where(done > 0, window["skipped"], 0.0)
    taken = done - skipped

    def mean(old, new):
        old = jnp.where(taken > 0, old, 0.0)
        nothing = jnp.where(taken > 0, old, jnp.nan)
        return jnp.where(good, (old * taken + new) / (taken + 1), nothing)

    means = {name: mean(old, metrics[name]) for name, old in window.items() if name != "skipped"}
    return means | {"skipped": skipped + ~good}
