"""One checkpoint on disk: orbax writes and reads its items and its metadata, which hold the number of its format."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from diou_jax.checkpoint.differences import differences
from diou_jax.checkpoint.first_format import from_first_format, to_first_format
from diou_jax.checkpoint.items import RAW, TRAINING, VARIABLES, items_of
from diou_jax.checkpoint.preservation import NewestAndBest
from diou_jax.errors import UserError
from diou_jax.optimization.state import TrainState

# The format decides the names of items and variables. A checkpoint without a number has format 1. A run with a moving
# average writes format 3, whose variables are the average; a version that knows no average would train it, and refuses
# format 3 instead.
FORMAT, FORMAT_WITH_EMA = 2, 3


def make_manager(directory: pathlib.Path, kept: NewestAndBest) -> ocp.CheckpointManager:
    """Orbax's manager of a folder; it makes the folder. `kept` decides which checkpoints stay."""
    return ocp.CheckpointManager(
        epath.Path(directory),
        options=ocp.CheckpointManagerOptions(preservation_policy=kept, create=True, enable_async_checkpointing=True),
        item_handlers={
            **{name: ocp.StandardCheckpointHandler() for name in (VARIABLES, TRAINING, RAW)},
            "metadata": ocp.JsonCheckpointHandler(),
        },
    )


def write(manager: ocp.CheckpointManager, step: int, state: TrainState, *, metadata: Mapping[str, Any]) -> None:
    """Copies a state to the host and starts to write it in the background, with JSON values as `metadata`."""
    items = items_of(state)
    metadata = {**metadata, "format": FORMAT_WITH_EMA if RAW in items else FORMAT}
    if jax.process_count() > 1:
        items = jax.tree.map(ocp.utils.fully_replicated_host_local_array_to_global_array, items)
    arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    manager.save(step, args=ocp.args.Composite(metadata=ocp.args.JsonSave(metadata), **arguments), force=True)


def read_metadata(manager: ocp.CheckpointManager, step: int) -> dict:
    """The metadata with which a checkpoint was written."""
    return {name: value for name, value in _all_metadata(manager, step).items() if name != "format"}


def read_items(manager: ocp.CheckpointManager, step: int, like: Mapping[str, Any]) -> dict:
    """Items of a checkpoint by name, with the structures, shapes and dtypes of `like`.

    Raises:
      UserError: if the checkpoint belongs to another network.
    """
    stored, is_first = manager.item_metadata(step), check_format(manager, step) == 1
    like = {name: to_first_format(item) if is_first else item for name, item in like.items()}
    for name, item in like.items():
        unequal = differences(stored.get(name) or {}, item)
        if unequal:
            raise UserError(
                f"{manager.directory / str(step)} does not fit this config's {name}: {'; '.join(unequal[:5])}"
                + (f" and {len(unequal) - 5} more" if len(unequal) > 5 else "")
            )
    arguments = {name: ocp.args.StandardRestore(item) for name, item in like.items()}
    found = manager.restore(step, args=ocp.args.Composite(**arguments))
    return {name: from_first_format(found[name]) if is_first else found[name] for name in like}


def check_format(manager: ocp.CheckpointManager, step: int) -> int:
    """The format of a checkpoint; raises UserError if this version does not know it."""
    number = _all_metadata(manager, step).get("format", 1)
    if number not in (1, FORMAT, FORMAT_WITH_EMA):
        raise UserError(
            f"{manager.directory / str(step)} is a checkpoint of format {number}, and this version of diou-jax reads "
            f"formats 1 to {FORMAT_WITH_EMA}; install the version that wrote it, or name another --workdir"
        )
    return number


def _all_metadata(manager, step) -> dict:
    return manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())).metadata
