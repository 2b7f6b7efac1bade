"""Experiment trackers: services that keep the curves, config and pictures of many runs side by side.

A tracker is a service that may be slow, unreachable or full. It is called from a thread of its own, in the order of the
calls; a call that fails is named once and left out, and nothing here makes a run wait or ends it.
"""

import dataclasses
import importlib.util
import json
import pathlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from absl import logging
from PIL import Image

from diou_jax.errors import UserError
from diou_jax.files import replacing

IDS_FILE = "trackers.json"

WAITING = 10_000  # calls that may wait for a tracker


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker shows it.

    Attributes:
      folder: the run's folder, whose name is that of the run and which keeps the run's id for when it goes on.
      config: values of the options by dotted name.
    """

    folder: pathlib.Path
    config: Mapping[str, Any]

    def id_in(self, service: str) -> str | None:
        """The id under which this run has been tracked by a service before, or None."""
        found = self._ids().get(service)
        return found if isinstance(found, str) else None

    def keep_id(self, service: str, run_id: str) -> None:
        """Keeps the id in the run's folder, atomically; raises OSError if that fails."""
        ids = {**self._ids(), service: run_id}
        with replacing(self.folder / IDS_FILE) as draft:
            draft.write_text(json.dumps(ids, indent=1) + "\n")

    def _ids(self) -> dict:
        try:
            found = json.loads((self.folder / IDS_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class Tracker(Protocol):
    """A service that has begun to track a run; any method may raise any exception."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes points of curves: finite numbers by the names that TensorBoard shows."""

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """Takes an RGB picture."""

    def close(self, *, failed: bool) -> None:
        """Ends the tracking; `failed` says whether an exception ended the run."""


class Background:
    """A tracker behind a thread, which begins at once."""

    def __init__(self, name: str, begin: Callable[[], Tracker]):
        """Starts the thread, which calls ``begin()`` first; `name` is that of the tracker in messages."""
        self._name = name
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(WAITING)
        self._named: set[str] = set()
        self._thread = threading.Thread(target=self._work, args=(begin,), name=name, daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Tracker`; never waits and never raises."""
        self._call(lambda tracker: tracker.scalars(step, values))

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """As `Tracker`; never waits and never raises."""
        self._call(lambda tracker: tracker.image(step, name, image))

    def close(self, *, failed: bool) -> None:
        """As `Tracker`; never waits and never raises. Further calls are ignored."""
        self._call(lambda tracker: tracker.close(failed=failed))
        self._call(None)

    def join(self, seconds: float) -> None:
        """After `close`, waits so many seconds at most until all calls are done."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn("it has not taken everything by the run's end")

    def _call(self, call):
        if not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._warn(f"{WAITING} calls wait for it, and further ones are left out")

    def _work(self, begin):
        try:
            tracker = begin()
        except BaseException as error:  # some clients end the program, which ends this thread alone
            self._warn(f"it cannot begin ({_words(error)})")
            return
        while (call := self._calls.get()) is not None:
            try:
                call(tracker)
            except BaseException as error:
                self._warn(_words(error))

    def _warn(self, problem):
        if problem not in self._named:
            self._named.add(problem)
            logging.warning("%s: %s; the run goes on without", self._name, problem)


def _words(error: BaseException) -> str:
    """A short description of an exception, without the lines that clients add for humans at a terminal."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def require(package: str, option: str) -> None:
    """Raises UserError if a tracker's package, which is also the name of the extra, is not installed."""
    found = importlib.util.find_spec(package)
    # A folder of this name, as wandb itself makes one, looks like a package without an origin.
    if found is None or found.origin is None:
        raise UserError(
            f"{option} needs the package {package}: pip install 'diou-jax[{package}]', or, to go without, "
            f"--config.{option}="
        )
