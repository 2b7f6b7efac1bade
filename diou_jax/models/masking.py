"""Masks of the padding, which keep it from changing any result."""

import jax
import jax.numpy as jnp


def inside(shape: tuple[int, ...], extent: jax.Array, stride: int) -> jax.Array:
    """Mask of the cells of a (B, H, W, C) map that exist: bool (B, H, W, 1).

    Args:
      shape: shape of the map.
      extent: int (B, 2), height and width of the existing part of the input, pixels.
      stride: pixels per cell; a cell exists if any part of it does.
    """
    _, height, width, _ = shape
    rows = jnp.arange(height) * stride < extent[:, :1]
    columns = jnp.arange(width) * stride < extent[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def mask_outside(x: jax.Array, extent: jax.Array | None, stride: int) -> jax.Array:
    """The map (B, H, W, C) with zeros beyond `extent`, as if a convolution's own padding began there.

    Every map must pass through here before a convolution larger than 1x1, since biases make the padding nonzero. With
    `extent` None every cell exists.
    """
    if extent is None:
        return x
    return jnp.where(inside(x.shape, extent, stride), x, 0)
