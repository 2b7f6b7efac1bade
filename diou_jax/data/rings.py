"""The outline of a mask: rings along the edges of its pixels, whose filling gives back the mask bit for bit."""

import cv2
import numpy as np

from diou_jax.data.simplification import approximate, area, join


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
        outer, *holes = sorted(pieces[label], key=lambda ring: -area(ring))
        if tolerance:
            simple = approximate(outer, tolerance)
            outer = simple if len(simple) >= 3 else outer
            holes = [hole for ring in holes if len(hole := approximate(ring, tolerance)) >= 3]
        found.append(join([outer, *holes]))
    return found


def rings(mask: np.ndarray) -> list[np.ndarray]:
    """The closed paths between the pixels of a mask (h, w) and the others, each (n, 2) int64 corners x, y.

    Every edge between a pixel of the mask and another belongs to one path, once. Edges are horizontal and vertical in
    turn, beginning with a horizontal one.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    # The number of corners at each crossing of four pixels: 0 or 1, or 2 where two pixels touch diagonally.
    horizontal = np.abs(np.diff(padded, axis=0))  # edges to the left of column x
    ends = np.abs(np.diff(horizontal, axis=1))
    across = padded[:-1, :-1] + padded[1:, 1:] - padded[:-1, 1:] - padded[1:, :-1]
    number = np.where(np.abs(across) == 2, 2, ends)
    y, x = np.repeat(np.argwhere(number), number[number > 0], axis=0).T
    # In a row, the first and the second corner end a horizontal edge, the third and the fourth, and so on; likewise in
    # a column.
    count = len(x)
    beside = np.arange(count) ^ 1
    column = np.lexsort((np.arange(count), y, x))
    above = np.empty(count, np.int64)
    above[column] = column[np.arange(count) ^ 1]
    beside, above = beside.tolist(), above.tolist()
    found, done = [], [False] * count
    for start in range(count):
        path, corner = [], start
        while not done[corner]:
            other = beside[corner]
            path += [corner, other]
            done[corner] = done[other] = True
            corner = above[other]
        if path:
            found.append(np.stack([x[path], y[path]], 1))
    return found
