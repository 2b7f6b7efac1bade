"""Finds the files below a folder that are images to detect in."""

import dataclasses
import os
import pathlib
import stat
import warnings
from collections import Counter

from PIL import Image

from diou_jax.data.check import SUFFIXES as SUFFIXES_BY_FORMAT
from diou_jax.data.decoding import FORMATS
from diou_jax.errors import UserError
from diou_jax.files import printable, regular_file
from diou_jax.reporting import picture_files

SUFFIXES = tuple(sorted({suffix for suffixes in SUFFIXES_BY_FORMAT.values() for suffix in suffixes}))
VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
                  ".ts", ".webm", ".wmv")  # fmt: skip

IMAGE, DRAWN, VIDEO, OTHER = "image", "picture with detections drawn in it", "video", "file of another kind"

MENDS = {
    DRAWN: "give the image that it was drawn from",
    VIDEO: "only images are read; ffmpeg -i VIDEO FOLDER/%06d.png makes images of a video",
}
PLURALS = {
    DRAWN: "pictures with detections drawn in them",
    VIDEO: "videos, which are not read",
    OTHER: "files of other kinds",
}


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of a folder.

    Attributes:
      images: files to detect in, sorted; some may turn out to be damaged.
      unreadable: a line for each folder that could not be read.
      passed_over: a line for each kind of file that is left out.
    """

    images: list[pathlib.Path]
    unreadable: list[str]
    passed_over: list[str]


def find_images(source: pathlib.Path) -> Found:
    """The image file `source`, or the image files below the folder `source`.

    The content of a file decides whether it is an image; if it cannot be told, the suffix does. Pictures that
    prediction or evaluation has drawn are left out.

    Raises:
      UserError: if `source` is missing, a video, not a regular file, or a folder without images.
    """
    if source.is_dir():
        return _search(source)
    if not os.path.exists(source):
        raise UserError(f"--input {printable(source)} does not exist")
    if not os.path.isfile(source):
        regular_file(source)
    kind = _kind(source)
    if kind in MENDS:
        raise UserError(f"--input {printable(source)} is a {kind}: {MENDS[kind]}")
    return Found([source], [], [])


def _search(source):
    unreadable: list[str] = []
    by_kind: dict[str, list[pathlib.Path]] = {}
    seen: set[tuple[int, int]] = set()

    def cannot_list(error):
        unreadable.append(f"{printable(error.filename)}: this folder cannot be read ({error.strerror})")

    for folder, below, names in os.walk(source, onerror=cannot_list, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back into the tree
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below.sort()
        for path in (pathlib.Path(folder, name) for name in sorted(names)):
            by_kind.setdefault(_kind(path), []).append(path)
    passed_over = [_summary(kind, by_kind[kind]) for kind in (DRAWN, VIDEO, OTHER) if kind in by_kind]
    images = sorted(by_kind.get(IMAGE, []))
    if not images:
        reasons = "; ".join([*passed_over, *unreadable[:3]]) or "it is empty"
        raise UserError(f"--input {printable(source)} holds no image files ({', '.join(SUFFIXES)}): {reasons}")
    return Found(images, unreadable, passed_over)


def _kind(path: pathlib.Path) -> str:
    """The kind of a file; a pipe, a device or a broken link is judged by its name and never opened."""
    suffix = path.suffix.lower()
    if (by_content := _content(path)) is not None:
        return by_content
    return IMAGE if suffix in SUFFIXES else VIDEO if suffix in VIDEO_SUFFIXES else OTHER


def _content(path: pathlib.Path) -> str | None:
    """`IMAGE` or `DRAWN` by the file's header; None if it has no readable header."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # faults of the header are reported when the file is decoded
            with Image.open(path, formats=FORMATS) as header:
                return DRAWN if picture_files.is_drawn(header) else IMAGE
    except Exception:
        # A damaged header can raise anything.
        return None


def _summary(kind, paths):
    endings = Counter((path.suffix or path.name).lower() for path in paths)
    listed = ", ".join(f"{printable(ending)} {count}" for ending, count in endings.most_common(5))
    return f"{len(paths)} {PLURALS[kind] if len(paths) > 1 else kind} ({listed})"
