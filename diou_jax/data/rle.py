"""COCO's run-length encoding: masks as lengths of runs, read column by column, the first of them without the object."""

import dataclasses

import numpy as np

# The string of a count holds five bits a character; more characters than these state no count of a mask.
_MOST_CHARACTERS = 10


class BadRunsError(ValueError):
    """Counts that are no runs of a mask of the stated size."""


@dataclasses.dataclass(frozen=True)
class Crop:
    """The part of a mask that holds its object: bool (h, w), with the row and column of its first pixel."""

    mask: np.ndarray
    top: int
    left: int


def crop(counts, height: int, width: int) -> Crop | None:
    """The object's part of an encoded mask, None if it has no pixel.

    pycocotools reads beyond the end of a damaged string and writes beyond the end of a mask, so counts are decoded and
    checked here.

    Args:
      counts: COCO's string of runs, as str or bytes, or a list of integers.
      height: height of the mask, pixels.
      width: its width.

    Raises:
      BadRunsError: if `counts` is no such thing, or its runs do not add up to the mask.
    """
    runs = _of_string(counts) if isinstance(counts, (str, bytes)) else _of_list(counts)
    pixels = height * width
    if not len(runs) or (runs < 0).any() or (runs > pixels).any() or runs.sum() != pixels:
        raise BadRunsError(f"its runs do not add up to {height} times {width} pixels")
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


def _of_string(text) -> np.ndarray:
    try:
        codes = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise BadRunsError("its string has other characters than COCO's") from None
    if ((codes < 0) | (codes > 63)).any():
        raise BadRunsError("its string has other characters than COCO's")
    last = np.flatnonzero(codes < 32)
    if not len(last) or last[-1] != len(codes) - 1:
        raise BadRunsError("its string ends within a count")
    starts = np.concatenate([[0], last[:-1] + 1])
    lengths = last - starts + 1
    if lengths.max() > _MOST_CHARACTERS:
        raise BadRunsError("its string has a count of more than 50 bits")
    digit = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * digit), starts)
    values -= ((codes[last] & 16) > 0).astype(np.int64) << (5 * lengths)
    # From the fourth on, a count is stated as its difference from the one before the last.
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs


def _of_list(counts) -> np.ndarray:
    whole = isinstance(counts, list) and all(
        isinstance(count, (int, float)) and not isinstance(count, bool) and count == count // 1 for count in counts
    )
    try:
        return np.array(counts if whole else None, np.int64)
    except (OverflowError, TypeError, ValueError):
        raise BadRunsError("its counts are neither COCO's string nor a list of whole numbers") from None
