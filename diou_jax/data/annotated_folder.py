"""A folder of annotated images, as `voc` and `yolo` read it and `convert` writes it as COCO json."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable

from diou_jax.data import decoding
from diou_jax.data.check import SUFFIXES
from diou_jax.data.dataset import BadImageError, Faults
from diou_jax.errors import UserError

SHOWN = 3  # number of unreadable annotations that the error quotes

IMAGES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}


@dataclasses.dataclass(frozen=True)
class Box:
    """One object.

    Attributes:
      label: name of its class.
      xywh: x, y, width and height in pixels, as in COCO.
      crowd: whether it becomes a crowd.
      polygon: x and y of its outline's vertices in turn, pixels; empty without an outline.
    """

    label: str
    xywh: tuple[float, float, float, float]
    crowd: bool = False
    polygon: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """An image with its objects: its path, (width, height) in pixels and boxes."""

    path: pathlib.Path
    size: tuple[int, int]
    boxes: tuple[Box, ...] = ()


@dataclasses.dataclass
class Problems:
    """Unreadable annotations, in the order found; `lines` has a message for each, which names file and line."""

    lines: list[str] = dataclasses.field(default_factory=list)

    def add(self, line: str) -> None:
        """Adds the message of one annotation."""
        self.lines.append(line)

    def refuse(self) -> None:
        """Raises a UserError with the first few messages, if there are any."""
        if self.lines:
            more = len(self.lines) - SHOWN
            others = f"; and {more} more" if more > 0 else ""
            raise UserError("; ".join(self.lines[:SHOWN]) + others + "; nothing was written")


@dataclasses.dataclass
class AnnotatedFolder:
    """The images and classes of a folder.

    Attributes:
      splits: images by split.
      classes: category id by name, ids from 1.
      remarks: oddities that do not stop the conversion.
    """

    splits: dict[str, list[AnnotatedImage]]
    classes: dict[str, int]
    remarks: Faults


def files_below(folder: str | os.PathLike, suffixes: Iterable[str]) -> list[pathlib.Path]:
    """The regular files below a folder that have one of `suffixes`, in any case; sorted, without hidden ones."""
    found: list[pathlib.Path] = []
    visited: set[str] = set()
    for parent, folders, files in os.walk(os.fspath(folder), followlinks=True):
        if (place := os.path.realpath(parent)) in visited:  # a link back into the tree
            folders.clear()
            continue
        visited.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [pathlib.Path(parent, name) for name in sorted(files) if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]
    return found


def read_text(path: pathlib.Path) -> str:
    """The content of a UTF-8 text file, without a byte order mark; raises UserError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def width_and_height(path: pathlib.Path) -> tuple[int, int]:
    """(width, height) in pixels of an image as viewers show it; raises BadImageError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            height, width = decoding.upright_size(file, str(path))
    except OSError as error:
        raise BadImageError(f"{path}: cannot be read ({error.strerror})") from None
    return width, height


def is_finite(box) -> bool:
    """Whether all coordinates of globox's `box` are finite."""
    return all(map(math.isfinite, box.ltrb))


def bounding_box_class():
    """The class BoundingBox of globox; raises UserError if globox is not installed."""
    try:
        from globox import BoundingBox
    except ImportError:
        raise UserError("Pascal VOC and YOLO are read by globox: pip install 'diou-jax[convert]'") from None
    return BoundingBox
