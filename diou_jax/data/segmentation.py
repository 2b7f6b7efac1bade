"""Converts the "segmentation" of COCO annotations to outlines, and reports faulty ones.

A faulty mask never costs its box: the object trains its box and no mask. Self-crossing parts are legal; inside a part
the even-odd rule holds, as in COCO's filling.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from diou_jax.data import decoding, rings, rle
from diou_jax.data.annotations import integer, number
from diou_jax.data.outlines import Outlines, from_parts

SHORT = "parts of masks with fewer than three points, left out"
UNKNOWN = "masks that are neither polygons nor RLE"
ODD = "masks with an odd number of coordinates"
NOT_FINITE = "masks with coordinates that are not finite numbers"
OUTSIDE = "masks outside their image"
FAR = "masks that reach out of their image by more than its size"
OTHER_SIZE = "masks as RLE of another size than their image"
NO_RUNS = "masks as RLE that cannot be decoded"
NO_PIXEL = "masks as RLE without a pixel"
MISSING = "objects without a mask, of which only the boxes count"
_KINDS = (SHORT, UNKNOWN, ODD, NOT_FINITE, OUTSIDE, FAR, OTHER_SIZE, NO_RUNS, NO_PIXEL, MISSING)

# The outline of an encoded mask keeps to the pixels' edges within half a cell of the mask that is learned, 28 by 28
# cells by default, and within a pixel. tests/test_segmentation.py measures the loss, docs/own_data.md has it.
CELLS = 28
CELL_SHARE = 0.5
MOST_PIXELS = 1.0

_NUMBERS = {int, float}


class _FaultError(Exception):
    """The "segmentation" of an object has a kind of fault, which leaves the object without a mask."""

    def __init__(self, kind: str):
        super().__init__(kind)
        self.kind = kind


def read(segmentations: Sequence[Any], heights: np.ndarray, widths: np.ndarray) -> tuple[Outlines, dict]:
    """The outlines of M objects.

    Args:
      segmentations: json values: lists of parts ``[x1, y1, x2, y2, ...]``, or COCO's RLE with ``size`` and ``counts``.
      heights: (M,) int, heights of the objects' images.
      widths: (M,) int, their widths.

    Returns:
      The outlines, and by kind of fault (M,) bool, the objects that have it. `MISSING` is no fault; those of `SHORT`
      may have other parts; all others have no mask.
    """
    found: list[list] = []
    faults = {kind: np.zeros(len(segmentations), bool) for kind in _KINDS}
    for row, (value, height, width) in enumerate(zip(segmentations, heights.tolist(), widths.tolist(), strict=True)):
        try:
            if isinstance(value, dict):
                parts = _of_runs(value, height, width)
            else:
                parts, short = _of_polygons(value)
                faults[SHORT][row] = short
        except _FaultError as fault:
            parts = []
            faults[fault.kind][row] = True
        found.append(parts)
    outlines = from_parts(found)
    misplaced = _misplaced(outlines, heights, widths)
    for kind, objects in misplaced.items():
        faults[kind] |= objects
    return outlines.without(np.logical_or.reduce(list(misplaced.values()))), faults


def _of_polygons(value) -> tuple[list[np.ndarray], bool]:
    """The parts (n, 2), and whether a part was left out."""
    if value is None or value == []:
        raise _FaultError(MISSING)
    if not isinstance(value, list) or not all(isinstance(part, list) for part in value):
        raise _FaultError(UNKNOWN)
    long = [part for part in value if len(part) >= 6]
    if any(len(part) % 2 for part in long):
        raise _FaultError(ODD)
    return [_numbers(part).reshape(-1, 2) for part in long], len(long) < len(value)


def _numbers(part) -> np.ndarray:
    try:
        if set(map(type, part)) <= _NUMBERS:
            # Twice as fast as numpy's conversion of a list.
            return np.frombuffer(array("d", part))
        return np.array([number(value) for value in part], np.float64)  # None becomes NaN
    except OverflowError:
        raise _FaultError(NOT_FINITE) from None


def _of_runs(value, height, width) -> list[np.ndarray]:
    size = value.get("size")
    if "counts" not in value or not isinstance(size, list):
        raise _FaultError(UNKNOWN)
    if [integer(side) for side in size] != [height, width]:
        raise _FaultError(OTHER_SIZE)
    if height * width > decoding.MAX_PIXELS:
        raise _FaultError(NO_RUNS)  # its image would be refused, too
    try:
        crop = rle.crop(value["counts"], height, width)
    except ValueError:
        raise _FaultError(NO_RUNS) from None
    if crop is None:
        raise _FaultError(NO_PIXEL)
    tolerance = min(MOST_PIXELS, CELL_SHARE * max(crop.mask.shape) / CELLS)
    return [part + np.array([crop.left, crop.top]) for part in rings.parts(crop.mask, tolerance=tolerance)]


def _misplaced(outlines: Outlines, heights, widths) -> dict[str, np.ndarray]:
    """By kind of fault, the objects with vertices that are not finite, all outside of the image, or far outside."""
    some = np.flatnonzero(outlines.sizes)
    starts = outlines.parts[outlines.objects[:-1]][some]
    low, high = np.zeros((2, len(outlines), 2))
    if len(some):
        low[some] = np.minimum.reduceat(outlines.points, starts)
        high[some] = np.maximum.reduceat(outlines.points, starts)
    size = np.stack([widths, heights], 1)
    known = outlines.sizes > 0
    finite = (np.isfinite(low) & np.isfinite(high)).all(1)
    outside = known & finite & ((high <= 0) | (low >= size)).any(1)
    far = known & finite & ~outside & ((low < -size) | (high > 2 * size)).any(1)
    return {NOT_FINITE: known & ~finite, OUTSIDE: outside, FAR: far}
