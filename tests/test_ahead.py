import itertools
import threading
import time

import pytest

from diou_jax.prediction.ahead import mapped, read_ahead


def test_a_thread_reads_a_few_items_ahead_and_ends_with_the_context():
    taken, before = [], threading.active_count()

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield number

    with read_ahead(endless(), limit=3) as items:
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        deadline = time.monotonic() + 10
        while len(taken) < 5 + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        # Three wait in the queue, and one more for a place there.
        assert len(taken) in (8, 9)
    assert threading.active_count() == before


def test_the_end_and_errors_come_where_the_next_item_would():
    with read_ahead(iter([1, 2]), limit=1) as items:
        assert list(items) == [1, 2]

    def broken():
        yield 1
        raise KeyError("two")

    with read_ahead(broken(), limit=4) as items:
        assert next(items) == 1
        with pytest.raises(KeyError, match="two"):
            next(items)


def test_results_of_threads_keep_their_order_and_few_are_at_work():
    at_work, most, lock = [], [], threading.Lock()

    def slow(number):
        with lock:
            at_work.append(number)
            most.append(len(at_work))
        time.sleep(0.01 * (number % 3))
        with lock:
            at_work.remove(number)
        return number

    taken = []
    items = (taken.append(number) or number for number in range(20))
    results = mapped(slow, items, threads=3, limit=4)
    assert next(results) == 0 and taken == [0, 1, 2, 3]
    assert list(results) == list(range(1, 20))
    assert max(most) <= 3


def test_an_error_of_a_thread_is_raised_in_its_place_and_the_rest_is_dropped():
    done = []

    def fail(number):
        if number == 2:
            raise ValueError("2")
        done.append(number)
        return number

    results = mapped(fail, range(100), threads=2, limit=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(results)
    assert len(done) < 10
