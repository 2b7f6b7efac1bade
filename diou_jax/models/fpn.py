"""The feature pyramid (Lin et al., 2017)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from diou_jax.models.conv import Conv
from diou_jax.models.initializers import xavier_fill_convolution
from diou_jax.models.masking import mask_outside
from diou_jax.models.norms import Norm, UseBias


class FPN(nn.Module):
    """The neck. It turns c2 to c5 into p2 to p6, all with the same channels; p6 is every other cell of p5.

    Attributes:
      features: FPN.DIM, channels of each map.
      norm: norm of each convolution.
      dtype: dtype of the arithmetic.
    """

    features: int = 256
    norm: Norm = UseBias()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Mapping[int, Float[jax.Array, "B _Hl _Wl _Cl"]], padded_size: Int[jax.Array, "B 2"] | None = None
    ) -> dict[int, Float[jax.Array, "B _Hl _Wl {self.features}"]]:
        """Maps c2 to c5 by stride, (B, Hl, Wl, Cl), to p2 to p6 by stride, (B, Hl, Wl, features)."""

        def conv(size, name):
            return Conv(
                self.features,
                size,
                norm_type=self.norm,
                kernel_init=xavier_fill_convolution,
                dtype=self.dtype,
                name=name,
            )

        pyramid, inner = {}, None
        for stride in sorted(maps, reverse=True):
            level = stride.bit_length() - 1
            lateral = mask_outside(conv(1, f"inner{level}")(maps[stride], padded_size, stride), padded_size, stride)
            # Each summand is masked, so that XLA upsamples, masks and adds in one pass over the map.
            inner = lateral if inner is None else lateral + mask_outside(upsample(inner), padded_size, stride)
            posthoc = conv(3, f"output{level}")(inner, padded_size, stride)
            pyramid[stride] = mask_outside(posthoc, padded_size, stride)
        coarsest = max(pyramid)
        return dict(sorted(pyramid.items())) | {2 * coarsest: pyramid[coarsest][:, ::2, ::2]}


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling of (B, H, W, C) to (B, 2H, 2W, C)."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
