"""Images with boxes as converters pass them on, and how they look for the files."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

from diou_jax.data.layouts import walk
from diou_jax.data.transforms import open_header
from diou_jax.errors import UserError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclasses.dataclass(frozen=True)
class Box:
    """One box: class name, COCO's x, y, width and height in pixels, and whether it only fills in for a crowd."""

    label: str
    xywh: tuple[float, float, float, float]
    crowd: bool = False


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One image: path relative to the folder, (width, height) in pixels, its boxes."""

    file_name: str
    size: tuple[int, int]
    boxes: tuple[Box, ...]


@dataclasses.dataclass
class Found:
    """A folder's content.

    Attributes:
      splits: images by split.
      classes: names in the order of their ids.
      remarks: how often something odd was met, by a plural noun phrase.
    """

    splits: dict[str, list[Annotated]]
    classes: Sequence[str]
    remarks: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def bounding_box():
    """The class of globox; raises UserError where it is not installed."""
    try:
        from globox import BoundingBox
    except ImportError:
        raise UserError("reading Pascal VOC and YOLO files needs globox: pip install -e '.[convert]'") from None
    return BoundingBox


def image_files(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Paths by file name and, as well, by the name without its suffix."""
    found: dict[str, list[pathlib.Path]] = {}
    for path in walk(folder, *SUFFIXES):
        for key in (path.name, path.stem):
            found.setdefault(key, []).append(path)
    return found


def image_size(file: pathlib.Path) -> tuple[int, int]:
    """Width and height by the file's header; raises UserError where there is none."""
    try:
        return open_header(file.read_bytes(), str(file)).size
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
