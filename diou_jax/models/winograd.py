"""3x3 convolutions with 16 products where 36 were, for CPUs (Winograd's F(2x2, 3x3); Lavin and Gray, CVPR 2016).

Each 2x2 cells of the output follow from 4x4 of the input. Input and output tiles are only added and subtracted, kernels
also halved, so that the results are those of any other order of summation, up to float32's rounding. Each of the 16
positions in a tile is one matrix product over all tiles.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# With fewer channels, moving tiles takes longer than the saved products. On smaller maps the gain is below a
# millisecond, and each such convolution takes a second longer to compile.
GRADIENT = {"channels": 128, "cells": 512}
# XLA's convolution is better forward and back to the input than for the kernel's gradient, so that less is to gain.
FORWARD = {"channels": 256, "cells": 512}


def pays(x: jax.Array, kernel: jax.Array, *, channels: int, cells: int) -> bool:
    """Whether a CPU is faster this way: `GRADIENT` tells of the kernel's gradient, `FORWARD` of the rest."""
    narrow = min(kernel.shape[0], kernel.shape[3])
    return x.dtype == jnp.float32 and narrow >= channels and x.size // x.shape[-1] >= cells


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves (B, H, W, C) with a kernel (features, 3, 3, C), padded by one cell."""
    return _multiply(x, [position.T for position in _kernel_tiles(kernel)])


def input_gradient(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient of the input of `convolve` from that of its result."""
    return _multiply(gradient, _kernel_tiles(jnp.flip(kernel, (1, 2))))


def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of the kernel of `convolve` from its input and that of its result."""
    channels, features = x.shape[-1], gradient.shape[-1]
    _, height, width, _ = gradient.shape
    padded = jnp.pad(gradient, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    cells = [padded[:, row::2, column::2] for row in range(2) for column in range(2)]
    spread = _twice(cells, lambda a: (a[0], a[0] + a[1], a[0] - a[1], -a[1]), 2)
    products = [
        one.reshape(-1, features).T @ tile.reshape(-1, channels)
        for tile, one in zip(_input_tiles(x), spread, strict=True)
    ]
    nine = _twice(products, lambda a: (a[0] + (a[1] + a[2]) / 2, (a[1] - a[2]) / 2, (a[1] + a[2]) / 2 + a[3]), 4)
    return jnp.stack(nine, 1).reshape(features, 3, 3, channels)


def _multiply(x, kernels):
    """The map whose transformed tiles are those of `x`, (B, H, W, C), times 16 matrices (C, features)."""
    _, height, width, channels = x.shape
    products = [
        (tile.reshape(-1, channels) @ one).reshape(*tile.shape[:3], -1)
        for tile, one in zip(_input_tiles(x), kernels, strict=True)
    ]
    rows = _twice(products, lambda a: (a[0] + a[1] + a[2], a[1] - a[2] - a[3]), 4)
    batch, down, across, features = rows[0].shape
    y = jnp.stack([jnp.stack(rows[:2], 3), jnp.stack(rows[2:], 3)], 2)
    return y.reshape(batch, 2 * down, 2 * across, features)[:, :height, :width]


def _kernel_tiles(kernel):
    """The 16 positions of the transformed kernel (features, 3, 3, C): (features, C) each."""
    cells = [kernel[:, row, column] for row in range(3) for column in range(3)]
    # Sums, not a product with the matrix of the transform: XLA would transpose the kernel three times for it.
    return _twice(cells, lambda a: (a[0], (a[0] + a[1] + a[2]) / 2, (a[0] - a[1] + a[2]) / 2, a[2]), 3)


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
