"""Checkpoints: written by orbax, asynchronously and atomically, and read back bit for bit."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from diou_jax.errors import UserError
from diou_jax.train_step import TrainState


class Checkpoints:
    """The checkpoints of a work folder, `workdir`/checkpoints/STEP.

    Network variables and what only training needs are separate items, so that a detector can be read without knowing
    its optimiser. A checkpoint does not depend on the number of devices. A context manager: leaving it waits for what
    is being written.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep: int = 1, create: bool = True):
        """Opens the folder; unless `create`, a UserError says that there is none."""
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        if not create and not self.directory.is_dir():
            raise UserError(_nothing(self.directory))
        self._manager = ocp.CheckpointManager(
            epath.Path(self.directory),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True),
            item_handlers={
                "variables": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "metadata": ocp.JsonCheckpointHandler(),
            },
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, metadata: Mapping[str, Any]) -> None:
        """Copies `state` to the host and writes it in the background; the caller may donate it right after.

        Args:
          state: as training has it.
          step: updates done.
          metadata: JSON values.
        """
        variables, training = _split(state)
        if jax.process_count() > 1:
            to_global = ocp.utils.fully_replicated_host_local_array_to_global_array
            variables, training = jax.tree.map(to_global, (variables, training))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                training=ocp.args.StandardSave(training),
                metadata=ocp.args.JsonSave(dict(metadata)),
            ),
            force=True,
        )

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the structure, shapes and dtypes of `like`.

        Raises:
          UserError: the checkpoint is of another network.
        """
        variables, training = _split(like)
        found = self._read(variables=_abstract(variables), training=_abstract(training))
        return TrainState(params=found.variables["params"], affine=found.variables.get("affine"), **found.training)

    def restore_variables(self, like: Mapping) -> dict:
        """The newest network variables, with the structure, shapes and dtypes of `like`; raises UserError likewise."""
        return self._read(variables=_abstract(dict(like))).variables

    def stored_variables(self) -> dict:
        """The newest network variables, whatever network they are of; raises UserError where there are none."""
        if self.latest() is None:
            raise UserError(_nothing(self.directory))
        stored = self._manager.item_metadata(self.latest())["variables"]
        return self.restore_variables(getattr(stored, "tree", stored))

    def metadata(self) -> dict:
        """The newest checkpoint's."""
        return self._manager.restore(self.latest(), args=ocp.args.Composite(metadata=ocp.args.JsonRestore())).metadata

    def _read(self, **items):
        step = self.latest()
        if step is None:
            raise UserError(_nothing(self.directory))
        stored = self._manager.item_metadata(step)
        for name, like in items.items():
            differences = _differences(stored[name], like)
            if differences:
                raise UserError(
                    f"{self.directory / str(step)} does not fit this config's {name}: {'; '.join(differences[:5])}"
                    + (f" and {len(differences) - 5} more" if len(differences) > 5 else "")
                )
        return self._manager.restore(
            step,
            args=ocp.args.Composite(**{name: ocp.args.StandardRestore(like) for name, like in items.items()}),
        )


def _nothing(directory: pathlib.Path) -> str:
    return f"there is no checkpoint in {directory}; train first, or name another --workdir"


def _differences(stored, like) -> list[str]:
    """What distinguishes two trees of arrays, leaf by leaf. Another dtype counts: orbax would cast without a word."""

    def kinds(tree):
        leaves = jax.tree_util.tree_leaves_with_path(getattr(tree, "tree", tree))
        return {"/".join(_key(key) for key in path): f"{leaf.dtype} {tuple(leaf.shape)}" for path, leaf in leaves}

    stored, like = kinds(stored), kinds(like)
    return [
        f"{name} is {stored.get(name, 'absent')} there and {like.get(name, 'absent')} here"
        for name in sorted(stored.keys() | like.keys())
        if stored.get(name) != like.get(name)
    ]


def _key(key) -> str:
    return str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)))


def _split(state: TrainState) -> tuple[dict, dict]:
    training = {"step": state.step, "opt_state": state.opt_state, "window": state.window, "guard": state.guard}
    return state.variables, training


def _abstract(tree):
    """What orbax restores by: shapes, dtypes and a place, the first device."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)
