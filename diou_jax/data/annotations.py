"""COCO annotation files, read once for training and evaluation: entries that count, and faults of all others.

Different spellings of a value are equal: 640.0 and ``"640"`` are 640, ``"17"`` is image 17, null counts as missing and
true as 1.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from diou_jax.data.dataset import BACKGROUND, Faults
from diou_jax.errors import UserError
from diou_jax.files import regular_file

# Longer paths cannot be opened, and in numpy's array of names every one takes the memory of the longest.
MAX_NAME = 1024

# Control characters, which could fake lines of the log, and surrogates, which cannot be printed.
_UNSEEMLY = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")

# No id has more digits, and Python refuses to convert thousands of them.
_MAX_DIGITS = 100


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The M annotations with a box, an image and a category, as columns in the order of the file.

    Attributes:
      ids: M ids as in the file, for messages.
      images: M keys of `AnnotationFile.images`.
      categories: (M,) ints, keys of `AnnotationFile.categories`.
      xywh: (M, 4) float64, finite.
      areas: (M,) float64, the stated area, or that of the box if the file states no number of at least 0.
      crowd: (M,) bool, the flag ``"iscrowd"``.
      ignored: (M,) bool, the flag ``"ignore"``: such boxes are left out of training, while COCOeval counts them.
      segmentations: M json values as in the file, or None if they were not asked for.
    """

    ids: list
    images: list
    categories: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    segmentations: list | None = None


@dataclasses.dataclass(frozen=True)
class AnnotationFile:
    """The content of an annotation file.

    Attributes:
      file: path of the file.
      images: entries by `id_key`, in the order of the file; the first of several with the same id.
      categories: names by ascending id, all different; a name that several categories, or one and the background,
        share is followed by the id.
      boxes: the annotations that can count.
      annotated: whether the file has a list of annotations; COCO's test sets have none.
      faults: the entries that were left out.
    """

    file: str
    images: dict[int | str, dict]
    categories: dict[int, str]
    boxes: Boxes
    annotated: bool
    faults: Faults


def read(annotation_file: str | os.PathLike, *, segmentations: bool = False) -> AnnotationFile:
    """Reads a COCO annotation file, with or without segmentations.

    Raises:
      UserError: if it is not one, or lists no category.
    """
    content = read_json(annotation_file)
    faults = Faults()
    categories = _categories(content["categories"], annotation_file, faults)
    images = _images(content["images"], faults)
    annotations = content.get("annotations")
    boxes = _boxes(annotations or [], images, categories, faults)
    if not segmentations:
        boxes = dataclasses.replace(boxes, segmentations=None)
    return AnnotationFile(str(annotation_file), images, categories, boxes, annotations is not None, faults)


def read_categories(annotation_file: str | os.PathLike) -> dict[int, str]:
    """The categories of a COCO annotation file alone, as in `AnnotationFile`; errors are as in `read`."""
    return _categories(read_json(annotation_file)["categories"], annotation_file, Faults())


def read_json(annotation_file: str | os.PathLike) -> dict:
    """The content of a COCO annotation file; raises UserError if it is not one."""
    try:
        with open(regular_file(annotation_file), encoding="utf-8-sig") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"{annotation_file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{annotation_file}: not a json file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{annotation_file}: not a COCO annotation file, it has no list of 'images'")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if entries is None and key == "annotations":
            continue
        if not isinstance(entries, list):
            raise UserError(f"{annotation_file}: not a COCO annotation file, it has no list of {key!r}")
        if not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{annotation_file}: not a COCO annotation file, {key!r} holds something without fields")
    return content


def id_key(value) -> int | str | None:
    """The key by which ids are compared: an integer if the value states one, else the string; None if it is no id."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if len(value) <= _MAX_DIGITS and _INTEGER.fullmatch(value) else value
    return None


def id_rank(value: int | str) -> tuple:
    """The key by which ids are sorted: integers before strings."""
    key = id_key(value)
    return isinstance(key, str), key


def number(value) -> float | None:
    """The number that a json value states, possibly not finite; None if it states no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return None if isinstance(value, str) and "_" in value else float(value)
    except (ValueError, OverflowError):
        return None


def integer(value) -> int | None:
    """The integer that a json value states; None if it states no integer."""
    stated = number(value)
    return int(stated) if stated is not None and stated.is_integer() else None


