"""IoU of boxes in inclusive pixels: on one device the same to the last bit, whatever it is fused with."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def iou(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """IoU of boxes `a` and `b`, each four float32 arrays of coordinates, broadcast; symmetric.

    Boxes that do not meet, or have no area, overlap by 0.
    """
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1) + 1
    height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1) + 1
    intersection = product(width, height)
    union = product(ax2 - ax1 + 1, ay2 - ay1 + 1) + product(bx2 - bx1 + 1, by2 - by1 + 1) - intersection
    meet = (width > 0) & (height > 0) & (union > 0)
    return jnp.where(meet, intersection / jnp.where(meet, union, 1.0), 0.0)


def product(a: jax.Array, b: jax.Array | float) -> jax.Array:
    """A rounded product: no compiler may fuse it with the sum that it goes into, which would round otherwise."""
    return jnp.maximum(a * b, jnp.finfo(jnp.float32).min)
