"""The training state: everything that a run needs to go on."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax

from diou_jax.models.conv import AFFINE
from diou_jax.models.norms import STATISTICS
from diou_jax.optimization.ema import Ema, start_ema
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
      ema: the moving average of the parameters, or None.
      statistics: batch norm's running statistics, or None.
    """

    step: jax.Array
    params: dict
    affine: dict | None
    opt_state: optax.OptState
    window: dict[str, jax.Array]
    guard: Guard
    ema: Ema | None = None
    statistics: dict | None = None

    @property
    def variables(self) -> dict:
        """The variables of the network, with the parameters that the optimiser changes."""
        return _variables(self.params, self.affine, self.statistics)

    @property
    def averaged(self) -> dict:
        """The variables to evaluate: those with the moving average of the parameters if there is one."""
        return self.variables if self.ema is None else _variables(self.ema.params, self.affine, self.ema.statistics)


def _variables(params, affine, statistics):
    return {"params": params} | ({AFFINE: affine} if affine else {}) | ({STATISTICS: statistics} if statistics else {})


def create_state(
    variables: dict, optimizer: optax.GradientTransformation, loss_names: Sequence[str], *, ema_decay: float = 0.0
) -> TrainState:
    """The state before the first update; `loss_names` are `FasterRCNN.loss_names`, an `ema_decay` of 0 means no EMA."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        affine=variables.get(AFFINE),
        opt_state=optimizer.init(variables["params"]),
        window=empty_window((*loss_names, "grad_norm")),
        guard=no_faults(),
        ema=start_ema(variables["params"], ema_decay, variables.get(STATISTICS)),
        statistics=variables.get(STATISTICS),
    )