def flag(value) -> bool | None:
    """A json value as a flag; a missing value is False; None if it states no flag."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    stated = number(value)
    return None if stated is None or not math.isfinite(stated) else stated != 0


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


def backslash_hint(file_name: str) -> str:
    """Why no file of this name is found, with the mend, if backslashes are the reason; else empty."""
    if "\\" not in file_name:
        return ""
    return "its name has backslashes, which part folders on Windows alone: write / in file_name"


def _stays_inside(image: Mapping) -> bool:
    """Whether the image's name is a path that stays below its folder on POSIX and on Windows."""
    file_name = image.get("file_name")
    if not (isinstance(file_name, str) and 0 < len(file_name) <= MAX_NAME) or _UNSEEMLY.search(file_name):
        return False
    paths = pathlib.PurePosixPath(file_name), pathlib.PureWindowsPath(file_name)
    return not any(path.anchor or ".." in path.parts for path in paths)


def _categories(entries, annotation_file, faults) -> dict[int, str]:
    names: dict[int, str] = {}
    for position, entry in enumerate(entries):
        key = id_key(entry.get("id"))
        if not isinstance(key, int):
            raise UserError(
                f"{annotation_file}: categories[{position}] has the id {entry.get('id')!r}; it must be an integer"
            )
        if key in names:
            faults.add("categories with the id of an earlier one", f"id {key!r}")
        name = entry.get("name")
        names.setdefault(key, str(key if name is None else name))
    if not names:
        raise UserError(f"{annotation_file}: it lists no categories")
    # Classes are matched by their names. A name that was made unique may be that of a third category: "a (1)".
    while shared := {name for name, count in Counter([BACKGROUND, *names.values()]).items() if count > 1}:
        names = {key: f"{name} ({key})" if name in shared else name for key, name in names.items()}
    return dict(sorted(names.items()))


def _images(entries, faults) -> dict[int | str, dict]:
    images = {}
    for position, entry in enumerate(entries):
        key = id_key(entry.get("id"))
        if key is None:
            faults.add("images without a proper id", f"images[{position}], id {entry.get('id')!r}")
        elif key in images:
            faults.add("images with the id of an earlier one", f"id {key!r}")
        else:
            images[key] = entry
    return images


def _boxes(entries, images, categories, faults) -> Boxes:
    ids, image_keys, category_keys, xywh, areas, crowd, ignored, segmentations = ([] for _ in range(8))
    for entry in entries:
        if problem := _problem(entry, images, categories):
            faults.add(*problem)
            continue
        box = _numbers(entry["bbox"])
        area = number(entry.get("area"))
        ids.append(entry.get("id"))
        image_keys.append(id_key(entry["image_id"]))
        category_keys.append(id_key(entry["category_id"]))
        xywh.append(box)
        areas.append(area if area is not None and 0 <= area < math.inf else box[2] * box[3])
        crowd.append(flag(entry.get("iscrowd")))
        ignored.append(flag(entry.get("ignore")))
        segmentations.append(entry.get("segmentation"))
    return Boxes(
        ids=ids,
        images=image_keys,
        categories=np.array(category_keys, object),
        xywh=np.array(xywh, np.float64).reshape(-1, 4),
        areas=np.array(areas, np.float64),
        crowd=np.array(crowd, bool),
        ignored=np.array(ignored, bool),
        segmentations=segmentations,
    )


def _numbers(box) -> list[float]:
    """The numbers in a json list; entries that state none are left out."""
    return [stated for value in box if (stated := number(value)) is not None]


def _problem(entry, images, categories) -> tuple[str, str] | None:
    """The fault for which an annotation cannot count, as a kind and an example; None if it can."""
    where = f"annotation {entry.get('id')!r}"
    if id_key(entry.get("image_id")) not in images:
        return "annotations of unknown images", f"{where}, image {entry.get('image_id')!r:.99}"
    of_image = f"{where} of image {entry['image_id']!r}"
    if id_key(entry.get("category_id")) not in categories:
        return "annotations of unknown categories", f"{of_image}, category {entry.get('category_id')!r:.99}"
    box = entry.get("bbox")
    values = _numbers(box) if isinstance(box, list) and len(box) == 4 else []
    if len(values) < 4:
        return "annotations without a box of four numbers", f"{of_image}, bbox {box!r:.99}"
    if not all(map(math.isfinite, values)):
        return "boxes with coordinates that are not finite", f"{of_image}, bbox {box!r:.99}"
    if values[2] < 0 or values[3] < 0:
        return "boxes without area", f"{of_image}, bbox {box!r:.99}"
    for field in ("iscrowd", "ignore"):
        if flag(entry.get(field)) is None:
            return f"annotations whose {field!r} is neither 0 nor 1", f"{of_image}, {entry[field]!r:.99}"
    return None
