"""What a 3x3 convolution sees of a few cells of a pyramid, and the way back."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def take_cells(maps: Sequence[jax.Array], cells: jax.Array) -> jax.Array:
    """The features (B, S, C) of cells of B pyramids.

    Args:
      maps: (B, Hl, Wl, C) of each level.
      cells: int32 (B, S), counted row by row and level by level; what lies beyond the last reads zeros.
    """
    return sum(_take(level, place) for level, place in zip(maps, _places(maps, cells, (0, 0)), strict=True))


def take_patches(maps: Sequence[jax.Array], cells: jax.Array) -> jax.Array:
    """The cells (B, S) with their eight neighbours on the same level, (B, S, 9, C); zeros beyond a map's edge."""
    patches = []
    for offset in OFFSETS:
        places = _places(maps, cells, offset)
        patches.append(sum(_take(level, place) for level, place in zip(maps, places, strict=True)))
    return jnp.stack(patches, 2)


def put_patches(patches: jax.Array, cells: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """The transpose of `take_patches`: the sum, in each of the maps (B, Hl, Wl, C), of the patches that reach a cell.

    An image's cells must differ, but for those beyond the last. Then no two rows of one addition meet, and every run
    adds in the same order.
    """
    maps = [jnp.zeros(shape, patches.dtype) for shape in shapes]
    for index, offset in enumerate(OFFSETS):
        places = _places(maps, cells, offset)
        maps = [_add(level, place, patches[:, :, index]) for level, place in zip(maps, places, strict=True)]
    return maps


def _places(maps, cells, offset):
    """For each level the places (B, S) in its flattened map that lie `offset` from the cells; its size where none."""
    first = 0
    for level in maps:
        height, width = level.shape[1:3]
        local = cells - first
        y, x = local // width + offset[0], local % width + offset[1]
        exists = (local >= 0) & (local < height * width) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        yield jnp.where(exists, y * width + x, height * width)
        first += height * width


def _take(level, place):
    batch, height, width, channels = level.shape
    rows = jnp.arange(batch)[:, None]
    return level.reshape(batch, height * width, channels).at[rows, place].get(mode="fill", fill_value=0)


def _add(level, place, values):
    batch, height, width, channels = level.shape
    rows = jnp.arange(batch)[:, None]
    flat = level.reshape(batch, height * width, channels)
    return flat.at[rows, place].add(values, mode="drop", unique_indices=True).reshape(level.shape)
