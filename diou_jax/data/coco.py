"""COCO-format annotation files and image folders."""

import dataclasses
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Mapping

import numpy as np

from diou_jax.data.dataset import BACKGROUND, EXAMPLES, BadImageError, Dataset, Faults, clean_boxes, make_records
from diou_jax.errors import UserError
from diou_jax.files import regular_file

# No image is larger once encoded, and a file is read whole.
MAX_BYTES = 2**30

# OpenCV decodes no longer sides.
MAX_SIDE = 2**20

# Longer paths no system opens, and one of a million characters would take as much memory for each of the others.
MAX_NAME = 1024

# They would forge lines of the log, or cannot be printed at all.
_UNSEEMLY = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files below one folder; `names` are paths relative to it.

    Links are followed wherever they lead, as no annotation file can make one. What is no file in the end, such as a
    device or a pipe without an end, is not opened.
    """

    folder: str
    names: np.ndarray

    def read(self, index: int) -> bytes:
        """As `dataset.Source.read`."""
        path = self.name(index)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise BadImageError(f"{path}: cannot be read (it is no regular file)")
            if status.st_size > MAX_BYTES:
                raise BadImageError(f"{path}: cannot be read ({status.st_size} bytes; the limit is {MAX_BYTES})")
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise BadImageError(f"{path}: cannot be read ({error.strerror})") from None

    def name(self, index: int) -> str:
        """As `dataset.Source.name`."""
        return os.path.join(self.folder, self.names[index])


def load(
    annotation_file: str | os.PathLike, image_folder: str | os.PathLike, *, name: str = "", min_area: float = -1.0
) -> Dataset:
    """Reads a COCO-format data set, its images in the order of their ids.

    Ground truth is cleaned as the original cleans it: what is marked ``"ignore": 1``, has a json area of 0 or below
    `min_area`, or no extent inside its image is left out; crowds stay, flagged. Whatever else is odd is left out as
    well, counted in `Dataset.faults` and reported once in the log. Ids may be any integers; image ids also strings.

    Args:
      annotation_file: json with ``images``, ``annotations`` and ``categories``.
      image_folder: what the ``file_name`` of an image is relative to.
      name: for messages; the annotation file's own by default.
      min_area: TRAIN.GT_MIN_AREA.

    Raises:
      UserError: a path does not exist, the file is not COCO json, or an image's name leads out of the folder.
    """
    if not os.path.isdir(image_folder):
        raise UserError(f"{image_folder}: this folder of images does not exist; data.root must lead to it")
    content = read_json(annotation_file)
    name = name or str(annotation_file)
    faults = Faults()
    categories = _by_id(content["categories"], "categories", annotation_file, faults)
    images = _by_id(content["images"], "images", annotation_file, faults)
    images = _usable_images(images, annotation_file, faults)
    if not categories or not images:
        raise UserError(f"{annotation_file}: it lists no {'categories' if not categories else 'usable images'}")
    category_ids = sorted(categories)
    image_ids = sorted(images, key=lambda key: (isinstance(key, str), key))
    heights = np.array([images[i]["height"] for i in image_ids], np.int32)
    widths = np.array([images[i]["width"] for i in image_ids], np.int32)

    rows, classes, crowd, boxes = _ground_truth(
        content["annotations"], image_ids, category_ids, heights, widths, min_area, faults
    )
    # Stable, so that an image's boxes keep the file's order.
    order = np.argsort(rows, kind="stable")
    ends = np.searchsorted(rows[order], np.arange(1, len(image_ids)))
    columns = [np.split(column[order], ends) for column in (boxes, classes, crowd)]
    faults.report(name)
    return Dataset(
        name=name,
        records=make_records(image_ids, heights, widths, list(zip(*columns))),
        source=FolderSource(str(image_folder), np.array([images[i]["file_name"] for i in image_ids])),
        class_names=(BACKGROUND, *(str(categories[i].get("name", i)) for i in category_ids)),
        category_ids=(-1, *category_ids),
        annotation_files=(str(annotation_file),),
        faults=faults,
    )


def read_json(annotation_file: str | os.PathLike) -> dict:
    """The content of a COCO annotation file; raises UserError if it is not one."""
    try:
        with open(regular_file(annotation_file), encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"{annotation_file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{annotation_file}: not a json file ({error})") from None
    for key in ("images", "annotations", "categories"):
        if not (isinstance(content, dict) and isinstance(content.get(key), list)):
            raise UserError(f"{annotation_file}: not a COCO annotation file, it has no list of {key!r}")
        if not all(isinstance(entry, dict) for entry in content[key]):
            raise UserError(f"{annotation_file}: not a COCO annotation file, {key!r} holds something without fields")
    return content


def _by_id(entries, kind, annotation_file, faults):
    """The entries by their id, the first where several have the same."""
    accepted = int if kind == "categories" else (int, str)
    found = {}
    for position, entry in enumerate(entries):
        key = entry.get("id")
        if not isinstance(key, accepted) or isinstance(key, bool):
            raise UserError(f"{annotation_file}: {kind}[{position}] has the id {key!r}; it must be an integer")
        if key in found:
            faults.add(f"{kind} with the id of an earlier one", f"id {key!r}")
        found.setdefault(key, entry)
    return found


def _usable_images(images: Mapping, annotation_file, faults: Faults) -> dict:
    """Those images that have a size."""
    refuse_names(images.values(), annotation_file)
    usable = {}
    for key, image in images.items():
        file_name = image["file_name"]
        size = image.get("height"), image.get("width")
        if all(type(side) is int and 0 < side < MAX_SIDE for side in size):
            usable[key] = image
        else:
            faults.add("images without a proper height and width", f"{file_name}, {size[0]!r} by {size[1]!r}")
    return usable


def refuse_names(images: Iterable[Mapping], annotation_file: str | os.PathLike) -> None:
    """Raises UserError unless every image's ``file_name`` is a path that stays inside its folder and can be printed."""
    refused = [image for image in images if not _stays_inside(image)]
    if refused:
        others = f" ({len(refused) - 1} others are refused too)" if len(refused) > 1 else ""
        raise UserError(
            f"{annotation_file}: image {refused[0].get('id')!r} has the file name "
            f"{refused[0].get('file_name')!r:.{MAX_NAME}}; it must be a path inside the folder, without control "
            f"characters{others}"
        )


