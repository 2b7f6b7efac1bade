"""The region proposal head, shared by all pyramid levels (Ren et al., 2015)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models.conv import Conv
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

        def conv(features, size, name):
            return Conv(features, size, kernel_init=normal(0.01), dtype=self.dtype, name=name)

        hidden = conv(self.features, 3, "conv")
        objectness = conv(self.anchors_per_cell, 1, "logits")
        boxes = conv(4 * self.anchors_per_cell, 1, "deltas")
        logits, deltas = [], []
        for level in pyramid:
            x = nn.relu(hidden(level))
            logits.append(objectness(x).astype(jnp.float32).reshape(len(x), -1))
            deltas.append(boxes(x).astype(jnp.float32).reshape(len(x), -1, 4))
        return logits, deltas
