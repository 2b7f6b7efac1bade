"""COCO results files, read back: every record is one that COCOeval can score, or the file is refused."""

import json
import math
import numbers
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from diou_jax.data.annotations import id_key
from diou_jax.errors import UserError
from diou_jax.files import reason
from diou_jax.masks import run_lengths


def read_results(
    path: str | os.PathLike, kind: str, *, sizes: Mapping[int | str, tuple[int, int]] | None = None
) -> list[dict]:
    """The records of a results file.

    COCOeval looks at no value: it scores NaN as a perfect box, and a mask of another size as a miss.

    Args:
      path: the file.
      kind: "bbox" or "segm", what the records must hold.
      sizes: height and width of images by id. A mask must have the size of its image if that is known.

    Raises:
      UserError: if it is no results file; the message names the record, counted from 1, but not the file.
    """
    try:
        records = json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _no_results(f"it cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise _no_results(f"it is no json: {error}") from None
    if not isinstance(records, list):
        raise _no_results("it holds no list")
    known = {id_key(image_id): size for image_id, size in (sizes or {}).items()}
    for number, record in enumerate(records, start=1):
        if problem := _problem(record, kind, known):
            raise _no_results(f"record {number}: {problem}")
    return records


def _no_results(why: str) -> UserError:
    return UserError(f"it is no file of COCO results ({why}); evaluate the run again")


def _problem(record: Any, kind: str, sizes: Mapping) -> str | None:
    """What is wrong with a record; None if nothing is."""
    if not isinstance(record, dict):
        return f"{record!r:.100} is no object"
    for name in ("image_id", "category_id"):
        if id_key(record.get(name)) is None:
            return f"its {name} is {record.get(name)!r:.100}, not a number or a text"
    if not _finite(record.get("score")):
        return f"its score is {record.get('score')!r:.100}, not a finite number"
    if kind == "bbox":
        box = record.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_finite, box))):
            return f"its bbox is {box!r:.100}, not four finite numbers: x, y, width, height"
        return None
    return _mask_problem(record.get("segmentation"), sizes.get(id_key(record["image_id"])))


def _mask_problem(mask: Any, size: tuple[int, int] | None) -> str | None:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
        return f"its segmentation is {mask!r:.100}, not an object of size and compressed counts"
    stated = mask.get("size")
    if not (isinstance(stated, list) and len(stated) == 2 and all(type(side) is int and side > 0 for side in stated)):
        return f"the size of its segmentation is {stated!r:.100}, not height and width"
    if size is not None and tuple(stated) != tuple(size):
        return f"its segmentation is of {stated[0]} rows and {stated[1]} columns, its image of {size[0]} and {size[1]}"
    try:
        pixels = np.sum(run_lengths(mask["counts"]), dtype=object)
    except ValueError as error:
        return f"the counts of its segmentation are no run lengths: {error}"
    if pixels != math.prod(stated):
        return f"the counts of its segmentation have {pixels} pixels, its size {math.prod(stated)}"
    return None


def _finite(value: Any) -> bool:
    """Whether a value is a number that float64 holds."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
