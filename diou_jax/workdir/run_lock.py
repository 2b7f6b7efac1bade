"""The lock that allows one training run at a time in a work folder."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from diou_jax.errors import UserError
from diou_jax.workdir.file_lock import FileLock, Held, Unsupported

LOCK_FILE = "lock"
LONGEST = 1000  # bytes of a message from one process to the others


@contextlib.contextmanager
def run_lock(workdir: str | os.PathLike, *, active: bool = True) -> Iterator[None]:
    """Keeps other runs out of `workdir`, which is made if missing, while the context is open.

    The first of several processes holds ``workdir/lock``; the file names it. A folder that was made for the lock and is
    still empty at the end is removed.

    Args:
      workdir: the folder.
      active: False if the file system has no locks; then nothing keeps other runs out.

    Raises:
      UserError: in all processes, if another run uses the folder, its file system has no locks, or it cannot be
        written.
    """
    workdir = pathlib.Path(workdir)
    if not active:
        yield
        return
    stack = contextlib.ExitStack()
    problem = _enter(workdir, stack) if jax.process_index() == 0 else ""
    if jax.process_count() > 1:
        problem = _from_first(problem)
    if problem:
        stack.close()
        raise UserError(problem)
    with stack:
        yield


def _enter(workdir, stack) -> str:
    """Takes the lock; returns the reason if that fails, else an empty text."""
    if workdir.exists() and not workdir.is_dir():
        return f"{workdir} is a file, not a folder; name another --workdir"
    try:
        if not workdir.exists():
            workdir.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_if_empty, workdir)
        stack.enter_context(FileLock(workdir / LOCK_FILE))
    except Held as holder:
        return f"a run is going on in {workdir}: {holder}; wait for its end, stop it, or name another --workdir"
    except Unsupported as reason:
        return (
            f"the file system of {workdir} has no locks ({reason}), so nothing would keep two runs out of each other's "
            "way; name a --workdir on another one, or, if you see to it yourself, --config.checkpoint.lock=False"
        )
    except OSError as error:
        return f"{workdir} cannot be written: {error}; name another --workdir"
    return ""


def _remove_if_empty(folder):
    with contextlib.suppress(OSError):
        folder.rmdir()


def _from_first(problem: str) -> str:
    """Sends the text of the first process to all processes."""
    text = np.zeros(LONGEST, np.uint8)
    encoded = np.frombuffer(problem.encode()[:LONGEST], np.uint8)
    text[: len(encoded)] = encoded
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(text)).tolist()).rstrip(b"\0").decode(errors="ignore")
