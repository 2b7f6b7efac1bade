"""3x3 convolutions with fewer products, for CPUs (Winograd's minimal filtering; Lavin and Gray, CVPR 2016).

Forward and back to the input, 4x4 cells of the output follow from 6x6 of the input with 36 products instead of 144. The
kernel's gradient sums over the whole map and takes 2x2 cells, 16 products instead of 36, which add no rounding error.
Each position in a tile is one matrix product over all tiles.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Lavin and Gray's G for 2x2 and 4x4 cells.
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
KERNEL_OF_4 = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
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
    batch, height, width, channels = x.shape
    down, across = -(-height // 4), -(-width // 4)
    kernels = jnp.einsum("ai,bj,oijc->abco", KERNEL_OF_4, KERNEL_OF_4, kernel)
    x = jnp.pad(x, ((0, 0), (1, 4 * down - height + 1), (1, 4 * across - width + 1), (0, 0)))
    rows = _stored(_input_of_4([x[:, row : row + 4 * down - 3 : 4] for row in range(6)]), 0)
    tiles = _stored(_input_of_4([rows[:, :, :, column : column + 4 * across - 3 : 4] for column in range(6)]), 1)
    products = [
        [tiles[row, column].reshape(-1, channels) @ kernels[row, column] for column in range(6)] for row in range(6)
    ]
    columns = _stored([jnp.stack(_output_of_4(row), 1) for row in products], 0)
    y = jnp.stack(_output_of_4(columns.reshape(6, batch, down, across, 4, -1)), 2)
    return y.reshape(batch, 4 * down, 4 * across, -1)[:, :height, :width]


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


def _input_of_4(cells):
    """The transform of six cells of the input along one axis."""
    a, b, c, d, e, f = cells
    even, odd, far, near = e - 4 * c, d - 4 * b, e - c, 2 * (d - b)
    return 4 * a - 5 * c + e, even + odd, even - odd, far + near, far - near, 4 * b - 5 * d + f


def _output_of_4(products):
    """Four cells of the output along one axis, from six products."""
    a, b, c, d, e, f = products
    near, nearer, far, farther = b + c, b - c, d + e, d - e
    return a + near + far, nearer + 2 * farther, near + 4 * far, nearer + 8 * farther + f


def _stored(arrays, axis):
    """The stacked arrays in memory; fused with what reads them, XLA would compute each several times."""
    return jax.lax.optimization_barrier(jnp.stack(arrays, axis))
