"""Seals finished checkpoints with checksums, and sets aside those that have changed since or cannot be read."""

import contextlib
import json
import os
import pathlib
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import orbax.checkpoint as ocp
from absl import logging

from diou_jax.checkpoint.differences import stored_tree
from diou_jax.checkpoint.items import RAW, TRAINING, VARIABLES, abstract
from diou_jax.checkpoint.metadata_file import METADATA_FILE
from diou_jax.checkpoint.seal import damage, seal

# By default a call of orbax waits until all processes make it. With these options the first process calls alone.
ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="inspector")

PARTIAL = ".orbax-checkpoint-tmp"  # part of the name of a checkpoint's folder until it is complete


class Inspector:
    """Seals the checkpoints of a folder and finds damaged ones; the first of several processes does both alone.

    Nothing here waits for another process.

    Attributes:
      aside: the folder of damaged checkpoints.
    """

    def __init__(self, directory: pathlib.Path, *, writable: bool):
        """Takes the folder of the checkpoints, and whether damaged ones in it may be moved and sound ones sealed."""
        self._directory, self._writable = directory, writable
        self._seals, self.aside = directory.with_suffix(".sealed"), directory.with_suffix(".damaged")
        self._sealer = ThreadPoolExecutor(1)
        self._written = threading.Event()  # set when the last write has ended, successfully or not
        self._whole: set[int] = set()

    def seal_when_complete(self, step: int) -> None:
        """Seals a checkpoint, in the background, as soon as it is complete."""
        self._written = threading.Event()
        self._sealer.submit(self._seal_when_complete, step, self._written)

    def note_end_of_write(self) -> None:
        """Ends the wait for the last checkpoint, which is complete by now or never will be."""
        self._written.set()

    def forget(self, step: int) -> None:
        """Removes the seal of a checkpoint that is no longer there, or will be written anew."""
        self._whole.discard(step)
        if self._writable:
            with contextlib.suppress(OSError):
                self._seal_of(step).unlink()

    def close(self) -> None:
        """Waits until complete checkpoints are sealed."""
        self.note_end_of_write()
        self._sealer.shutdown()

    def is_whole(self, step: int) -> bool:
        """Whether a checkpoint is undamaged; a damaged one is named in the log and moved to `aside`."""
        if step in self._whole:
            return True
        problem, folder = self._damage(step), self._directory / str(step)
        if problem is None:
            self._whole.add(step)
            return True
        if not folder.is_dir():
            return False  # a run in progress has replaced the checkpoint by a newer one
        logging.error("checkpoint %s is damaged: %s", folder, problem)
        if self._writable:
            self.aside.mkdir(exist_ok=True)
            place = self.aside / f"{step}_{time.strftime('%Y%m%dT%H%M%S')}"
            os.replace(folder, place)
            self.forget(step)  # its seal would condemn a later checkpoint of the same step
            logging.error("it was moved to %s", place)
        return False

    def remove_partial(self, *, older_than: float = 0.0) -> None:
        """Removes remains of failed and killed writes, at least `older_than` seconds old; no write may be going on."""
        for folder in self._directory.glob(f"*{PARTIAL}*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime >= older_than:
                    shutil.rmtree(folder)

    def _seal_when_complete(self, step, written):
        folder = self._directory / str(step)
        # The folder gets its final name when it is complete.
        while not folder.is_dir() and not written.wait(0.05):
            pass
        if folder.is_dir():
            self._seal(step)

    def _seal(self, step):
        # If the checkpoint has been removed meanwhile, or the disk is full, it gets no seal.
        with contextlib.suppress(OSError):
            seal(self._directory / str(step), self._seal_of(step))
            for file in self._seals.glob("*.json"):
                if not (self._directory / file.stem).is_dir():
                    file.unlink(missing_ok=True)

    def _seal_of(self, step) -> pathlib.Path:
        return self._seals / f"{step}.json"

    def _damage(self, step) -> str | None:
        folder = self._directory / str(step)
        with contextlib.suppress(OSError, ValueError):
            return damage(folder, self._seal_of(step))
        # The process was killed before it wrote a seal, so that the checkpoint counts if it can be read.
        try:
            json.loads((folder / METADATA_FILE).read_text())
            for name in (VARIABLES, TRAINING, *([RAW] if (folder / RAW).is_dir() else [])):
                _read(folder / name)
        except Exception as error:
            return f"it cannot be read ({type(error).__name__})"
        if self._writable:
            self._seal(step)
        return None


def _read(folder: pathlib.Path) -> None:
    """Reads an item of a checkpoint as a whole, in this process alone."""
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=ALONE)
    like = abstract(stored_tree(handler.metadata(folder)))
    handler.restore(folder, args=ocp.args.StandardRestore(like))
