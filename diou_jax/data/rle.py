"""COCO's run-length encoding: masks as lengths of runs, read column by column, the first of them without the object."""

import dataclasses

import numpy as np

from diou_jax.data.annotations import integer
from diou_jax.masks import run_lengths


@dataclasses.dataclass(frozen=True)
class Crop:
    """The part of a mask that holds its object: bool (h, w), with the row and column of its first pixel."""

    mask: np.ndarray
    top: int
    left: int


def crop(counts, height: int, width: int) -> Crop | None:
    """The part of an encoded mask that holds the object; None if the mask has no pixel.

    Args:
      counts: see `lengths`.
      height: height of the mask, pixels.
      width: width of the mask, pixels.

    Raises:
      ValueError: if `counts` is something else, or its runs do not add up to the mask.
    """
    runs = lengths(counts)
    if runs.max() > height * width or runs.sum() != height * width:
        raise ValueError(f"its runs do not add up to {height} times {width} pixels")
    ends = np.cumsum(runs)
    starts, ends = ends[:-1][::2], ends[1::2]
    starts = starts[: len(ends)]
    if (starts == ends).all():
        return None
    solid = starts < ends
    starts, ends = starts[solid], ends[solid]
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    change = np.zeros((right - left) * height + 1, np.int8)
    np.add.at(change, starts - left * height, 1)
    np.add.at(change, ends - left * height, -1)
    mask = np.cumsum(change[:-1], dtype=np.int8).astype(bool).reshape(right - left, height).T
    rows = np.flatnonzero(mask.any(1))
    return Crop(mask[rows[0] : rows[-1] + 1], int(rows[0]), left)


def lengths(counts) -> np.ndarray:
    """The runs of an encoded mask, int64.

    Args:
      counts: COCO's string of runs, as str or bytes, or a list of whole numbers, in any spelling.

    Raises:
      ValueError: if `counts` is something else.
    """
    if isinstance(counts, (str, bytes)):
        return run_lengths(counts if isinstance(counts, str) else counts.decode("ascii"))
    runs = [integer(count) for count in counts] if isinstance(counts, list) else []
    if not runs or not all(run is not None and 0 <= run < 2**32 for run in runs):
        raise ValueError("its counts are neither a string nor whole numbers of at least 0")
    return np.array(runs, np.int64)
