"""Padding that leaves no trace."""

import jax
import jax.numpy as jnp


def inside(shape: tuple[int, ...], extent: jax.Array, stride: int) -> jax.Array:
    """Which cells of a (B, H, W, C) map exist: bool (B, H, W, 1).

    Args:
      shape: the map's.
      extent: int (B, 2), height and width of the existing part of the input, pixels.
      stride: pixels per cell; a cell of which only a part exists does exist.
    """
    _, height, width, _ = shape
    rows = jnp.arange(height) * stride < extent[:, :1]
    columns = jnp.arange(width) * stride < extent[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def mask_outside(x: jax.Array, extent: jax.Array | None, stride: int) -> jax.Array:
    """The map (B, H, W, C) with zeros where it does not exist, as if a convolution's own padding began there.

    Whatever a spatial convolution reads must have passed through here, since biases make padding nonzero.
    With `extent` None everything exists.
    """
    if extent is None:
        return x
    return jnp.where(inside(x.shape, extent, stride), x, 0)
