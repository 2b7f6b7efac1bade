"""What follows a convolution: a frozen affine layer folded into it, GroupNorm, or a bias."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models.masking import inside

AFFINE = "affine"  # the variable collection of the frozen layers: no gradient, decay or optimiser reaches it


class GroupNorm(nn.Module):
    """Normalises groups of channels over the existing part of each image (Wu and He, 2018).

    Attributes:
      num_groups: GROUP_NORM.NUM_GROUPS; where it does not divide the channels, the largest number below that does.
      dim_per_group: GROUP_NORM.DIM_PER_GP, channels per group; decides where positive.
      epsilon: GROUP_NORM.EPSILON.
      dtype: of the output; statistics are float32.
    """

    num_groups: int = 32
    dim_per_group: int = -1
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, extent: jax.Array | None = None, stride: int = 1) -> jax.Array:
        """Normalises (B, H, W, C); `extent` and `stride` as in `masking.inside`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = channels // self.dim_per_group if self.dim_per_group > 0 else self.num_groups
        groups = next(n for n in range(min(max(groups, 1), channels), 0, -1) if channels % n == 0)

        # Sums per channel first: one pass over the map, and groups are formed on a tiny array.
        existing = x.astype(jnp.float32)
        if extent is None:
            cells = jnp.float32(x.shape[1] * x.shape[2])
        else:
            exists = inside(x.shape, extent, stride)
            existing = jnp.where(exists, existing, 0)
            cells = exists.sum((1, 2, 3)).astype(jnp.float32)[:, None, None]
        sums = jnp.stack([existing.sum((1, 2)), (existing**2).sum((1, 2))], 1)
        moments = sums.reshape(len(x), 2, groups, -1).sum(-1) / (cells * (channels // groups))
        mean, square = (jnp.repeat(moments[:, i], channels // groups, -1) for i in (0, 1))
        factor = scale * jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon)
        shift = bias - mean * factor
        return (x * factor[:, None, None] + shift[:, None, None]).astype(self.dtype)


class Conv(nn.Module):
    """A convolution with torch's symmetric padding, and what follows it.

    Attributes:
      features: output channels.
      size: side of the kernel; it is padded by size // 2.
      stride, groups: of the convolution.
      follow: "affine", frozen scale and bias per channel, the original's AffineChannel2d, in the collection `AFFINE`
        and folded into the kernel; "group", a `GroupNorm`; "bias", a trained bias.
      kernel_init: of the kernel.
      group_norm: keyword arguments of `GroupNorm`, as pairs.
      dtype: of the arithmetic; parameters are float32.
    """

    features: int
    size: int
    stride: int = 1
    groups: int = 1
    follow: str = "bias"
    kernel_init: Callable = nn.initializers.he_normal()
    group_norm: tuple[tuple[str, Any], ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, extent: jax.Array | None = None, stride: int = 1) -> jax.Array:
        """Applies it to (B, H, W, C); `extent` and `stride`, of the output, concern GroupNorm's statistics only."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = None
        if self.follow == "affine":
            scale = self.variable(
                AFFINE, "scale", lambda: jax.random.uniform(self.make_rng("params"), (self.features,))
            )
            bias = self.variable(AFFINE, "bias", jnp.zeros, (self.features,)).value
            kernel = kernel * scale.value
        elif self.follow == "bias":
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            [(self.size // 2, self.size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        if self.follow == "group":
            return GroupNorm(**dict(self.group_norm), dtype=self.dtype, name="norm")(y, extent, stride)
        return y + bias.astype(self.dtype)
