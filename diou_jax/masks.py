"""Masks on the host: from the probabilities of a mask head to pixels of the image and COCO's run lengths, and back.

A run length encoding (RLE) counts the pixels of the image column by column, in turn those outside and inside the mask.
"""

import itertools
from collections.abc import Sequence
from typing import TypedDict

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from diou_jax.structures import Array

# More threads gain little: numpy and OpenCV release the interpreter's lock only for the work on pixels.
THREADS = 4

# Runs of fewer pixels, and their differences, take at most five bytes, of five bits each, one of them the sign.
SAFE_RUN = 2**24


class Rle(TypedDict):
    """A mask as in COCO's results files: ``size`` is height and width, ``counts`` the compressed run lengths."""

    size: list[int]
    counts: str


def reference_boxes(boxes: Array, *, resolution: int) -> np.ndarray:
    """The pixels that the grids of masks with their border of zeros are stretched over, as in the original.

    The grid of a mask fills the box, so that the grid with a border is larger by ``(resolution + 2) / resolution``.
    The original then cuts off the decimals, so that a mask lies up to a pixel further left and up than its box.

    Args:
      boxes: float32 (D, 4), pixels of the image.
      resolution: M, cells of a mask along each axis.

    Returns:
      int32 (D, 4), x1, y1, x2, y2 in inclusive pixels; they may lie outside the image.
    """
    boxes = np.asarray(boxes, np.float32)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((resolution + 2) / resolution)
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    return np.concatenate([centre - half, centre + half], 1).astype(np.int32)


def encode(probabilities: Array, boxes: Array, *, height: int, width: int, threshold: float = 0.5) -> list[Rle]:
    """Pastes masks into an image, equal to the original's pixel by pixel, without making the image.

    Args:
      probabilities: float32 (D, M, M).
      boxes: float32 (D, 4), pixels of the image.
      height: height of the image in pixels.
      width: likewise.
      threshold: a pixel belongs to the mask if its interpolated probability is larger, MRCNN.THRESH_BINARIZE.

    Returns:
      The D masks, equal to those of ``pycocotools.mask.encode`` for the pasted images.
    """
    if not len(boxes):
        return []
    probabilities = np.asarray(probabilities, np.float32)
    grids = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    corners = reference_boxes(boxes, resolution=probabilities.shape[1]).tolist()
    runs = []
    for grid, box in zip(grids, corners, strict=True):
        changes = _changes(grid, box, height=height, width=width, threshold=threshold)
        # np.diff with prepend and append takes ten times as long for so few numbers.
        ends = np.empty(len(changes) + 2, np.int64)
        ends[0], ends[1:-1], ends[-1] = 0, changes, height * width
        runs.append(ends[1:] - ends[:-1])
    return [Rle(size=[height, width], counts=counts) for counts in compress(runs)]


def _changes(grid, box, *, height, width, threshold):
    """The pixels, numbered down the columns of the image, whose value differs from that of the pixel before.

    Pixel 0 counts as one if it belongs to the mask.
    """
    x1, y1, x2, y2 = box
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, width), min(y2 + 1, height)
    if left >= right or top >= bottom:
        return np.zeros(0, np.int64)
    stretched = cv2.resize(grid, (x2 - x1 + 1, y2 - y1 + 1), interpolation=cv2.INTER_LINEAR)
    visible = stretched[top - y1 : bottom - y1, left - x1 : right - x1]
    rows, columns = visible.shape
    inside = np.zeros((rows + 2, columns), np.uint8)
    np.greater(visible, threshold, out=inside[1:-1].view(bool))
    # Comparing rows before the transposition and not after it spares a copy with large strides.
    differs: np.ndarray = inside[1:] ^ inside[:-1]
    steps = cv2.transpose(differs).ravel().view(bool).nonzero()[0]
    changes = steps // (rows + 1) * (height - rows - 1)
    changes += steps
    changes += left * height + top
    if rows == height:
        # A run that ends at the bottom and one that begins at the top of the next column are one run.
        joined = np.flatnonzero(changes[1:] == changes[:-1])
        changes = np.delete(changes, np.concatenate([joined, joined + 1]))
    return changes[:-1] if len(changes) and changes[-1] == height * width else changes


def decode(rles: Sequence[Rle], *, height: int, width: int) -> np.ndarray:
    """The masks, bool (D, H, W), of D encodings of an image's size; raises ValueError if one is none."""
    # pycocotools' own decoder calls numpy in a way that numpy 2 deprecates.
    columns = np.zeros((len(rles), width, height), bool)
    for mask, rle in zip(columns, rles, strict=True):
        lengths = run_lengths(rle["counts"])
        mask[:] = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height)
    return np.moveaxis(columns, 1, 2)


def compress(runs: Sequence[np.ndarray]) -> list[str]:
    """The compressed strings of D masks' run lengths, each int64; the inverse of `run_lengths`.

    pycocotools' encoder is faster, but writes beyond the six bytes that it reserves for a run if the run is long.
    """
    if all(run.max() < SAFE_RUN for run in runs):
        packed = coco_mask.frPyObjects([{"size": [1, int(run.sum())], "counts": run} for run in runs], 1, 1)
        return [rle["counts"].decode() for rle in packed]
    # All masks at once, since numpy's cost is that of its calls.
    numbers = np.concatenate([np.concatenate([run[:3], run[3:] - run[1:-2]]) for run in runs])
    digits = np.ones(len(numbers), np.int64)
    most = 1
    while (beyond := (numbers >> (5 * most - 1)) + 1 >> 1).any():  # 0 and -1 are the sign alone
        digits += beyond != 0
        most += 1
    place = np.arange(most)
    codes = (numbers[:, None] >> (5 * place)) & 31
    codes |= (place < digits[:, None] - 1) << 5
    text = (codes + ord("0")).astype(np.uint8)[place < digits[:, None]].tobytes().decode("ascii")
    lengths = [int(length) for length in np.add.reduceat(digits, np.cumsum([0, *map(len, runs)])[:-1])]
    ends = np.cumsum([0, *lengths]).tolist()
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def run_lengths(counts: str) -> np.ndarray:
    """The run lengths, int64, of the compressed string of an `Rle`.

    pycocotools reads beyond the end of a string that breaks off, so that strings from files go through this first.

    Raises:
      ValueError: if the string is no RLE.
    """
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    if not len(codes) or codes.min() < 0 or codes.max() > 63:
        raise ValueError("it has characters that no RLE has" if len(codes) else "it is empty")
    # Each number is written in digits of 5 bits, the lowest first; bit 6 says that another digit follows.
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    digits = last - first + 1
    if not len(last) or last[-1] != len(codes) - 1 or digits.max() > 12:
        raise ValueError("it breaks off")
    place = np.arange(len(codes)) - np.repeat(first, digits)
    numbers = np.add.reduceat((codes & 31) << (5 * place), first)
    numbers -= np.where(codes[last] & 16, 1 << (5 * digits), 0)
    # From the fourth number on it is the difference from the number before the last.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    if numbers.min() < 0:
        raise ValueError("it has negative run lengths")
    return numbers
