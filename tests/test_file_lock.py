import errno
import fcntl
import multiprocessing
import os
import threading
import time

import pytest

from diou_jax.workdir.file_lock import FileLock, Held, Unsupported


def hold(path, ready):
    with FileLock(path):
        if os.fork() == 0:
            time.sleep(3)  # a worker that outlives its parent
            os._exit(0)
        ready.set()
        threading.Event().wait()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", ready), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_the_holder_is_named_and_a_kill_frees_the_lock_whatever_its_children_do(tmp_path, holder):
    for _ in range(2):  # a refusal takes nothing away
        with pytest.raises(Held, match=rf"process {holder.pid} on \S+ since \d{{4}}-"), FileLock(tmp_path / "lock"):
            pass
    holder.kill()
    holder.join()
    assert (tmp_path / "lock").exists()
    with FileLock(tmp_path / "lock"):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
    assert not (tmp_path / "lock").exists()


def test_who_waits_gets_it_in_the_end(tmp_path, holder):
    timer = threading.Timer(0.3, holder.kill)
    timer.start()
    with FileLock(tmp_path / "lock", wait=True):
        assert not holder.is_alive() or timer.finished.is_set()


def test_the_same_process_is_refused_too_and_keeps_its_lock(tmp_path):
    with FileLock(tmp_path / "lock"):
        with pytest.raises(Held, match="this one"), FileLock(tmp_path / "lock"):
            pass
        assert (tmp_path / "lock").exists()


def test_a_file_that_is_gone_is_no_lock(tmp_path, monkeypatch):
    """Between opening and locking the holder before ended and took the file away."""
    path, original, once = tmp_path / "lock", fcntl.lockf, []

    def late(descriptor, operation):
        if not once:
            once.append(path.unlink())
        original(descriptor, operation)

    monkeypatch.setattr(fcntl, "lockf", late)
    with FileLock(path):
        assert path.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(Unsupported), FileLock(tmp_path / "lock"):
        pass
