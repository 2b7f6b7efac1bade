"""3x3 convolutions with 16 products where 36 were, for CPUs (Winograd's F(2x2, 3x3); Lavin and Gray, CVPR 2016).

Each 2x2 cells of the output follow from 4x4 of the input. Input and output tiles are only added and subtracted, kernels
also halved, so that the results are those of any other order of summation, up to float32's rounding. Each of the 16
positions in a tile is one matrix product over all tiles.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)  # Lavin and Gray's G
# With fewer channels moving tiles takes longer than the products that are saved, with fewer cells turning the kernel.
GRADIENT = {"channels": 128, "cells": 1024}
# Forward and back to the input XLA's convolution does well, so that there is less to gain.
FORWARD = {"channels": 256, "cells": 4096}


def pays(x: jax.Array, kernel: jax.Array, *, channels: int, cells: int) -> bool:
    """Whether a CPU is faster this way: `GRADIENT` tells of the kernel's gradient, `FORWARD` of the rest."""
    narrow = min(kernel.shape[0], kernel.shape[3])
    return x.dtype == jnp.float32 and narrow >= channels and x.size // x.shape[-1] >= cells


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves (B, H, W, C) with a kernel (features, 3, 3, C), padded by one cell."""
    _, height, width, channels = x.shape
    kernels = jnp.einsum("ai,bj,oijc->abco", KERNEL, KERNEL, kernel).reshape(16, channels, -1)
    tiles = _input_tiles(x)
    products = [
        (tile.reshape(-1, channels) @ one).reshape(*tile.shape[:3], -1)
        for tile, one in zip(tiles, kernels, strict=True)
    ]
    rows = _twice(products, lambda a: (a[0] + a[1] + a[2], a[1] - a[2] - a[3]), 4)
    batch, down, across, features = rows[0].shape
    y = jnp.stack([jnp.stack(rows[:2], 3), jnp.stack(rows[2:], 3)], 2)
    return y.reshape(batch, 2 * down, 2 * across, features)[:, :height, :width]


def input_gradient(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient of the input of `convolve` from that of its result."""
    return convolve(gradient, jnp.flip(kernel, (1, 2)).transpose(3, 1, 2, 0))


def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of the kernel of `convolve` from its input and that of its result."""
    channels, features = x.shape[-1], gradient.shape[-1]
    _, height, width, _ = gradient.shape
    padded = jnp.pad(gradient, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    cells = [padded[:, row::2, column::2] for row in range(2) for column in range(2)]
    spread = _twice(cells, lambda a: (a[0], a[0] + a[1], a[0] - a[1], -a[1]), 2)
    products = [
        tile.reshape(-1, channels).T @ one.reshape(-1, features)
        for tile, one in zip(_input_tiles(x), spread, strict=True)
    ]
    square = jnp.stack(products).reshape(4, 4, channels, features)
    return jnp.einsum("ai,bj,abco->oijc", KERNEL, KERNEL, square)


def _input_tiles(x):
    """The 16 positions of the transformed 4x4 tiles, which overlap by two cells: (B, H / 2, W / 2, C) each."""
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    ends = [side // 2 * 2 - 3 for side in x.shape[1:3]]  # from one tile's first cell to the last one's, and one more
    cells = [x[:, row : row + ends[0] : 2, column : column + ends[1] : 2] for row in range(4) for column in range(4)]
    return _twice(cells, lambda a: (a[0] - a[2], a[1] + a[2], a[2] - a[1], a[1] - a[3]), 4)


def _twice(cells: Sequence[jax.Array], transform: Callable, side: int) -> list[jax.Array]:
    """The transform of the columns, then of the rows, of a square of `side` by `side` arrays, row by row."""
    rows = [transform(cells[side * row : side * (row + 1)]) for row in range(side)]
    columns = [transform(column) for column in zip(*rows, strict=True)]
    return [one for row in zip(*columns, strict=True) for one in row]
