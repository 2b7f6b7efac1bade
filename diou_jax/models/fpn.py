"""The feature pyramid (Lin et al., 2017)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models.conv import Conv
from diou_jax.models.initializers import xavier_fill_convolution
from diou_jax.models.masking import mask_outside


class FPN(nn.Module):
    """c2 to c5 to p2 to p6, all of one width; p6 is every other cell of p5.

    Attributes:
      features: FPN.DIM.
      norm: "bias", as by default, or "group" (FPN.USE_GN).
      group_norm: keyword arguments of `GroupNorm`, as pairs.
      dtype: of the arithmetic.
    """

    features: int = 256
    norm: str = "bias"
    group_norm: tuple[tuple[str, Any], ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], extent: jax.Array | None = None) -> list[jax.Array]:
        """[c2, c3, c4, c5], (B, Hl, Wl, Cl) each, to [p2, ..., p6], (B, Hl, Wl, features)."""

        def conv(size, name):
            return Conv(
                self.features,
                size,
                follow=self.norm,
                kernel_init=xavier_fill_convolution,
                group_norm=self.group_norm,
                dtype=self.dtype,
                name=name,
            )

        strides = [4, 8, 16, 32]
        levels = [2, 3, 4, 5]
        pyramid, inner = [], None
        for x, stride, level in reversed(list(zip(maps, strides, levels, strict=True))):
            lateral = mask_outside(conv(1, f"inner{level}")(x, extent, stride), extent, stride)
            # Masked apart, so that one pass over the map repeats, masks and adds.
            inner = lateral if inner is None else lateral + mask_outside(upsample(inner), extent, stride)
            posthoc = conv(3, f"output{level}")(inner, extent, stride)
            pyramid.insert(0, mask_outside(posthoc, extent, stride))
        return [*pyramid, pyramid[-1][:, ::2, ::2]]


def upsample(x: jax.Array) -> jax.Array:
    """Each cell of (B, H, W, C) four times: (B, 2H, 2W, C)."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
