"""Random draws without replacement, with static shapes."""

import jax
import jax.numpy as jnp

from diou_jax.kernels.top_k import top_k


def draw(mask: jax.Array, limit: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Up to `limit` of the True places of a mask, uniformly, in random order.

    Any prefix of the result is a uniform draw as well, so a caller that wants fewer cuts it short.

    Args:
      mask: bool (N,).
      limit: static.
      key: random key.

    Returns:
      Indices, int32 (min(limit, N),), and whether each is a draw, bool: True first, then False where the mask has
      fewer places.
    """
    order = jnp.where(mask, jax.random.uniform(key, mask.shape), -1.0)
    order, indices = top_k(order, min(limit, len(mask)))
    return indices, order >= 0
