"""Polygons with fewer vertices, by the algorithm of Douglas and Peucker as OpenCV has it.

A part may pass through a point several times, as it does where a cut leads from an outer ring to a hole and back. Under
the even-odd rule it equals the loops between these visits. Each loop is simplified by itself, so that both sides of a
cut stay equal and cancel, and then the loops become one part again.
"""

from collections.abc import Sequence

import cv2
import numpy as np

# Halvings of the interval, in octaves, in which the smallest sufficient tolerance is searched.
BISECTIONS = 20

# The finest tolerance that is tried, pixels.
FINEST = 1 / 64


def simplify(parts: Sequence[np.ndarray], limit: int) -> list[np.ndarray]:
    """An object with at most `limit` vertices.

    All loops have one tolerance, the smallest that suffices, so that large and small ones lose detail of the same size;
    loops that are smaller than it vanish. If this leaves none, each becomes a triangle, and the largest stay.

    Args:
      parts: the object's parts, (n, 2) float64, pixels.
      limit: at least 3.
    """
    groups = [found for part in parts if (found := loops(part))]
    if _cost(groups) <= limit:
        return [join_loops(group) for group in groups]
    low, high = np.log2(FINEST), np.log2(max(np.ptp(loop, 0).max() for group in groups for loop in group)) + 1
    best: list = []  # at the upper end nothing is left
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = _within(groups, 2.0**middle)
        if _cost(found) <= limit:
            high, best = middle, found
        else:
            low = middle
    return [join_loops(group) for group in best] or _triangles(groups, limit)


def loops(part: np.ndarray) -> list[np.ndarray]:
    """The loops of which a part consists, each without a repeated vertex; those that are a line are left out.

    Args:
      part: (n, 2) float64, a closed polygon.
    """
    found: list[np.ndarray] = []
    path: list[tuple[float, float]] = []
    place: dict[tuple[float, float], int] = {}
    for point in [*map(tuple, part.tolist()), tuple(part[0].tolist())]:
        if point in place:
            start = place[point]
            loop = path[start:]
            for gone in loop[1:]:
                del place[gone]
            del path[start + 1 :]
            if len(loop) >= 3 and np.ptp(loop, 0).min() > 0:
                found.append(np.array(loop))
        else:
            place[point] = len(path)
            path.append(point)
    return found


def join_loops(group: Sequence[np.ndarray]) -> np.ndarray:
    """One part that is, under the even-odd rule, the symmetric difference of loops.

    It goes from the first vertex of the first loop to that of each other loop and back along the same line.
    """
    first, *others = group
    if not others:
        return first
    pieces = [first, first[:1]]
    for number, loop in enumerate(others):
        pieces += [first[:1], loop, loop[:1]] if number else [loop, loop[:1]]
    return np.concatenate(pieces)


def approximate(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """The loop with some of its vertices left out; fewer than three are left of one that is smaller than the tolerance.

    Args:
      loop: (n, 2).
      tolerance: largest distance of a vertex that is left out from the new loop, pixels.
    """
    return cv2.approxPolyDP(loop.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(np.float64)


def triangle(loop: np.ndarray) -> np.ndarray:
    """Three vertices of a loop (n, 2) that span much of it, in its order."""
    first = np.linalg.norm(loop - loop[0], axis=1).argmax()
    away = loop - loop[first]
    second = np.linalg.norm(away, axis=1).argmax()
    third = np.abs(away[:, 0] * away[second, 1] - away[:, 1] * away[second, 0]).argmax()
    return loop[sorted((first, second, third))]


def enclosed_area(loop: np.ndarray) -> float:
    """The area that a polygon (n, 2) encloses, square pixels."""
    x, y = (loop - loop[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _cost(groups) -> int:
    """Vertices of joined loops."""
    return sum(sum(map(len, group)) + max(0, 2 * len(group) - 2) for group in groups)


def _within(groups, tolerance):
    """The groups of loops that are left at a tolerance."""
    found = [[approximate(loop, tolerance) for loop in group] for group in groups]
    return [kept for group in found if (kept := [loop for loop in group if len(loop) >= 3])]


def _triangles(groups, limit) -> list[np.ndarray]:
    """Triangles for the loops of the largest area, as many as fit."""
    members = [(number, loop) for number, group in enumerate(groups) for loop in group]
    chosen: dict[int, list[np.ndarray]] = {}
    for number, loop in sorted(members, key=lambda member: -enclosed_area(member[1])):
        size = 3 + 2 * (number in chosen)
        if size <= limit:
            chosen.setdefault(number, []).append(triangle(loop))
            limit -= size
    return [join_loops(chosen[number]) for number in sorted(chosen)]
