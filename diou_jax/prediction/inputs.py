"""Finds the files to detect in: images and videos that a user names one by one, by a pattern, or by their folder."""

import dataclasses
import glob
import os
import pathlib
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

from PIL import Image

from diou_jax.data.check import SUFFIXES as SUFFIXES_BY_FORMAT
from diou_jax.data.decoding import FORMATS
from diou_jax.errors import UserError
from diou_jax.files import printable, regular_file
from diou_jax.prediction import video
from diou_jax.reporting import picture_files

SUFFIXES = tuple(sorted({suffix for suffixes in SUFFIXES_BY_FORMAT.values() for suffix in suffixes}))
# Containers of videos, and streams as cameras write them.
VIDEO_SUFFIXES = (".264", ".265", ".3gp", ".avi", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg",
                  ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm",
                  ".wmv")  # fmt: skip

IMAGE, VIDEO = "image", "video"
DRAWN, OTHER = "picture or video with detections drawn in it", "file of another kind"
PLURALS = {DRAWN: "pictures or videos with detections drawn in them", OTHER: "files of other kinds"}


@dataclasses.dataclass(frozen=True)
class Found:
    """The files that the inputs stand for, each once, sorted within an input.

    Attributes:
      images: image files; some may turn out to be damaged.
      videos: video files, likewise.
      folder: the folder that holds all of them; results are named by the paths below it.
      roots: folders that were searched, or whose files were named.
      unreadable: a line for each folder that could not be read.
      passed_over: a line for each kind of file that is left out.
    """

    images: list[pathlib.Path]
    videos: list[pathlib.Path]
    folder: pathlib.Path
    roots: list[pathlib.Path]
    unreadable: list[str]
    passed_over: list[str]

    def name(self, path: pathlib.Path) -> pathlib.PurePath:
        """The path of a file below `folder`."""
        return pathlib.PurePath(os.path.relpath(path, self.folder))


def find_files(inputs: Sequence[str | os.PathLike]) -> Found:
    """The images and videos that `inputs` stand for.

    The content of a file decides whether it is an image; if it cannot be told, the suffix does, as for videos. A file
    that is named by itself may be a video of any suffix. Pictures and videos that prediction or evaluation has drawn
    are left out.

    Args:
      inputs: files, folders, which are searched with all folders below, and patterns such as ``day?/**/*.jpg``.

    Raises:
      UserError: if an input is missing, matches nothing, is not a regular file, or holds neither images nor videos.
    """
    search = _Search()
    for one in inputs:
        search.add(os.fspath(one))
    return search.found()


class _Search:
    """Collects files by kind, over several inputs."""

    def __init__(self):
        self._kinds: dict[str, tuple[pathlib.Path, str]] = {}
        self._roots: list[pathlib.Path] = []
        self._unreadable: list[str] = []

    def add(self, text: str) -> None:
        """Adds one input."""
        if glob.has_magic(text) and not os.path.lexists(text):
            matches = list(map(pathlib.Path, sorted(glob.glob(text, recursive=True))))
            if not matches:
                raise UserError(f"--input {printable(text)}: no file or folder matches this pattern")
        elif os.path.isdir(text):
            matches = [pathlib.Path(text)]
        else:
            return self._add_file(pathlib.Path(text))
        before = len(self._unreadable)
        by_kind = _by_kind([one for match in matches for one in self._matched(match)])
        if not {IMAGE, VIDEO} & by_kind.keys():
            reasons = "; ".join([*_summaries(by_kind), *self._unreadable[before:][:3]]) or "it is empty"
            raise UserError(
                f"--input {printable(text)} holds no image files ({', '.join(SUFFIXES)}) or videos: {reasons}"
            )

    def found(self) -> Found:
        """All files so far."""
        folder = pathlib.Path(os.path.commonpath([os.path.abspath(root) for root in self._roots]))
        by_kind = _by_kind(self._kinds.values())
        images, videos = (by_kind.get(kind, []) for kind in (IMAGE, VIDEO))
        return Found(images, videos, folder, self._roots, self._unreadable, _summaries(by_kind))

    def _add_file(self, source: pathlib.Path) -> None:
        """Adds a file that is named by itself."""
        if not os.path.exists(source):
            raise UserError(f"--input {printable(source)} does not exist")
        if not os.path.isfile(source):
            regular_file(source)
        kind = kind_of(source)
        if kind == DRAWN:
            raise UserError(f"--input {printable(source)} is a {kind}: give the file that it was drawn from")
        if kind == OTHER:
            kind = VIDEO if video.opens(source) else IMAGE  # which then counts as unreadable
        self._root(source.parent)
        self._take(source, kind)

    def _matched(self, match: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
        """Adds a file, or all files below a folder; returns them with their kinds."""
        if not match.is_dir():
            self._root(match.parent)
            return [self._take(match)]
        self._root(match)
        return list(map(self._take, self._files_below(match)))

    def _root(self, folder: pathlib.Path) -> None:
        if folder not in self._roots:
            self._roots.append(folder)

    def _take(self, path: pathlib.Path, kind: str | None = None) -> tuple[pathlib.Path, str]:
        """A file with its kind; inputs may overlap, but it counts once."""
        place = os.path.abspath(path)
        if place not in self._kinds:
            self._kinds[place] = path, kind or kind_of(path)
        return self._kinds[place]

    def _files_below(self, source: pathlib.Path) -> list[pathlib.Path]:
        """The files of a folder and of those below it, sorted."""

        def cannot_list(error):
            self._unreadable.append(f"{printable(error.filename)}: this folder cannot be read ({error.strerror})")

        files: list[pathlib.Path] = []
        seen: set[tuple[int, int]] = set()
        for folder, below, names in os.walk(source, onerror=cannot_list, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a link back into the tree
                below.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            below.sort()
            files += (pathlib.Path(folder, name) for name in names)
        return sorted(files)


def kind_of(path: pathlib.Path) -> str:
    """The kind of a file; a pipe, a device or a broken link is judged by its name and never opened."""
    suffix = path.suffix.lower()
    if (by_content := _content(path)) is not None:
        return by_content
    if suffix in SUFFIXES:
        return IMAGE
    if suffix in VIDEO_SUFFIXES:
        return DRAWN if video.is_drawn(path) else VIDEO
    return OTHER


def _content(path: pathlib.Path) -> str | None:
    """`IMAGE` or `DRAWN` by the file's header; None if it has no header of an image that can be read."""
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


def _by_kind(files: Iterable[tuple[pathlib.Path, str]]) -> dict[str, list[pathlib.Path]]:
    found: dict[str, list[pathlib.Path]] = {}
    for path, kind in files:
        found.setdefault(kind, []).append(path)
    return found


def _summaries(by_kind: dict[str, list[pathlib.Path]]) -> list[str]:
    """A line for each kind of file that is left out."""
    lines = []
    for kind in (DRAWN, OTHER):
        if paths := by_kind.get(kind):
            endings = Counter((path.suffix or path.name).lower() for path in paths)
            listed = ", ".join(f"{printable(ending)} {count}" for ending, count in endings.most_common(5))
            lines.append(f"{len(paths)} {PLURALS[kind] if len(paths) > 1 else kind} ({listed})")
    return lines
