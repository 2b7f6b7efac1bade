"""Taps: for each row and column of a view, the pixels of the image that the device blends there.

The device resizes (`diou_jax.detection.preprocess`); the host computes the taps in float64, as OpenCV does.
"""

import cv2
import numpy as np

from diou_jax.data.view import Size, View
from diou_jax.structures import Taps


def linear_taps(source: int, output: int, length: int, *, scale: float = 1.0, offset: float = 0.0) -> Taps:
    """The pixels that OpenCV's linear resize blends along one axis; the border is repeated.

    Output pixel i lies at ``(i + 0.5 - offset) / scale - 0.5``, with the exact factor: it differs from `output` /
    `source` if the size was rounded.

    Args:
      source: pixels of the image along the axis.
      output: pixels of the view along the axis.
      length: length of the returned arrays, at least `output`; the rest refers to pixel 0.
      scale: the factor.
      offset: the shift, pixels of the view.

    Returns:
      Indices (2, length) int32 and weights (length,) float32.
    """
    position = (np.arange(output) + (0.5 - offset)) * (1.0 / scale) - 0.5
    before = np.floor(position)
    index = np.zeros((2, length), np.int32)
    weight = np.zeros(length, np.float32)
    index[:, :output] = np.clip([before, before + 1], 0, source - 1)
    weight[:output] = position - before
    return Taps(index, weight)


def taps(view: View, shape: Size) -> tuple[Taps, Taps]:
    """The taps of rows and columns of a view, in a network input of `shape`.

    Raises:
      ValueError: if the view is larger than `shape`, or the image does not fill the view.
    """
    for side, size, limit, scale, offset in zip(view.source, view.size, shape, view.scale, view.offset):
        if size > limit or offset >= 1 or side * scale + offset <= size - 1:
            raise ValueError(f"{view}: the image must fill the view, and the view must fit into {shape}")
    rows, columns = (
        linear_taps(side, size, length, scale=scale, offset=offset)
        for side, size, length, scale, offset in zip(view.source, view.size, shape, view.scale, view.offset)
    )
    return rows, Taps(view.source[1] - 1 - columns.index, columns.weight) if view.mirrored else columns


def recolour(image: np.ndarray, view: View) -> np.ndarray:
    """An image (H, W, 3) uint8 with the view's colour change; values are rounded and limited to 0 to 255."""
    return image if view.colour is None else cv2.transform(image, view.colour)


def resample(image: np.ndarray, view: View) -> np.ndarray:
    """The view of an image (H, W, 3) uint8, made here instead of on the device, and rounded to uint8."""
    rows, columns = taps(view, view.size)

    def blend_columns(rows):
        left, right = (image[rows][:, index].astype(np.float32) for index in columns.index)
        return left + (right - left) * columns.weight[None, :, None]

    above, below = (blend_columns(index) for index in rows.index)
    return np.rint(above + (below - above) * rows.weight[:, None, None]).astype(np.uint8)
