"""The RPN's anchors: numpy constants for a feature map's size; in torchvision's layout JAX arrays, one per image."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

from diou_jax.structures import Anchors, Array


@dataclasses.dataclass(frozen=True)
class AnchorGenerator:
    """Makes the anchors of every level of a pyramid.

    Attributes:
      start_size: side in pixels of the finest level's square anchor, doubled at each level.
      aspect_ratios: heights over widths.
      layout: "detectron" or "torchvision"; they centre and space anchors differently.
    """

    start_size: float = 32
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    layout: str = "detectron"

    def __call__(self, pyramid: Mapping[int, Shaped[Array, "B _Hl _Wl C"]], padded_size: Int[Array, "B 2"]) -> Anchors:
        """The anchors of maps (B, Hl, Wl, C) by stride; those of cells beyond `padded_size` do not exist."""
        anchors: list[Array] = []
        exists: list[Array] = []
        for level, (stride, features) in enumerate(pyramid.items()):
            height, width = features.shape[1:3]
            shape = {"size": self.start_size * 2**level, "aspect_ratios": self.aspect_ratios}
            if self.layout == "torchvision":
                cell = torchvision_cell_anchors(**shape)
                anchors.append(torchvision_grid_anchors(padded_size, height, width, stride=stride, cell=cell))
            else:
                cell = cell_anchors(stride=stride, **shape)
                anchors.append(grid_anchors(height, width, stride=stride, cell=cell))
            inside_y = jnp.arange(height) * stride < padded_size[:, :1]
            inside_x = jnp.arange(width) * stride < padded_size[:, 1:]
            inside = inside_y[:, :, None, None] & inside_x[:, None, :, None]
            exists.append(jnp.broadcast_to(inside, (*inside.shape[:3], len(cell))).reshape(len(padded_size), -1))
        return Anchors(anchors, exists)


def join(anchors: Anchors) -> tuple[Float32[Array, "A 4"] | Float32[Array, "B A 4"], Bool[jax.Array, "B A"]]:
    """The anchors of all levels concatenated: boxes (A, 4) or (B, A, 4), and the mask of those that exist, (B, A)."""
    constant = all(isinstance(boxes, np.ndarray) for boxes in anchors.boxes)
    boxes = (np if constant else jnp).concatenate(anchors.boxes, axis=-2)
    return boxes, jnp.concatenate(anchors.exists, 1)


def cell_anchors(
    *, stride: int, size: float, aspect_ratios: Sequence[float] | Float[np.ndarray, "ratios"]
) -> Float32[np.ndarray, "{len(aspect_ratios)} 4"]:
    """The anchors of the first cell, centred on pixels 0 to stride - 1: float32 (len(aspect_ratios), 4).

    As in the original, a window of stride x stride is reshaped to each aspect ratio, its sides are rounded (half to
    even), and the result is scaled to `size`.

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


def torchvision_cell_anchors(
    *, size: float, aspect_ratios: Sequence[float] | Float[np.ndarray, "ratios"]
) -> Float32[np.ndarray, "{len(aspect_ratios)} 4"]:
    """Torchvision's anchors of the first cell, centred on its upper left corner: float32 (len(aspect_ratios), 4).

    The coordinates of edges are rounded, half to even. x2 and y2, as corner pixels, are one less than the edges.
    """
    ratios = np.sqrt(np.asarray(aspect_ratios, np.float32))
    half = np.round(np.stack([size / ratios, size * ratios], 1) / 2)
    return np.concatenate([-half, half - 1], 1).astype(np.float32)


def torchvision_grid_anchors(
    padded_size: Int[Array, "B 2"],
    height: int | np.integer,
    width: int | np.integer,
    *,
    stride: int,
    cell: Float32[np.ndarray, "cell 4"],
) -> Float32[jax.Array, "B {height*width}*cell 4"]:
    """The anchors of B feature maps: float32 (B, height * width * len(cell), 4), ordered as in `grid_anchors`.

    torchvision spaces the cells of a map evenly over the padded image, in whole pixels: where its side is not a
    multiple of `stride`, cells are less than `stride` apart.

    Args:
      padded_size: int (B, 2), height and width of the padded images.
      height: cells of the map, which may be larger than the image needs.
      width: likewise.
      stride: stride of the map.
      cell: (A, 4), from `torchvision_cell_anchors`.
    """
    step = (padded_size // -(-padded_size // stride)).astype(jnp.float32)
    y = jnp.arange(height) * step[:, :1]
    x = jnp.arange(width) * step[:, 1:]
    y, x = (jnp.broadcast_to(v, (len(padded_size), height, width)) for v in (y[:, :, None], x[:, None, :]))
    shift = jnp.stack([x, y, x, y], -1)[:, :, :, None]
    return (shift + cell).reshape(len(padded_size), -1, 4)


def grid_anchors(
    height: int | np.integer, width: int | np.integer, *, stride: int, cell: Float32[np.ndarray, "cell 4"]
) -> Float32[np.ndarray, "{height*width}*cell 4"]:
    """The anchors of a feature map of height x width cells: float32 (height * width * len(cell), 4).

    They are ordered by row, column and anchor of the cell, as the RPN's outputs are.
    """
    x, y = np.meshgrid(np.arange(width) * stride, np.arange(height) * stride)
    shift = np.stack([x, y, x, y], -1)[:, :, None].astype(np.float32)
    return (shift + cell).reshape(-1, 4)
