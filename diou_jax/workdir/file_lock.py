"""A file lock that the operating system releases when its process dies in any way."""

import datetime
import errno
import fcntl
import os
import pathlib
import socket
import threading
import time

HELD = (errno.EACCES, errno.EAGAIN)
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
POLL = 0.1  # seconds

# The lock belongs to the process: the system would grant it twice within one process.
_own: set[str] = set()
_own_guard = threading.Lock()


class Held(Exception):  # noqa: N818
    """Another process holds the lock; the message names it if the file does."""


class Unsupported(Exception):  # noqa: N818
    """The file system has no locks."""


class FileLock:
    """A context manager that holds an exclusive lock on a file; the file names the holder and exists while it is held.

    It is a record lock of POSIX: NFS passes it on to its server, and forked children do not inherit it.
    """

    def __init__(self, path: str | os.PathLike, *, wait: bool = False):
        """`wait`: whether entering waits until the lock is free, instead of raising."""
        self._path, self._wait = pathlib.Path(path), wait
        self._key = os.path.realpath(self._path)
        self._descriptor: int | None = None

    def __enter__(self):
        """Takes the lock; the folder of the file must exist.

        Raises:
          Held: if another process holds it.
          Unsupported: if the file system has no locks.
          OSError: if the file cannot be written.
        """
        while True:
            try:
                self._take()
                return self
            except Held:
                if not self._wait:
                    raise
            time.sleep(POLL)

    def __exit__(self, *_):
        # While the lock is held, no other process replaces the file.
        self._path.unlink(missing_ok=True)
        assert self._descriptor is not None  # it was entered
        os.close(self._descriptor)
        with _own_guard:
            _own.discard(self._key)

    def _take(self):
        with _own_guard:
            # The file is not opened a second time: closing any of its descriptors would release this process' lock.
            if self._key in _own:
                raise Held(f"process {os.getpid()}, which is this one")
            while True:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
                try:
                    self._lock(descriptor)
                    if self._is_current(descriptor):
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, _holder().encode(), 0)
                        break
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)
            self._descriptor = descriptor
            _own.add(self._key)

    def _lock(self, descriptor):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                text = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
                raise Held(text or "a process that has just started") from None
            if error.errno in WITHOUT_LOCKS:
                if not os.fstat(descriptor).st_size:
                    self._path.unlink(missing_ok=True)
                raise Unsupported(os.strerror(error.errno)) from None
            raise

    def _is_current(self, descriptor) -> bool:
        """Whether the file still has its name; a holder removes the file before it releases the lock."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False


def _holder() -> str:
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
