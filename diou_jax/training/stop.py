"""Stopping on request: SIGTERM and SIGINT end a run after the current step, not in the middle of it."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context manager that notes the first signal; a second one acts as signals do outside the context.

    Python can catch signals in the main thread only; in other threads this does nothing.
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

    def signal(self, *, synchronised: bool) -> int:
        """The signal that ends the run now, or 0; all processes get the same.

        Args:
          synchronised: whether all processes call this at the current step; only then several processes can agree.
        """
        if jax.process_count() == 1:
            return self._number
        return int(multihost_utils.process_allgather(np.int32(self._number)).max()) if synchronised else 0
