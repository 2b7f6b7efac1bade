"""GroupNorm whose statistics leave out the padding."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models.masking import inside


class GroupNorm(nn.Module):
    """Normalises groups of channels over the existing part of each image (Wu and He, 2018).

    Attributes:
      num_groups: GROUP_NORM.NUM_GROUPS. If it does not divide the channels, or a group would have fewer than two, the
        next smaller number that divides them into groups of at least two is taken.
      dim_per_group: GROUP_NORM.DIM_PER_GP, channels per group; replaces `num_groups` if positive.
      epsilon: GROUP_NORM.EPSILON.
      dtype: dtype of the output; statistics are float32.
    """

    num_groups: int = 32
    dim_per_group: int = -1
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, padded_size: jax.Array | None = None, stride: int = 1) -> jax.Array:
        """Normalises (B, H, W, C); `padded_size` and `stride` as in `masking.inside`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = channels // self.dim_per_group if self.dim_per_group > 0 else self.num_groups
        # Groups of one channel would erase per-channel magnitude, on which narrow backbones depend.
        groups = max(min(groups, channels // 2), 1)
        groups = next(n for n in range(groups, 0, -1) if channels % n == 0)

        # Sums per channel take one pass over the map; groups are then formed on a tiny array.
        existing = x.astype(jnp.float32)
        if padded_size is None:
            cells = jnp.float32(x.shape[1] * x.shape[2])
        else:
            exists = inside(x.shape, padded_size, stride)
            existing = jnp.where(exists, existing, 0)
            # An image that fills up a batch may have no cell at all.
            cells = jnp.maximum(exists.sum((1, 2, 3)), 1).astype(jnp.float32)[:, None, None]
        sums = jnp.stack([existing.sum((1, 2)), (existing**2).sum((1, 2))], 1)
        moments = sums.reshape(len(x), 2, groups, -1).sum(-1) / (cells * (channels // groups))
        mean, square = (jnp.repeat(moments[:, i], channels // groups, -1) for i in (0, 1))
        factor = scale * jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon)
        shift = bias - mean * factor
        return (x * factor[:, None, None] + shift[:, None, None]).astype(self.dtype)
