"""Checksums of a finished folder, by which later changes are detected."""

import hashlib
import json
import pathlib

from diou_jax.files import replacing


def seal(folder: pathlib.Path, file: pathlib.Path) -> None:
    """Writes the size and checksum of every file of `folder` to `file`."""
    content = {path.relative_to(folder).as_posix(): _digest(path) for path in _files(folder)}
    with replacing(file) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")


def damage(folder: pathlib.Path, file: pathlib.Path) -> str | None:
    """The damage of a sealed folder, in words, or None.

    Raises:
      OSError, ValueError: if `file` is missing or damaged itself.
    """
    if not file.is_file():
        raise FileNotFoundError(file)
    sealed = json.loads(file.read_text())
    present = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name, (size, digest) in sealed.items():
        if name not in present:
            return f"{name} is missing"
        actual = present[name].stat().st_size
        if actual != size:
            return f"{name} has {actual} bytes instead of {size}"
        if _digest(present[name])[1] != digest:
            return f"{name} has changed"
    return None


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path) -> list:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "blake2b").hexdigest()]
