"""Views: the part of an image that the network sees, and at which size.

An augmentation makes a view, and views are applied one after the other. Whatever needs to know where a pixel of the
image lies in the network's input (taps, boxes, results) asks the view.
"""

import dataclasses

import numpy as np

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A map from an image to a part of the network's input.

    The image is mirrored first, if at all. Then a point (y, x) of it, where pixel i spans [i, i + 1], lies at
    ``scale * (y, x) + offset`` in the view. A view that starts inside the image has a negative offset.

    Attributes:
      source: height and width of the image, pixels.
      size: height and width of the view, pixels of the network's input.
      scale: vertical and horizontal factor.
      offset: vertical and horizontal shift, pixels of the network's input.
      mirrored: whether left and right are exchanged.
      colour: float (3, 4), the colour change of a pixel (b, g, r): ``colour @ (b, g, r, 1)``; None changes nothing.
    """

    source: Size
    size: Size
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False
    colour: np.ndarray | None = None

    def then(self, after: "View") -> "View":
        """The view that applies this one, then a view of its result."""
        if after.source != self.size:
            raise ValueError(f"a view of {after.source} cannot follow one that makes {self.size}")
        top, left = self.offset
        if after.mirrored:
            left = self.size[1] - (self.scale[1] * self.source[1] + left)  # the distance from the right edges
        return View(
            self.source,
            after.size,
            scale=(after.scale[0] * self.scale[0], after.scale[1] * self.scale[1]),
            offset=(after.scale[0] * top + after.offset[0], after.scale[1] * left + after.offset[1]),
            mirrored=self.mirrored != after.mirrored,
            colour=_chain(self.colour, after.colour),
        )

    def within(self, shape: Size) -> "View":
        """The same view, scaled down if it exceeds a height and width."""
        scale = min(1.0, *(limit / side for limit, side in zip(shape, self.size)))
        return self if scale == 1 else self.then(scaled(self.size, scale))

    @property
    def cuts(self) -> bool:
        """Whether a whole pixel or more of the image lies outside; less is rounding of the size."""
        return any(
            offset <= -1 or scale * side + offset >= size + 1
            for side, size, scale, offset in zip(self.source, self.size, self.scale, self.offset)
        )

    @property
    def window(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """First and last edge of the visible part, vertical and horizontal, in pixels of the mirrored image."""
        first, last = (
            tuple(
                float(np.clip((edge - offset) / scale, 0, side))
                for edge, side, scale, offset in zip(edges, self.source, self.scale, self.offset)
            )
            for edges in ((0, 0), self.size)
        )
        return (first[0], last[0]), (first[1], last[1])

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mirrors boxes with the image and cuts them off where the view ends.

        Args:
          boxes: (n, 4), inclusive pixels of the image.

        Returns:
          Boxes (n, 4) in inclusive pixels of the mirrored image, and (n,) bool, False for boxes outside the view.
        """
        if self.mirrored:
            boxes = flip_boxes(boxes, self.source[1])
        if not self.cuts:
            return boxes, np.ones(len(boxes), bool)
        (top, bottom), (left, right) = self.window
        low, high = np.array([left, top]), np.array([right, bottom]) - 1
        cut = np.concatenate([np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)], 1).astype(boxes.dtype)
        return cut, (cut[:, 2:] - cut[:, :2] + 1 > 0).all(1)

    def edges(self, edges: np.ndarray) -> np.ndarray:
        """Edges x1, y1, x2, y2 (n, 4) of boxes of the image in pixels of the view; boxes outside it are left out."""
        if not len(edges):
            return edges
        x, y = edges[:, ::2], edges[:, 1::2]
        if self.mirrored:
            x = self.source[1] - x[:, ::-1]
        x = np.clip(self.scale[1] * x + self.offset[1], 0, self.size[1])
        y = np.clip(self.scale[0] * y + self.offset[0], 0, self.size[0])
        inside = (x[:, 0] < x[:, 1]) & (y[:, 0] < y[:, 1])
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)[inside]


def whole(size: Size) -> View:
    """All of an image, unchanged."""
    return View(size, size)


def mirrored(size: Size) -> View:
    """An image with left and right exchanged."""
    return View(size, size, mirrored=True)


def scaled(size: Size, scale: float) -> View:
    """An image scaled by one factor; its size is rounded as OpenCV rounds it."""
    return View(size, resized_size(*size, scale), scale=(scale, scale))


def cropped(size: Size, top: float, left: float, *, shape: Size) -> View:
    """The part of an image that starts at (top, left) and has at most a height and width; all numbers are pixels."""
    part = tuple(max(min(limit, int(side - first)), 1) for limit, side, first in zip(shape, size, (top, left)))
    return View(size, (part[0], part[1]), offset=(-top, -left))


def recoloured(size: Size, colour: np.ndarray) -> View:
    """An image whose colours change, see `View.colour`."""
    return View(size, size, colour=np.asarray(colour, np.float64))


def image_scale(height: int, width: int, *, target: int, max_size: int) -> float:
    """The factor that scales the shorter side to `target`, or the longer to `max_size` if it would exceed it."""
    scale = target / min(height, width)
    if np.round(scale * max(height, width)) > max_size:
        scale = max_size / max(height, width)
    return scale


def resized_size(height: int, width: int, scale: float) -> Size:
    """Height and width after scaling, rounded half to even, as OpenCV does; at least one pixel."""
    return max(int(np.round(height * scale)), 1), max(int(np.round(width * scale)), 1)


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Mirrors (n, 4) boxes in an image `width` pixels wide."""
    flipped = boxes.copy()
    flipped[:, 0] = width - boxes[:, 2] - 1
    flipped[:, 2] = width - boxes[:, 0] - 1
    return flipped


def flip_points(points: np.ndarray, width: int) -> np.ndarray:
    """Mirrors points (..., 2) in an image `width` pixels wide, as the original does, which treats them like boxes."""
    flipped = points.copy()
    flipped[..., 0] = width - points[..., 0] - 1
    return flipped


def _chain(first, second):
    """The colour change `first` followed by `second`."""
    if first is None or second is None:
        return second if first is None else first
    return np.concatenate([second[:, :3] @ first[:, :3], second[:, :3] @ first[:, 3:] + second[:, 3:]], 1)
