"""A convolution and what follows it: a frozen affine layer folded into it, GroupNorm, or a bias."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models.norms import GroupNorm

AFFINE = "affine"  # the variable collection of the frozen layers: no gradient, decay or optimiser reaches it


class Conv(nn.Module):
    """A convolution with torch's symmetric padding, and what follows it.

    Attributes:
      features: output channels.
      size: side of the kernel; the map is padded by size // 2.
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
    def __call__(self, x: jax.Array, extent: jax.Array | None = None, cell: int = 1) -> jax.Array:
        """Applies it to (B, H, W, C).

        Args:
          x: the map, zero where it does not exist, unless the kernel is 1x1.
          extent: as in `masking.inside`; it concerns GroupNorm's statistics only.
          cell: pixels of the image per cell of the output.
        """
        kernel = self.param(
            "kernel", self.kernel_init, (self.size, self.size, x.shape[-1] // self.groups, self.features)
        )
        bias = None
        if self.follow == "affine":
            scale = self.variable(
                AFFINE, "scale", lambda: jax.random.uniform(self.make_rng("params"), (self.features,))
            )
            bias = self.variable(AFFINE, "bias", jnp.zeros, (self.features,)).value
            kernel = kernel * scale.value
        elif self.follow == "bias":
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, groups=self.groups)
        if self.follow == "group":
            return GroupNorm(**dict(self.group_norm), dtype=self.dtype, name="norm")(y, extent, cell)
        return y + bias.astype(self.dtype)


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int, groups: int) -> jax.Array:
    """Convolves (B, H, W, C) with a kernel (size, size, C / groups, features), padded by size // 2 on every side."""
    size, _, _, features = kernel.shape
    if size == 1 and groups == 1:
        # As a matrix product its gradient takes half as long on a CPU.
        x = x[:, ::stride, ::stride]
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], features)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(size // 2, size // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
