"""Checks of files and folders that a user names, before they are opened or written, and files written whole."""

import contextlib
import errno
import os
import pathlib
import stat
import tempfile
import zlib
from collections.abc import Iterator

from diou_jax.errors import UserError

# Bytes that a name may have on all systems, without the suffix of a draft, whose number has 7 digits at most.
LONGEST = 255 - len(".1234567.tmp")

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def regular_file(path: str | os.PathLike) -> pathlib.Path:
    """`path`, if it is a regular file or a link to one.

    Nothing else is opened: reading a pipe may block for ever, and a device may have no end. An empty file is refused as
    well, since files below /proc have size 0 and reading some of them blocks, too.

    Raises:
      UserError: if it is of another kind, empty, missing or unreadable.
    """
    path = pathlib.Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
        raise UserError(f"{printable(path)}: cannot be read (it is no regular file but {kind})")
    if status.st_size == 0:
        raise UserError(f"{printable(path)}: cannot be read (it is empty)")
    return path


def writable_file(path: str | os.PathLike, option: str) -> pathlib.Path:
    """`path`, if a regular file can be written there.

    Raises:
      UserError: if something other than a regular file has this name, or its folder is missing or not writable. The
        message names `option`.
    """
    path = pathlib.Path(path)
    possible_name(draft_of(path), option)
    if os.path.lexists(path) and not os.path.isfile(path):  # pathlib's own raises for names that no system takes
        raise UserError(f"{option} {printable(path)} exists already and is no regular file; name another")
    if not os.path.isdir(path.parent):
        raise UserError(f"{option} {printable(path)} cannot be written: there is no folder {printable(path.parent)}")
    _probe(path.parent, f"{option} {printable(path)}")
    return path


def make_folder(path: str | os.PathLike, option: str, *, mend: str = "name another folder") -> pathlib.Path:
    """Makes the folder `path` and its parents; a failure raises a UserError that names `option` and says `mend`."""
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {printable(path)} cannot be made: {reason(error)}; {mend}") from None
    return path


def writable_folder(path: str | os.PathLike, option: str) -> pathlib.Path:
    """As `make_folder`; raises a UserError also if no file can be written into the folder."""
    path = make_folder(path, option)
    _probe(path, f"{option} {printable(path)}")
    return path


def possible_name(path: str | os.PathLike, option: str) -> None:
    """Raises a UserError that names `option` if no file or folder can have the name `path`, as it is too long."""
    path = pathlib.Path(path)
    # Each part is asked for where the system can answer: below a missing folder it calls every name missing.
    folder = next((parent for parent in path.parents if os.path.isdir(parent)), pathlib.Path())
    for candidate in (path, *(folder / part for part in path.parts)):
        try:
            os.lstat(candidate)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise UserError(f"{option} {printable(path)}: the name is too long; name a shorter one") from None
        except ValueError as error:
            raise UserError(f"{option} {printable(path)}: no file can have this name ({error}); name another") from None


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A context that writes a file as a whole: it fills the draft that it gets, which then takes the name `path`.

    Folders above `path` are made. If anything goes wrong, the file that was there stays, and no draft.

    Raises:
      OSError: if the draft cannot become the file; `reason` has it in words.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        yield draft
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def draft_of(path: pathlib.Path) -> pathlib.Path:
    """The path where this process writes a file or folder that will have the path `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def reason(error: OSError | ValueError) -> str:
    """Why a file or folder could not be read or written, for the end of a message."""
    return getattr(error, "strerror", None) or str(error)


def shortened(name: str, ending: str = "", *, longest: int = LONGEST) -> str:
    """`name` with `ending`; if that has more bytes than `longest`, a checksum replaces the end of `name`."""
    encoded = os.fsencode(name)
    room = longest - len(ending)
    if len(encoded) > room:
        checksum = f"_{zlib.crc32(encoded):08x}"
        name = encoded[: room - len(checksum)].decode("utf-8", "ignore") + checksum
    return name + ending


def printable(path: str | os.PathLike) -> str:
    """A path as one line that any console can print; unprintable characters are escaped."""
    text = os.fsdecode(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _probe(folder, option):
    """Writes a temporary file: permission bits alone say nothing about the superuser or read-only file systems."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise UserError(f"{option} cannot be written: {error.strerror}; name another") from None
