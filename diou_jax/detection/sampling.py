"""Random draws without replacement, with static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int32, Key

from diou_jax.kernels.top_k import top_k
from diou_jax.structures import Array


def draw_subset(
    mask: Bool[Array, "N"], limit: int, key: Key[jax.Array, ""]
) -> tuple[Int32[jax.Array, "draws"], Bool[jax.Array, "draws"]]:
    """Draws up to `limit` indices at which a mask is True, uniformly and in random order.

    Any prefix of the result is a uniform draw as well, so a caller that wants fewer takes a prefix.

    Args:
      mask: bool (N,).
      limit: static, the largest number of draws.
      key: random key.

    Returns:
      Indices, int32 (min(limit, N),), and whether each is a draw, bool: True first, False where the mask has no more.
    """
    order = jnp.where(mask, jax.random.uniform(key, mask.shape), -1.0)
    order, indices = top_k(order, min(limit, len(mask)))
    return indices, order >= 0


class Sample(NamedTuple):
    """Drawn rows, objects first, then background.

    Attributes:
      rows: int32 (total,), those drawn; 0 where fewer were drawn.
      is_object: bool (total,), True where the row has an object.
      drawn: bool (total,), False where fewer were drawn.
    """

    rows: Int32[jax.Array, "total"]
    is_object: Bool[jax.Array, "total"]
    drawn: Bool[jax.Array, "total"]


def sample(
    foreground: Bool[Array, "N"], background: Bool[Array, "N"], key: Key[jax.Array, ""], *, objects: int, total: int
) -> Sample:
    """Draws up to `objects` rows of the foreground and fills up to `total` with rows of the background.

    Args:
      foreground: bool (N,), rows with an object.
      background: bool (N,), rows without an object that may be drawn.
      key: random key.
      objects: static, the largest number of rows with an object.
      total: static, the largest number of rows.
    """
    fg_key, bg_key = jax.random.split(key)
    fg_index, fg_drawn = draw_subset(foreground, objects, fg_key)
    bg_index, bg_drawn = draw_subset(background, total, bg_key)
    # Row i of the result is the i-th object; rows behind the last object continue with the background.
    found = fg_drawn.sum()
    row = jnp.arange(total)
    is_object = row < found
    place = jnp.where(is_object, row, row - found + len(fg_index))
    index = jnp.concatenate([fg_index, bg_index]).at[place].get(mode="fill", fill_value=0)
    drawn = jnp.concatenate([fg_drawn, bg_drawn]).at[place].get(mode="fill", fill_value=False)
    return Sample(index, is_object, drawn)
