import threading
import time

import pytest

from diou_jax.data import stall
from diou_jax.errors import UserError


def test_items_and_their_order_are_those_of_the_iterator():
    assert list(stall.watched(iter(range(50)), str, timeout=5)) == list(range(50))


def test_an_exception_comes_out_after_what_came_before_it():
    def items():
        yield 1
        raise OSError("gone")

    seen = []
    with pytest.raises(OSError, match="gone"):
        for item in stall.watched(items(), str, timeout=5):
            seen.append(item)
    assert seen == [1]


def test_a_stall_is_warned_of_and_then_ends_the_run(monkeypatch, caplog):
    release = threading.Event()

    def items():
        yield 1
        release.wait(30)

    monkeypatch.setattr(stall, "WARN_EVERY", 0.1)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no batch for [01] s, waiting for file 1"):
        list(stall.watched(items(), lambda n: f"file {n}", timeout=0.6))
    assert time.monotonic() - began < 8
    assert "waiting for file 1" in caplog.text
    release.set()


def test_who_stops_early_stops_the_thread():
    iterator = stall.watched(iter(range(10**9)), str, timeout=5)
    next(iterator)
    iterator.close()
    assert not any(thread.name == "batches" for thread in threading.enumerate())
