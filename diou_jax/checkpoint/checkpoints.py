"""Checkpoints: orbax writes them asynchronously and atomically, and reads them back bit for bit."""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from diou_jax.checkpoint import storage
from diou_jax.checkpoint.differences import stored_tree
from diou_jax.checkpoint.inspector import Inspector
from diou_jax.checkpoint.items import RAW, VARIABLES, abstract, items_of, raw_of, state_of, with_raw
from diou_jax.checkpoint.metadata_file import stored_metadata
from diou_jax.checkpoint.preservation import NewestAndBest
from diou_jax.checkpoint.ranking import rank_checkpoints
from diou_jax.errors import Stopped, UserError
from diou_jax.optimization.state import TrainState

# A reader names a checkpoint by one of these words or by its step.
LAST, BEST = "last", "best"

# Orbax's threads outlive a failed write. After this many seconds none of them writes to its folder any more.
ABANDONED = 60

# Number of attempts to read checkpoints that a run in progress may replace meanwhile.
ATTEMPTS = 5


class Checkpoints:
    """The checkpoints of a work folder, `workdir`/checkpoints/STEP.

    A checkpoint has the items of `diou_jax.checkpoint.items`, each of which can be read alone, and does not depend on
    the number of devices. It is sealed with checksums in `workdir`/checkpoints.sealed/STEP.json as soon as it is
    complete; a checkpoint that has changed since, or cannot be read, does not count. This is a context manager: leaving
    it waits until checkpoints are written.

    Attributes:
      directory: the folder of the checkpoints.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        which: str = LAST,
        keep: int = 1,
        create: bool = True,
        strict: bool = True,
        keep_best: bool = True,
    ):
        """Opens the folder.

        Args:
          workdir: the work folder.
          which: the checkpoint to read: "last", "best" (see `best`), or its step.
          keep: number of newest checkpoints that are kept; the best one is kept besides.
          create: whether the caller owns the folder, and may make it, write to it and remove the remains of failed and
            killed writes. Others only read; for them a missing folder raises a UserError.
          strict: whether a checkpoint that cannot be written is an error; else it is a line in the log.
          keep_best: whether the best checkpoint is kept, also while none is evaluated.
        """
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._owner, self._strict, self._keep_best = create, strict, keep_best
        if not create and not self.directory.is_dir():
            raise UserError(_no_checkpoint(self.directory))
        if not re.fullmatch(f"{LAST}|{BEST}|[0-9]+", str(which)):
            raise UserError(f"checkpoint {which!r}: it must be best, last or the step of a checkpoint")
        self._which = which
        self._kept = NewestAndBest(keep)
        self._written: set[int] = set()
        self._inspector = Inspector(self.directory, writable=create)
        if create and jax.process_index() == 0:
            self._inspector.remove_partial()

    @functools.cached_property
    def _manager(self):
        """Orbax's manager; it is made at its first use, since it makes the folder."""
        return storage.make_manager(self.directory, self._kept)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and not issubclass(kind, (UserError, Stopped)) and jax.process_count() > 1:
            return  # another process may have died, and finishing a checkpoint would wait for it
        try:
            self.finish()
        except UserError as error:
            # An error that ends the run is more important than this one.
            if kind is None:
                raise
            logging.error("%s", error)
        finally:
            self._inspector.close()
            if "_manager" in vars(self):
                self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest undamaged checkpoint, or None; every process gets the same.

        A damaged checkpoint is named in the log and, by a process that may write, moved to
        `workdir`/checkpoints.damaged.

        Raises:
          UserError: if there are checkpoints, but all are damaged.
        """
        steps, aside = self.steps(), self._inspector.aside
        found = self._agreed(self._newest)
        if found != max(steps, default=None):
            self._manager.reload()
        if found is None and steps:
            raise UserError(
                f"none of the checkpoints in {self.directory} is whole; damaged ones are moved to {aside}; "
                "name another --workdir to start anew"
            )
        if found is None and self._owner and any(aside.glob("*")):
            raise UserError(
                f"{aside} holds damaged checkpoints and there is no other; name another --workdir to start anew"
            )
        return found

    def save(self, state: TrainState, step: int, metadata: Mapping[str, Any]) -> None:
        """Copies `state` to the host and writes it in the background; the caller may donate it right after.

        Args:
          state: the training state.
          step: number of updates done.
          metadata: JSON values.

        Raises:
          UserError: if this checkpoint or the one before could not be written.
        """
        self.finish()
        # The best checkpoint so far is deleted only after this one is complete.
        self._kept.best = self._best_with(step, metadata)
        if jax.process_index() == 0:
            # The remains of a failed write may fill the disk.
            self._inspector.remove_partial(older_than=ABANDONED)
            if not (self.directory / str(step)).is_dir():
                self._inspector.forget(step)  # a seal of this step belongs to a checkpoint that no longer exists
        with self._as_user_error():
            storage.write(self._manager, step, state, metadata=metadata)
            self._written.add(step)
        if jax.process_index() == 0:
            self._inspector.seal_when_complete(step)

    def raise_failure(self) -> None:
        """Raises UserError if writing a checkpoint has failed; never waits."""
        with self._as_user_error():
            self._manager.check_for_errors()

    def finish(self) -> None:
        """Waits until the last checkpoint is written; raises UserError if that fails."""
        if "_manager" in vars(self):
            with self._as_user_error():
                self._manager.wait_until_finished()
            self._inspector.note_end_of_write()

    def restore(self, like: TrainState) -> TrainState:
        """The state of the checkpoint `which`, with the structure, shapes and dtypes of `like`.

        Raises:
          UserError: if the checkpoint belongs to another network.
        """
        return state_of(self._read({name: abstract(item) for name, item in items_of(like).items()}), like)

    def restore_variables(self, like: Mapping, *, averaged: bool = True) -> dict:
        """The network variables of the checkpoint `which`, with the structure, shapes and dtypes of `like`.

        Args:
          like: the network's variables.
          averaged: in a run with a moving average: whether to read the average, or the parameters that the optimiser
            changes.

        Raises:
          UserError: if the checkpoint belongs to another network.
        """
        like = abstract(dict(like))
        if averaged or not self._of_chosen(self._has_raw):
            return self._read({VARIABLES: like})[VARIABLES]
        found = self._read({VARIABLES: like, RAW: raw_of(like)})
        return with_raw(found[VARIABLES], found[RAW])

    def stored_variables(self) -> dict:
        """As `restore_variables`, of any network."""
        like = self._of_chosen(lambda step: stored_tree(self._manager.item_metadata(step)[VARIABLES]))
        return self.restore_variables(like)

    def metadata(self) -> dict:
        """The metadata of the checkpoint `which`; raises UserError if there is none."""
        return self._of_chosen(lambda step: storage.read_metadata(self._manager, step))

    def steps(self) -> list[int]:
        """The steps of all checkpoints, damaged ones among them, ascending."""
        return sorted(self._manager.all_steps()) if self.directory.is_dir() else []

    def chosen(self) -> int | None:
        """The step of the checkpoint `which`, or None without any; every process gets the same.

        Raises:
          UserError: if there are checkpoints, but not this one, or it is damaged; the message lists those there are.
        """
        if self._which == LAST or not self.steps():
            return self.latest()
        if self._which == BEST:
            if (found := self.best()) is None:
                raise UserError(
                    f"{self.directory} has no best checkpoint, as none was evaluated during training, which test.every "
                    f"and checkpoint.best are for; {self._listed()}"
                )
            return found
        step = int(self._which)
        if self._agreed(lambda: step if step in self.steps() and self._inspector.is_whole(step) else None) is None:
            raise UserError(f"{self.directory} has no undamaged checkpoint of step {step}; {self._listed()}")
        return step

    def best(self) -> int | None:
        """The step of the best undamaged checkpoint, or None if none was evaluated; every process gets the same.

        The evaluations in their metadata decide, by the criterion of the newest one that names one.
        """
        return self._agreed(lambda: self._best_of(self._all_metadata()))

    def would_be_best(self, step: int, metadata: Mapping[str, Any]) -> bool:
        """Whether a checkpoint of a step with some metadata would be the best one; every process gets the same."""
        return self._best_with(step, metadata) == step

    def _best_of(self, known: Mapping[int, Mapping], *, new: int | None = None) -> int | None:
        """The best step of `known` metadata; a step that is `new` counts as whole."""
        order = rank_checkpoints(known)
        counted = self._written | {new}
        found = next((step for step in order if step in counted or self._inspector.is_whole(step)), None)
        if not all((self.directory / str(step)).is_dir() for step in known if step != new):
            self._manager.reload()  # damaged ones are set aside, and no longer count among the newest
        return found

    def _best_with(self, step, metadata) -> int | None:
        """The best step once a checkpoint with some metadata is written; None if the run keeps no best one.

        While none is evaluated, the best one of the earlier evaluations stays.
        """
        if not self._keep_best:
            return None
        return self._agreed(lambda: self._best_of({**self._all_metadata(), step: metadata}, new=step))

    def _newest(self) -> int | None:
        return next((step for step in reversed(self.steps()) if self._inspector.is_whole(step)), None)

    def _agreed(self, find) -> int | None:
        """The step, or None, that ``find()`` gives to the first process; every process gets it.

        The others wait here, so `find` must call nothing that waits for them: of the manager only `all_steps` and
        `reload`, and no method that reads or writes a checkpoint.
        """
        if self.directory.is_dir():
            _ = self._manager  # the processes wait for each other while they make it, so that all do it now
        found = self._settled(find) if jax.process_index() == 0 else None
        if jax.process_count() > 1:
            found = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if found is None else found)))
            found = None if found < 0 else found
        return found

    def _settled(self, find) -> int | None:
        """``find()``; a reader tries again if a run in progress has replaced checkpoints meanwhile."""
        for _ in range(ATTEMPTS):
            steps, found = self.steps(), find()
            if self._owner or all((self.directory / str(step)).is_dir() for step in steps):
                break
            self._manager.reload()
        return found

    def _all_metadata(self) -> dict[int, dict]:
        """The metadata of all checkpoints that can be read, by step."""
        found = {step: stored_metadata(self.directory / str(step)) for step in self.steps()}
        return {step: metadata for step, metadata in found.items() if metadata is not None}

    def _listed(self) -> str:
        steps = self.steps()
        if not steps:
            return "there is none"
        named = {steps[-1]: " (last)"}
        if (best := self.best()) is not None:
            named[best] = " (best, last)" if best == steps[-1] else " (best)"
        return f"there are {', '.join(f'{step}{named.get(step, str())}' for step in steps)}"

    def _has_raw(self, step) -> bool:
        return (self.directory / str(step) / RAW).is_dir()

    @contextlib.contextmanager
    def _as_user_error(self):
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            message = (
                f"a checkpoint in {self.directory} could not be written: {reason}; the older ones are as they were"
            )
            if self._strict:
                raise UserError(message) from error
            logging.error("%s", message)
            self._manager.reload()  # the manager has dropped the best checkpoint for one that was not written

    def _read(self, like: Mapping[str, Any]) -> dict:
        return self._of_chosen(lambda step: storage.read_items(self._manager, step, like))

    def _of_chosen(self, read):
        """``read(step)`` of the chosen checkpoint, tried again if a run in progress replaces it meanwhile."""
        for _ in range(ATTEMPTS):
            step = self.chosen()
            if step is None:
                raise UserError(_no_checkpoint(self.directory))
            try:
                storage.check_format(self._manager, step)  # an unknown format is refused before anything is read
                return read(step)
            except UserError:
                raise
            except Exception:
                if self._owner or (self.directory / str(step)).is_dir():
                    raise
                self._inspector.forget(step)
                self._manager.reload()
        raise UserError(f"the checkpoints in {self.directory} are replaced faster than they can be read")


def _no_checkpoint(directory: pathlib.Path) -> str:
    return f"there is no checkpoint in {directory}; train first, or name the folder of another run"
