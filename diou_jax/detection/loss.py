"""Named losses, the parts of the total loss, and metrics."""

from collections.abc import Mapping
from typing import NamedTuple

import jax


class Loss(NamedTuple):
    """A loss or metric of a minibatch.

    Attributes:
      value: float32 scalar; a metric may have another shape and is then not logged.
      weight: weight of the loss in the total; None for a metric, which receives no gradient.
    """

    value: jax.Array
    weight: float | None = 1.0


def total(losses: Mapping[str, Loss]) -> jax.Array:
    """The weighted sum of the losses, in their order; float32 scalar."""
    parts = [loss.value if loss.weight == 1 else loss.weight * loss.value for loss in losses.values() if loss.weight]
    return sum(parts[1:], parts[0])


def values(losses: Mapping[str, Loss]) -> dict[str, jax.Array]:
    """The unweighted values by name."""
    return {
        name: loss.value if loss.weight is not None else jax.lax.stop_gradient(loss.value)
        for name, loss in losses.items()
    }
