"""Masks of the padding, which keep it from changing any result."""

import jax
import jax.numpy as jnp


def inside(shape: tuple[int, ...], padded_size: jax.Array, stride: int) -> jax.Array:
    """Mask of the cells of a (B, H, W, C) map that exist: bool (B, H, W, 1).

    Args:
      shape: shape of the map.
      padded_size: int (B, 2), height and width of the existing part of the input, pixels.
      stride: pixels per cell; a cell exists if any part of it does.
    """
    _, height, width, _ = shape
    rows = jnp.arange(height) * stride < padded_size[:, :1]
    columns = jnp.arange(width) * stride < padded_size[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def mask_outside(x: jax.Array, padded_size: jax.Array | None, stride: int) -> jax.Array:
    """The map (B, H, W, C) with zeros beyond `padded_size`, as if a convolution's own padding began there.

    Every map must pass through here before a convolution larger than 1x1, since biases make the padding nonzero. With
    `padded_size` None every cell exists.
    """
    if padded_size is None:
        return x
    return jnp.where(inside(x.shape, padded_size, stride), x, 0)
