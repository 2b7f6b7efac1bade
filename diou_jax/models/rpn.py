"""The region proposal head, shared by all pyramid levels (Ren et al., 2015)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models.conv import Conv, convolve
from diou_jax.models.initializers import normal


class RPNHead(nn.Module):
    """Objectness and box deltas of every anchor.

    Attributes:
      anchors_per_cell: one per aspect ratio.
      features: channels of the 3x3 convolution, the pyramid's.
      dtype: of the arithmetic.
    """

    anchors_per_cell: int = 3
    features: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Levels (B, Hl, Wl, C), zero where they do not exist, to logits and deltas.

        Returns:
          float32 logits (B, Hl * Wl * anchors_per_cell) and deltas (B, Hl * Wl * anchors_per_cell, 4) of each level,
          in the order of `anchors.grid_anchors`.
        """
        hidden = Conv(self.features, 3, kernel_init=normal(0.01), relu=True, dtype=self.dtype, name="conv")
        # Two layers of the original, and of its files, in one product: the map is read once.
        objectness = Pointwise(self.anchors_per_cell, name="logits")(self.features)
        boxes = Pointwise(4 * self.anchors_per_cell, name="deltas")(self.features)
        kernel, bias = (jnp.concatenate(pair, -1).astype(self.dtype) for pair in zip(objectness, boxes, strict=True))
        logits, deltas = [], []
        for level in pyramid:
            y = convolve(hidden(level), kernel, stride=1, groups=1) + bias
            y = y.astype(jnp.float32)
            logits.append(y[..., : self.anchors_per_cell].reshape(len(y), -1))
            deltas.append(y[..., self.anchors_per_cell :].reshape(len(y), -1, 4))
        return logits, deltas


class Pointwise(nn.Module):
    """The parameters of a 1x1 convolution.

    Attributes:
      features: output channels.
    """

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """The kernel (1, 1, channels, features) and the bias (features,), float32."""
        kernel = self.param("kernel", normal(0.01), (1, 1, channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))
