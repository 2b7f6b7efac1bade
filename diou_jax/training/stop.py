"""Being told to stop: SIGTERM and SIGINT end a run after the step at hand, not in the middle of it."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818
    """A run ended because it was told to; its checkpoint is written. `main.py` exits with 128 plus the signal."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on")
        self.exit_code = 128 + number


class StopRequest:
    """Whether a signal has come; a context manager, outside of which signals do what they always did.

    The second signal acts at once. In other threads than the main one no signal can be caught, and none is.
    """

    def __init__(self):
        self._number = 0
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, number, frame):
        del frame
        self._number = number
        self._restore()

    def _restore(self):
        while self._before:
            signal.signal(*self._before.popitem())

    def signal(self, *, meeting: bool) -> int:
        """The signal that ends the run now, or 0; the same in all processes.

        Args:
          meeting: whether all processes ask at this step. Several processes can agree only then.
        """
        if jax.process_count() == 1:
            return self._number
        return int(multihost_utils.process_allgather(np.int32(self._number)).max()) if meeting else 0
