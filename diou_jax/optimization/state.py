"""The training state: everything that a run needs to go on."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax

from diou_jax.optimization.guard import Guard, no_faults
from diou_jax.optimization.window import empty_window


@flax.struct.dataclass
class TrainState:
    """An unstacked pytree, the same on every device.

    Attributes:
      step: int32 scalar, number of updates done.
      params: the parameters that the optimiser may change.
      affine: the frozen affine layers, or None.
      opt_state: the state of the optimiser.
      window: float32 scalars, running means of the metrics since the last line of the log; see `window.py`.
      guard: the skipped updates.
    """

    step: jax.Array
    params: dict
    affine: dict | None
    opt_state: optax.OptState
    window: dict[str, jax.Array]
    guard: Guard

    @property
    def variables(self) -> dict:
        """The variables of the network."""
        return {"params": self.params} | ({"affine": self.affine} if self.affine else {})


def create_state(variables: dict, optimizer: optax.GradientTransformation, loss_names: Sequence[str]) -> TrainState:
    """The state before the first update; `loss_names` are `FasterRCNN.loss_names`."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        affine=variables.get("affine"),
        opt_state=optimizer.init(variables["params"]),
        window=empty_window((*loss_names, "grad_norm")),
        guard=no_faults(),
    )
