"""The RPN's anchors: constants of a feature map's size, so numpy."""

from collections.abc import Sequence

import numpy as np


def cell_anchors(*, stride: int, size: float, aspect_ratios: Sequence[float]) -> np.ndarray:
    """The anchors of one cell, centred on its pixels 0 to stride - 1: float32 (len(aspect_ratios), 4).

    A window of stride x stride is first given each aspect ratio, with whole sides (half to even), and scaled to `size`
    afterwards; that rounding is part of the original.

    Args:
      stride: pixels of the input per cell.
      size: side of the square anchor, pixels.
      aspect_ratios: heights over widths.
    """
    ratios = np.asarray(aspect_ratios, np.float64)
    width = np.round(np.sqrt(stride * stride / ratios))
    height = np.round(width * ratios)
    half = 0.5 * (np.stack([width, height], 1) * (size / stride) - 1)
    centre = 0.5 * (stride - 1)
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def grid_anchors(height: int, width: int, *, stride: int, cell: np.ndarray) -> np.ndarray:
    """The anchors of a feature map of height x width cells: float32 (height * width * len(cell), 4).

    Ordered by row, column, anchor of the cell, as the RPN's outputs are.
    """
    x, y = np.meshgrid(np.arange(width) * stride, np.arange(height) * stride)
    shift = np.stack([x, y, x, y], -1)[:, :, None].astype(np.float32)
    return (shift + cell).reshape(-1, 4)
