"""The 3x3 patches around a few cells of a pyramid, and the transpose, which adds patches to maps.

A cell is an index that counts row by row and level by level.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def take_cells(maps: Sequence[jax.Array], cells: jax.Array) -> jax.Array:
    """The features (B, S, C) of cells of B pyramids.

    Args:
      maps: (B, Hl, Wl, C) of each level.
      cells: int32 (B, S); an index beyond the last cell reads zeros.
    """
    features = jnp.zeros((), maps[0].dtype)
    for level, (first, size) in zip(maps, _extents([level.shape for level in maps]), strict=True):
        exists = (cells >= first) & (cells < first + size)
        flat = level.reshape(len(level), size, -1)
        taken = jax.vmap(lambda x, place: x.at[place].get(mode="clip"))(flat, jnp.where(exists, cells - first, 0))
        features += jnp.where(exists[..., None], taken, 0)
    return features


def take_patches(maps: Sequence[jax.Array], cells: jax.Array) -> jax.Array:
    """Features of the cells (B, S) and their eight neighbours on the same level, (B, S, 9, C); zeros beyond a map."""
    shapes = [level.shape for level in maps]
    return jnp.stack([take_cells(maps, _neighbours(shapes, cells, offset)) for offset in OFFSETS], 2)


def put_patches(patches: jax.Array, cells: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """The transpose of `take_patches`: maps (B, Hl, Wl, C) in which each cell is the sum of the patches that reach it.

    Apart from indices beyond the last cell, the cells of an image must differ. Then no addition writes a cell twice,
    and every run adds in the same order.
    """
    extents = _extents(shapes)
    rows, total = jnp.arange(len(cells))[:, None], sum(size for _, size in extents)
    flat = jnp.zeros((len(cells), total, shapes[0][-1]), patches.dtype)
    for index, offset in enumerate(OFFSETS):
        place = _neighbours(shapes, cells, offset)
        flat = flat.at[rows, place].add(patches[:, :, index], mode="drop", unique_indices=True)
    return [flat[:, first : first + size].reshape(shape) for shape, (first, size) in zip(shapes, extents, strict=True)]


def _extents(shapes):
    """The first cell and the number of cells of each level."""
    sizes = [math.prod(shape[1:3]) for shape in shapes]
    return list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True))


def _neighbours(shapes, cells, offset):
    """The cells (B, S) at `offset` from `cells` on the same level; the index beyond the last where there is none."""
    total = sum(_extents(shapes)[-1])
    # An empty level behind the last one takes the indices beyond the last cell.
    levels = [(first, *shape[1:3]) for shape, (first, _) in zip(shapes, _extents(shapes), strict=True)]
    levels.append((total, 0, 1))
    first, height, width = levels[0]
    for (start, *_), (jump, taller, wider) in zip(levels[1:], np.diff(levels, axis=0).tolist(), strict=True):
        beyond = (cells >= start).astype(cells.dtype)
        first, height, width = first + jump * beyond, height + taller * beyond, width + wider * beyond
    local = jnp.maximum(cells - first, 0)
    y, x = jax.lax.div(local, width) + offset[0], jax.lax.rem(local, width) + offset[1]
    exists = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return jnp.where(exists, first + y * width + x, total)