def _stays_inside(image: Mapping) -> bool:
    """Whether the image's name is a path that stays below its folder, read the POSIX and the Windows way."""
    file_name = image.get("file_name")
    if not (isinstance(file_name, str) and 0 < len(file_name) <= MAX_NAME) or _UNSEEMLY.search(file_name):
        return False
    paths = pathlib.PurePosixPath(file_name), pathlib.PureWindowsPath(file_name)
    return not any(path.anchor or ".." in path.parts for path in paths)


def _ground_truth(annotations, image_ids, category_ids, heights, widths, min_area, faults):
    """Image row, class, crowd flag and cleaned box of every annotation that counts."""
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    class_of = {category_id: number for number, category_id in enumerate(category_ids, start=1)}
    ids, rows, classes, crowd, xywh, areas = [], [], [], [], [], []
    for annotation in annotations:
        if annotation.get("ignore") == 1:
            continue
        key = annotation.get("id")
        row = row_of.get(_hashable(annotation.get("image_id")))
        number = class_of.get(_hashable(annotation.get("category_id")))
        if row is None:
            faults.add("annotations of unknown images", f"annotation {key!r}, image {annotation.get('image_id')!r}")
            continue
        if number is None:
            kind = "annotations of unknown categories"
            faults.add(kind, f"annotation {key!r}, category {annotation.get('category_id')!r}")
            continue
        try:
            x, y, w, h = map(float, annotation["bbox"])
            area = float(annotation.get("area", w * h))
        except (KeyError, TypeError, ValueError, OverflowError):
            faults.add("annotations without a box of four numbers", f"annotation {key!r}")
            continue
        ids.append(key)
        rows.append(row)
        classes.append(number)
        crowd.append(bool(annotation.get("iscrowd", 0)))
        xywh.append((x, y, w, h))
        areas.append(area)

    rows, areas = np.array(rows, np.int64), np.array(areas, np.float64)
    boxes, keep, dropped = clean_boxes(np.array(xywh).reshape(-1, 4), heights[rows], widths[rows])
    # As the original's comparisons stand: an area that is not a number fails the second.
    wanted, solid = ~(areas < min_area), areas > 0
    dropped["boxes without area"] = dropped["boxes without area"] | (keep & ~solid)
    for kind, flags in dropped.items():
        flags = flags & wanted
        examples = [f"annotation {ids[i]!r} of image {image_ids[rows[i]]!r}" for i in np.flatnonzero(flags)[:EXAMPLES]]
        faults.add(kind, *examples, count=int(flags.sum()))
    keep &= wanted & solid
    return rows[keep], np.array(classes, np.int32)[keep], np.array(crowd, bool)[keep], boxes[keep]


def _hashable(key):
    return key if isinstance(key, (int, str)) else None
