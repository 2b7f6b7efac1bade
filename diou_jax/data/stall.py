"""Detects that the reader hangs."""

import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from absl import logging

from diou_jax.errors import UserError

T = TypeVar("T")

# Seconds between warnings while no item comes.
WARN_EVERY = 30.0


def watched(iterator: Iterator[T], describe: Callable[[int], str], *, timeout: float) -> Iterator[T]:
    """The items of an iterator; a thread reads them, so that waiting for one can be limited.

    Args:
      iterator: any iterator; its exceptions are raised here.
      describe: for messages, the content of the item at a position, counted from 0.
      timeout: seconds without an item after which the run ends; with 0 it only warns.

    Raises:
      UserError: if no item came in time; the message describes the missing item.
    """
    items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(1)
    stopped, end = threading.Event(), object()

    def put(item):
        while not stopped.is_set():
            try:
                return items.put(item, timeout=0.2)
            except queue.Full:
                continue

    def take():
        try:
            for item in iterator:
                put((item, None))
                if stopped.is_set():
                    return
        except BaseException as error:
            put((end, error))
        else:
            put((end, None))

    thread = threading.Thread(target=take, daemon=True, name="batches")
    thread.start()
    try:
        for position in itertools.count():
            item, error = _wait(items, functools.partial(describe, position), timeout)
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stopped.set()
        # The caller closes the iterator next: wait up to 1 s for the thread that reads it; a hanging one is abandoned.
        thread.join(timeout=1.0)


def _wait(items, describe, timeout):
    began = time.monotonic()
    while True:
        try:
            return items.get(timeout=min(WARN_EVERY, timeout or WARN_EVERY))
        except queue.Empty:
            waited = time.monotonic() - began
            if timeout and waited >= timeout:
                raise UserError(
                    f"no batch for {waited:.0f} s, waiting for {describe()}; the storage or a worker hangs "
                    "(data.timeout sets how long to wait)"
                ) from None
            logging.warning("no batch for %.0f s, waiting for %s", waited, describe())
