"""The outlines of objects as columns: plain arrays, so that a worker process gets them by one copy.

An object consists of parts, closed polygons. Inside a part the even-odd rule holds, so that a part may have holes; the
object is the union of its parts.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from diou_jax.data.buckets import round_up
from diou_jax.data.simplification import simplify
from diou_jax.structures import Polygons

# The largest limit of vertices that follows from the data. The border of a square mask of 28 by 28 cells, the default,
# has 112 cells, so that each can have two vertices. 5 in 1000 outlines of COCO128's masks have more.
MOST_VERTICES = 256


@dataclasses.dataclass(frozen=True)
class Outlines:
    """The outlines of M objects with Q parts and V vertices in all; an object without parts has no known mask.

    Attributes:
      points: (V, 2) float64, x and y in pixels of the image file, as the json has them. They are mirrored before they
        become float32, as in the original, which rounds some of them to another number than the reverse order does.
      parts: (Q + 1,) int64; part q has the vertices parts[q] to parts[q + 1] - 1.
      objects: (M + 1,) int64; object m has the parts objects[m] to objects[m + 1] - 1.
    """

    points: np.ndarray
    parts: np.ndarray
    objects: np.ndarray

    def __len__(self) -> int:
        return len(self.objects) - 1

    @property
    def sizes(self) -> np.ndarray:
        """Vertices of each object, (M,) int64."""
        return np.diff(self.parts[self.objects])

    def limit(self, asked: int = 0) -> int:
        """P, the static number of vertices of an object: `asked`, or if that is 0 the largest object's.

        The latter is rounded up to a multiple of 16 and at most `MOST_VERTICES`.
        """
        return asked or min(round_up(int(self.sizes.max(initial=0)), 16), MOST_VERTICES)

    def of(self, index: int) -> list[np.ndarray]:
        """The parts of one object, each (n, 2) float64; views, not copies."""
        numbers = range(self.objects[index], self.objects[index + 1])
        return [self.points[self.parts[number] : self.parts[number + 1]] for number in numbers]

    def slice(self, start: int, stop: int) -> "Outlines":
        """The objects from `start` to `stop`; the vertices are views, not copies."""
        objects = self.objects[start : stop + 1]
        parts = self.parts[objects[0] : objects[-1] + 1]
        return Outlines(self.points[parts[0] : parts[-1]], parts - parts[0], objects - objects[0])

    def take(self, rows: np.ndarray) -> "Outlines":
        """The objects `rows`, (n,) int, in that order."""
        numbers, objects = gather(self.objects, rows)
        vertices, parts = gather(self.parts, numbers)
        return Outlines(self.points[vertices], parts, objects)

    def without(self, objects: np.ndarray) -> "Outlines":
        """The same objects, those of a mask (M,) bool without their outlines."""
        return self.take(np.flatnonzero(~objects)).spread(~objects) if objects.any() else self

    def spread(self, place: np.ndarray) -> "Outlines":
        """A longer table with these objects where a mask (N,) bool is True, and objects without outlines elsewhere."""
        counts = np.zeros(len(place), np.int64)
        counts[place] = np.diff(self.objects)
        return Outlines(self.points, self.parts, _offsets(counts))

    def within(self, limit: int) -> "Outlines":
        """The same objects, those with more than `limit` vertices simplified to it."""
        large = np.flatnonzero(self.sizes > limit)
        if not len(large):
            return self
        simple = from_parts([simplify(self.of(index), limit) for index in large.tolist()])
        rows = np.arange(len(self))
        rows[large] = len(self) + np.arange(len(large))
        return concatenate([self, simple]).take(rows)

    def padded(self, limit: int) -> Polygons:
        """The outlines as arrays: points float64 (M, P, 2) and parts int32 (M, P), where P is `limit`.

        Raises:
          ValueError: if an object has more vertices.
        """
        sizes = self.sizes
        if sizes.max(initial=0) > limit:
            raise ValueError(f"an object has {sizes.max()} vertices; they do not fit into {limit}")
        points = np.zeros((len(self), limit, 2))
        part = np.full((len(self), limit), -1, np.int32)
        place = np.arange(limit) < sizes[:, None]
        points[place] = self.points
        of_object = np.arange(len(self.parts) - 1) - np.repeat(self.objects[:-1], np.diff(self.objects))
        part[place] = np.repeat(of_object, np.diff(self.parts))
        return Polygons(points, part)


def from_parts(objects: Iterable[Sequence[np.ndarray]]) -> Outlines:
    """The table of objects, each a list of parts (n, 2)."""
    objects = list(objects)
    parts = [part for some in objects for part in some]
    return Outlines(
        np.concatenate([np.zeros((0, 2)), *parts]), _offsets(list(map(len, parts))), _offsets(list(map(len, objects)))
    )


def concatenate(tables: Sequence[Outlines]) -> Outlines:
    """The objects of several tables in a row."""
    return Outlines(
        np.concatenate([table.points for table in tables]),
        _offsets(np.concatenate([np.diff(table.parts) for table in tables])),
        _offsets(np.concatenate([np.diff(table.objects) for table in tables])),
    )


def gather(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of chosen rows' entries, where row i of a table has the entries offsets[i] to offsets[i + 1] - 1.

    Args:
      offsets: (N + 1,) int.
      rows: (n,) int, the chosen rows.

    Returns:
      Positions of the entries, row by row; and the offsets of the chosen rows among them, (n + 1,) int64.
    """
    counts = np.diff(offsets)[rows]
    chosen = _offsets(counts)
    return np.repeat(np.asarray(offsets)[rows] - chosen[:-1], counts) + np.arange(chosen[-1]), chosen


def _offsets(counts) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
