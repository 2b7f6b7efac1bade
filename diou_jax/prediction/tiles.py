"""Tiles: overlapping parts of a large image that the network sees one by one, so that small objects stay large enough.

An object at the border of a tile is seen twice, and one of both views may show a part of it only. So each point of the
image belongs to one tile, whose core it lies in; cores end in the middle of the overlaps. A tile reports the objects
whose centre lies in its core. Let o be the overlap: an object of at most o pixels is whole in the tile whose core has
its centre, and where another tile sees a part of it, the centre of this part lies outside that tile's core. Predicted
centres are not exact. Therefore cores are larger by o / 8, which finds no part of an object of up to 3/4 o, and the
detector's suppression removes objects that two tiles have found.
"""

import dataclasses
import itertools
import math

import numpy as np

from diou_jax.data.view import Size

# Part of the overlap by which cores are extended, and within which a box counts as cut off at a border.
SLACK = 1 / 8


@dataclasses.dataclass(frozen=True)
class TileRules:
    """How images are divided: the options predict.*.

    Attributes:
      side: height and width of a tile in pixels of the image; 0: images are not divided.
      overlap: smallest overlap of neighbouring tiles, pixels.
      whole: whether the network sees the whole image as well, reduced to its usual size.
    """

    side: int
    overlap: int
    whole: bool


@dataclasses.dataclass(frozen=True)
class Tile:
    """A part of an image; edges are top, left, bottom, right in pixels, and pixel i spans [i, i + 1].

    Attributes:
      window: edges of the part.
      core: edges of the region whose objects the tile reports; infinite where the image ends.
      cut: edges of the part at which objects may be cut off; infinite where the image ends.
      slack: pixels by which predicted centres and borders may be wrong.
      whole: whether it is the whole image, as one more view beside the tiles.
    """

    window: tuple[int, int, int, int]
    core: tuple[float, float, float, float]
    cut: tuple[float, float, float, float]
    slack: float
    whole: bool = False

    @property
    def offset(self) -> tuple[int, int, int, int]:
        """The shift from boxes of the tile to boxes of the image: left, top, left, top."""
        top, left = self.window[:2]
        return left, top, left, top

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The part of an image (H, W, ...)."""
        top, left, bottom, right = self.window
        return image[top:bottom, left:right]

    def reports(self, boxes: np.ndarray, *, drop_cut: bool) -> np.ndarray:
        """Which boxes the tile reports, bool (N,).

        Args:
          boxes: (N, 4), inclusive pixels of the image.
          drop_cut: whether boxes that reach a border inside the image are left out: they are parts of objects that
            another view shows whole.
        """
        boxes = boxes.astype(np.float64) + np.array([0, 0, 1, 1])
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        top, left, bottom, right = self.core
        slack = self.slack
        inside = (x >= left - slack) & (x < right + slack) & (y >= top - slack) & (y < bottom + slack)
        if drop_cut:
            top, left, bottom, right = self.cut
            inside &= (boxes[:, 0] >= left + slack) & (boxes[:, 1] >= top + slack)
            inside &= (boxes[:, 2] <= right - slack) & (boxes[:, 3] <= bottom - slack)
        return inside

    def margin(self, boxes: np.ndarray) -> np.ndarray:
        """How far inside the tile boxes (N, 4) lie, pixels (N,); negative where a box reaches out of it.

        The image's own borders do not count. The margin is 0 in the whole image, which is reduced more than a tile.
        """
        if self.whole:
            return np.zeros(len(boxes))
        top, left, bottom, right = self.cut
        x1, y1, x2, y2 = boxes.astype(np.float64).T
        return np.min([x1 - left, y1 - top, right - 1 - x2, bottom - 1 - y2], axis=0)


def divide(size: Size, rules: TileRules) -> list[Tile]:
    """The views of an image; all tiles have one size, and there is one view only if the image fits into a tile.

    Args:
      size: height and width of the image in pixels.
      rules: tiles' size and overlap.
    """
    rows, columns = (_spans(length, rules) for length in size)
    slack = rules.overlap * SLACK
    tiles = []
    for row, column in itertools.product(rows, columns):
        window, core, cut = (_edges(*pair) for pair in zip(row, column, strict=True))
        tiles.append(Tile(window, core, cut, slack))
    if rules.whole and len(tiles) > 1:
        endless = (-math.inf, -math.inf, math.inf, math.inf)
        tiles.append(Tile((0, 0, *size), endless, endless, slack, whole=True))
    return tiles


def _spans(length: int, rules: TileRules) -> list[tuple[tuple, tuple, tuple]]:
    """First and last edge of window, core and cut of each tile along an axis of `length` pixels."""
    if not rules.side or length <= rules.side:
        return [((0, length), (-math.inf, math.inf), (-math.inf, math.inf))]
    count = -(-(length - rules.overlap) // (rules.side - rules.overlap))
    starts = [round(number * (length - rules.side) / (count - 1)) for number in range(count)]
    spans = []
    for number, start in enumerate(starts):
        end = start + rules.side
        first, last = number == 0, number == count - 1
        core = (
            -math.inf if first else (start + starts[number - 1] + rules.side) / 2,
            math.inf if last else (starts[number + 1] + end) / 2,
        )
        spans.append(((start, end), core, (-math.inf if first else start, math.inf if last else end)))
    return spans


def _edges(vertical: tuple, horizontal: tuple) -> tuple:
    return vertical[0], horizontal[0], vertical[1], horizontal[1]
