"""The outline of a mask: rings along the edges of its pixels, whose filling gives back the mask bit for bit."""

from collections.abc import Iterator

import cv2
import numpy as np

from diou_jax.data.simplification import approximate, enclosed_area, join_loops


def parts(mask: np.ndarray, *, tolerance: float = 0.0) -> list[np.ndarray]:
    """The parts of a mask's outline, one for each piece of connected pixels (by sides or corners).

    A piece with holes is one part, which goes to each hole and back along the same line. COCO's filling takes a pixel
    whose centre is inside, so that without tolerance it returns the very mask.

    Args:
      mask: bool (h, w).
      tolerance: largest distance between the pixels' edges and the outline, pixels; 0 keeps every corner. Holes that
        are smaller vanish, pieces do not.

    Returns:
      Parts (n, 2) float64, x and y of corners of pixels, where pixel i spans [i, i + 1].
    """
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    pieces: dict[int, list[np.ndarray]] = {}
    for ring in rings(mask):
        x, y = ring[:2].min(0)  # the first two corners are the ends of a horizontal edge
        label = max(labels[row, x] for row in (y - 1, y) if 0 <= row < len(labels))
        pieces.setdefault(int(label), []).append(ring.astype(np.float64))
    found = []
    for label in sorted(pieces):
        outer, *holes = sorted(pieces[label], key=lambda ring: -enclosed_area(ring))
        if tolerance:
            simple = approximate(outer, tolerance)
            outer = simple if len(simple) >= 3 else outer
            holes = [hole for ring in holes if len(hole := approximate(ring, tolerance)) >= 3]
        found.append(join_loops([outer, *holes]))
    return found


def rings(mask: np.ndarray) -> list[np.ndarray]:
    """The closed paths between the pixels of a mask (h, w) and the others, each (n, 2) int64 corners x, y.

    Every edge between a pixel of the mask and another belongs to one path, once. Edges are horizontal and vertical in
    turn, beginning with a horizontal one.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    # Where four pixels meet there is no corner or one, and two where pixels of the mask touch diagonally.
    ends = np.abs(np.diff(np.abs(np.diff(padded, axis=0)), axis=1))
    diagonal = padded[:-1, :-1] + padded[1:, 1:] - padded[:-1, 1:] - padded[1:, :-1]
    corners = np.where(np.abs(diagonal) == 2, 2, ends)
    y, x = np.repeat(np.argwhere(corners), corners[corners > 0], axis=0).T
    # In a row, the first and the second corner are the ends of a horizontal edge, the third and the fourth of another,
    # and so on; likewise in a column.
    numbers = np.arange(len(x))
    across_row = numbers ^ 1
    by_column = np.lexsort((numbers, y, x))
    along_column = np.empty_like(numbers)
    along_column[by_column] = by_column[numbers ^ 1]
    cycles = _cycles(across_row.tolist(), along_column.tolist())
    return [np.stack([x[path], y[path]], 1) for path in cycles]


def _cycles(first: list[int], second: list[int]) -> Iterator[list[int]]:
    """The cycles of corners, each joined to two others, from one to the next by `first` and `second` in turn."""
    done = [False] * len(first)
    for start in range(len(first)):
        path, corner = [], start
        while not done[corner]:
            other = first[corner]
            done[corner] = done[other] = True
            path += [corner, other]
            corner = second[other]
        if path:
            yield path
