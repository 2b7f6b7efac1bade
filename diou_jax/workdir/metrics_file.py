"""metrics.jsonl: rows of numbers; reading tolerates any damage of the file, writing appends whole lines."""

import json
import math
import os
import pathlib
from typing import Any

from diou_jax.files import replacing

LARGEST_STEP = 1 << 53


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The readable rows, with None for numbers that are not finite; empty if the file cannot be read."""
    try:
        return _split(path.read_bytes())[0] if path.is_file() else []
    except OSError:
        return []


def append_row(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Appends a line in one call, so that lines of two processes never mix.

    Raises:
      OSError: if it cannot be written.
    """
    line = (json.dumps(row) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        # If a kill cut off the last line, this one starts on a new line.
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def drop_rows(path: pathlib.Path, step: int) -> str | None:
    """Drops the rows after `step`; unreadable lines move to ``<name>.damaged-N``.

    A last line that was cut off by a kill, and zeros that a power loss left, are dropped without a trace.

    Returns:
      A sentence on the lines that were moved, or None.

    Raises:
      OSError: if the file cannot be read or the folder cannot be written; the file is as it was.
    """
    if not os.path.lexists(path):
        return None
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        return f"{path} is no file that can be read and written; it was moved to {set_aside(path)}"
    rows, damaged = _split(path.read_bytes())
    place = None
    if damaged:
        place = free_name(path)
        place.write_bytes(b"\n".join(damaged) + b"\n")
    with replacing(path) as draft:
        draft.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
    if place is None:
        return None
    return f"{path} had {len(damaged)} line(s) that are no rows of metrics; they were moved to {place}"


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Renames a file or folder to ``<name>.damaged-N`` and returns the new path; raises OSError if that fails."""
    place = free_name(path)
    os.rename(path, place)
    return place


def free_name(path: pathlib.Path) -> pathlib.Path:
    """The first of ``<name>.damaged-1``, ... that does not exist."""
    number = 1
    while os.path.lexists(place := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    return place


def _split(content: bytes) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The rows, and the lines that are no rows."""
    rows: list[dict[str, Any]] = []
    damaged: list[bytes] = []
    *lines, cut_off = content.split(b"\n")
    for line in lines:
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif not _is_usual(line):
            damaged.append(line)
    if (row := _row(cut_off)) is not None:
        rows.append(row)
    elif not cut_off.isascii():
        damaged.append(cut_off)
    return rows, damaged


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.strip(b"\0 \t\r").decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    step = row.get("step")
    if type(step) is not int or not 0 <= step <= LARGEST_STEP:
        return None
    return {name: _finite(value) for name, value in row.items()}


def _finite(value):
    """`value`, or None for a number that is not finite or exceeds a float."""
    if not isinstance(value, int | float):
        return value
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def _is_usual(line: bytes) -> bool:
    """Whether a line is the usual rest of a kill: empty, zeros, or the beginning of a row."""
    rest = line.strip(b"\0 \t\r")
    return not rest or (rest.isascii() and rest.startswith(b'{"step": ') and not rest.endswith(b"}"))
