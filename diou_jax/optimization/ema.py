"""The exponential moving average of the parameters, which a run evaluates and exports."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

# The decay after t updates is at most (1 + t) / (WARM_UP + t), as in TensorFlow's ExponentialMovingAverage: the average
# then forgets the random start soon, and a short run is not dominated by it.
WARM_UP = 10


@flax.struct.dataclass
class Ema:
    """An average of the parameters over the updates of a run; part of the training state.

    Attributes:
      params: the average, a pytree as the parameters.
      decay: share of the average that an update keeps, in [0, 1), once the warm-up is over; a constant of the program.
      statistics: the average of batch norm's running statistics, or None. Those of the parameters themselves belong to
        other activations than the averaged parameters have.
    """

    params: dict
    decay: float = flax.struct.field(pytree_node=False)
    statistics: dict | None = None

    def updated(self, params: dict, taken: jax.Array, statistics: dict | None = None) -> "Ema":
        """The average after an update.

        Args:
          params: the parameters after the update.
          taken: int32 scalar, number of updates taken before this one.
          statistics: batch norm's running statistics after the update, or None.
        """
        taken = taken.astype(jnp.float32)
        share = 1 - jnp.minimum(self.decay, (1 + taken) / (WARM_UP + taken))
        # In this form a frozen parameter, equal to its average, stays so to the last bit.
        params, statistics = jax.tree.map(
            lambda old, new: old + share * (new - old), (self.params, self.statistics), (params, statistics)
        )
        return dataclasses.replace(self, params=params, statistics=statistics)


def start_ema(params: dict, decay: float, statistics: dict | None = None) -> Ema | None:
    """The average before the first update, equal to the parameters; None for a `decay` of 0, which switches it off."""
    # A copy, since the compiled step may not get the same memory twice.
    params, statistics = jax.tree.map(jnp.copy, (params, statistics))
    return Ema(params, decay, statistics) if decay else None
