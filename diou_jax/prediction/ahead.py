"""Work that goes on in threads beside the devices: reading ahead of them, and writing behind them."""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def read_ahead(items: Iterable[T], *, limit: int) -> Iterator[Iterator[T]]:
    """A context with the items of an iterable, which a thread takes up to `limit` ahead.

    The thread has ended when the context is left, so that files may be closed. Exceptions of `items` are raised where
    the item would come.
    """
    waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(limit)
    stopped, end = threading.Event(), object()

    def put(entry):
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return waiting.put(entry, timeout=0.1)

    def take():
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((end, None))
        except BaseException as error:
            put((end, error))

    def taken():
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item

    thread = threading.Thread(target=take, daemon=True, name="read ahead")
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        thread.join()


def mapped(function: Callable[[T], R], items: Iterable[T], *, threads: int, limit: int) -> Generator[R, None, None]:
    """As ``map``, in threads, with up to `limit` items at once; the order stays."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= limit:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
