"""COCO-format annotation files and image folders."""

import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from diou_jax.data import annotations, decoding, segmentation
from diou_jax.data.dataset import BACKGROUND, EXAMPLES, BadImageError, Dataset, Faults, clean_boxes, make_records
from diou_jax.data.outlines import Outlines
from diou_jax.errors import UserError

# Largest size of an encoded image; files are read whole.
MAX_BYTES = 2**30

# Largest side that OpenCV decodes.
MAX_SIDE = 2**20


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files below one folder; `names` are paths relative to it.

    Links are followed anywhere, since an annotation file cannot create one. Only regular files are opened: a device or
    a pipe may have no end.
    """

    folder: str
    names: np.ndarray

    def read(self, index: int) -> bytes:
        """As `dataset.Source.read`."""
        with self.open(index) as file:
            return file.read()

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[BinaryIO]:
        """The open file; raises BadImageError if it cannot be opened or read."""
        path = self.name(index)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise BadImageError(f"{path}: cannot be read (it is no regular file)")
            if status.st_size > MAX_BYTES:
                raise BadImageError(f"{path}: cannot be read ({status.st_size} bytes; the limit is {MAX_BYTES})")
            with open(path, "rb") as file:
                yield file
        except OSError as error:
            hint = "" if os.path.exists(path) else annotations.backslash_hint(str(self.names[index]))
            raise BadImageError(f"{path}: cannot be read ({error.strerror}{'; ' * bool(hint)}{hint})") from None

    def name(self, index: int) -> str:
        """As `dataset.Source.name`."""
        return os.path.join(self.folder, self.names[index])


def load(
    annotation_file: str | os.PathLike,
    image_folder: str | os.PathLike,
    *,
    name: str = "",
    min_area: float = -1.0,
    masks: bool = False,
) -> Dataset:
    """Reads a COCO-format data set; images are ordered by id.

    Ground truth is cleaned as in the original: annotations with ``"ignore": 1``, with an area of 0 or below `min_area`
    in the json, or without area inside their image are left out; crowds stay, flagged. Other faulty annotations are
    left out as well, counted in `Dataset.faults` and logged once. Ids may be any integers; image ids also strings.

    Args:
      annotation_file: json with ``images``, ``annotations`` and ``categories``.
      image_folder: the folder to which the ``file_name`` of an image is relative.
      name: name of the data set in messages; by default the path of the annotation file.
      min_area: TRAIN.GT_MIN_AREA.
      masks: whether to read the objects' outlines, too. A faulty mask is left out, counted and logged; its box stays.

    Raises:
      UserError: if a path does not exist, the file is not COCO json, or an image's name leads out of the folder.
    """
    if not os.path.isdir(image_folder):
        raise UserError(f"{image_folder}: this folder of images does not exist; data.root must lead to it")
    content = annotations.read(annotation_file, segmentations=masks)
    name, faults, notes = name or str(annotation_file), content.faults, Faults()
    annotations.refuse_names(content.images.values(), annotation_file)
    sizes = _sizes(content.images, str(image_folder), faults, notes)
    if not sizes:
        reasons = "; ".join(
            f"{count} {kind}, the first: {faults.examples[kind][0]}" for kind, count in faults.counts.items()
        )
        raise UserError(f"{annotation_file}: it lists no usable images{': ' * bool(reasons)}{reasons}")
    keys = sorted(sizes, key=annotations.id_rank)
    heights, widths = np.array([sizes[key] for key in keys], np.int32).T
    rows, classes, crowd, boxes, kept = _ground_truth(content, keys, heights, widths, min_area, faults)
    # A stable sort keeps the boxes of an image in the order of the file.
    order = np.argsort(rows, kind="stable")
    ends = np.searchsorted(rows[order], np.arange(1, len(keys)))
    outlines = None
    if masks:
        outlines = _outlines(content.boxes, kept[order], heights[rows[order]], widths[rows[order]], faults, notes)
    columns = [np.split(column[order], ends) for column in (boxes, classes, crowd)]
    faults.report(name)
    return Dataset(
        name=name,
        records=make_records(
            [_stated_id(content.images[key]) for key in keys],
            list(zip(*columns)),
            heights=heights,
            widths=widths,
            outlines=outlines,
        ),
        source=FolderSource(str(image_folder), np.array([content.images[key]["file_name"] for key in keys])),
        class_names=(BACKGROUND, *content.categories.values()),
        category_ids=(-1, *content.categories),
        annotation_files=(str(annotation_file),),
        annotated=content.annotated,
        faults=faults,
        notes=notes,
    )


def _stated_id(image) -> int | str:
    """The id of an image as in the file, so that results refer to it; 17.0 becomes 17."""
    key = annotations.id_key(image["id"])
    assert key is not None  # images without an id are left out when the file is read
    return image["id"] if isinstance(image["id"], str) else key


def _sizes(images: Mapping, folder: str, faults: Faults, notes: Faults) -> dict[int | str, tuple[int, int]]:
    """Height and width of the images by key; where the json states none, those of the image files."""
    sizes: dict[int | str, tuple[int, int]] = {}
    unknown = []
    for key, image in images.items():
        height, width = annotations.integer(image.get("height")), annotations.integer(image.get("width"))
        if height and width and 0 < height < MAX_SIDE and 0 < width < MAX_SIDE:
            sizes[key] = height, width
        else:
            unknown.append(key)
    source = FolderSource(folder, np.array([images[key]["file_name"] for key in unknown]))
    with ThreadPoolExecutor() as pool:
        for key, found in zip(unknown, pool.map(lambda index: _file_size(source, index), range(len(unknown)))):
            image = images[key]
            stated = f"{image['file_name']}, {image.get('height')!r:.99} by {image.get('width')!r:.99}"
            if isinstance(found, BadImageError):
                faults.add("images without a proper height and width, nor a file that tells it", f"{stated}; {found}")
            else:
                notes.add("images without a proper height and width, taken from their files", stated)
                sizes[key] = found
    return sizes


def _file_size(source: FolderSource, index: int) -> tuple[int, int] | BadImageError:
    """Height and width of an image file as a viewer shows it, or the error if it cannot be read."""
    try:
        with source.open(index) as file:
            return decoding.upright_size(file, source.name(index))
    except BadImageError as error:
        return error


def _ground_truth(content, keys, heights, widths, min_area, faults):
    """Image row, class, crowd flag, cleaned box and position of every annotation that counts."""
    row_of = {key: row for row, key in enumerate(keys)}
    class_of = {category: label for label, category in enumerate(content.categories, start=1)}
    found = content.boxes
    rows = np.array([row_of.get(key, -1) for key in found.images], np.int64)
    classes = np.array([class_of[category] for category in found.categories], np.int32)
    boxes, keep, dropped = clean_boxes(found.xywh, heights[rows], widths[rows])
    sized, solid = rows >= 0, found.areas > 0
    wanted = ~found.ignored & (found.areas >= min_area) & sized
    dropped["boxes without area"] = dropped["boxes without area"] | (keep & ~solid)
    dropped = {kind: flags & wanted for kind, flags in dropped.items()}
    dropped["annotations of images that cannot be used"] = ~sized
    for kind, flags in dropped.items():
        _add(faults, kind, found, np.flatnonzero(flags))
    keep &= wanted & solid
    return rows[keep], classes[keep], found.crowd[keep], boxes[keep], np.flatnonzero(keep)


def _outlines(found, kept, heights, widths, faults, notes) -> Outlines:
    """The outlines of the annotations `kept`; a crowd needs none."""
    single = ~found.crowd[kept]
    chosen = kept[single]
    outlines, problems = segmentation.read(
        [found.segmentations[i] for i in chosen.tolist()], heights[single], widths[single]
    )
    for kind, flags in problems.items():
        _add(notes if kind == segmentation.MISSING else faults, kind, found, chosen[flags])
    return outlines.spread(single)


def _add(faults, kind, found, numbers):
    """Counts annotations, by their positions, as faults of a kind."""
    examples = [f"annotation {found.ids[i]!r} of image {found.images[i]!r}" for i in numbers[:EXAMPLES].tolist()]
    faults.add(kind, *examples, count=len(numbers))
