"""A lock that the kernel releases when its process dies, however it dies."""

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

# The kernel's lock is the process's: within one process it would be granted twice.
_own: set[str] = set()
_own_guard = threading.Lock()


class Held(Exception):  # noqa: N818
    """Somebody holds the lock; its text says who, as far as the file tells."""


class Unsupported(Exception):  # noqa: N818
    """The file system knows no locks."""


class FileLock:
    """An exclusive lock on a file, which exists while somebody holds it and says who; a context manager.

    It is a record lock of POSIX: NFS passes it on to its server, and children that are forked do not inherit it.
    """

    def __init__(self, path: str | os.PathLike, *, wait: bool = False):
        """`wait`: whether entering waits until the lock is free, instead of raising."""
        self._path, self._wait = pathlib.Path(path), wait
        self._key = os.path.realpath(self._path)
        self._descriptor: int | None = None

    def __enter__(self):
        """Takes the lock; the folder of the file must exist.

        Raises:
          Held: by somebody else.
          Unsupported: the file system has no locks.
          OSError: the file cannot be written.
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
        # Still held: nobody else can have put another file there.
        self._path.unlink(missing_ok=True)
        assert self._descriptor is not None  # it was entered
        os.close(self._descriptor)
        with _own_guard:
            _own.discard(self._key)

    def _take(self):
        with _own_guard:
            # Closing any descriptor of the file would release this process's lock, so it is not even opened.
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
        """Whether the file still has its name: its holder takes it away before the lock is free."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False


def _holder() -> str:
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
