"""The items of a checkpoint: which part of a training state lies under which name, and the way back.

"variables" are those of the network: the only item that a detector needs. "training" is the rest of the state. With a
moving average "variables" are the average, and "raw" has the parameters that the optimiser changes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from diou_jax.models.conv import AFFINE
from diou_jax.models.norms import STATISTICS
from diou_jax.optimization.state import TrainState

VARIABLES, TRAINING, RAW = "variables", "training", "raw"


def items_of(state: TrainState) -> dict[str, dict]:
    """The items of a training state."""
    training = {"step": state.step, "opt_state": state.opt_state, "window": state.window, "guard": state.guard}
    items = {VARIABLES: state.averaged, TRAINING: training}
    return items | ({RAW: raw_of(state.variables)} if state.ema else {})


def state_of(items: Mapping[str, Any], like: TrainState) -> TrainState:
    """The training state with these items; `like` says whether it has a moving average."""
    variables, ema = items[VARIABLES], None
    if like.ema is not None:
        ema = dataclasses.replace(like.ema, params=variables["params"], statistics=variables.get(STATISTICS))
        variables = with_raw(variables, items[RAW])
    affine, statistics = variables.get(AFFINE), variables.get(STATISTICS)
    return TrainState(params=variables["params"], affine=affine, ema=ema, statistics=statistics, **items[TRAINING])


def raw_of(variables: Mapping[str, Any]) -> Any:
    """The item "raw": the parameters; with batch norm a dict of them and of the running statistics."""
    changing = {name: variables[name] for name in ("params", STATISTICS) if name in variables}
    return changing if STATISTICS in changing else changing["params"]


def with_raw(variables: Mapping[str, Any], raw: Any) -> dict[str, Any]:
    """`variables` with those of the item "raw" in the place of their averages."""
    return {**variables, **(raw if STATISTICS in variables else {"params": raw})}


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and the first device as the place, which orbax needs to restore a tree."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)
