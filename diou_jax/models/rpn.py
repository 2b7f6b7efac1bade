"""The region proposal head, shared by all pyramid levels (Ren et al., 2015)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from diou_jax.models.conv import Conv, convolve, relu
from diou_jax.models.initializers import normal
from diou_jax.models.masking import mask_outside
from diou_jax.models.patches import put_patches, take_cells, take_patches
from diou_jax.structures import Array


class RPNHead(nn.Module):
    """Objectness and box deltas of every anchor.

    Attributes:
      anchors_per_cell: number of anchors per cell, one per aspect ratio.
      features: channels of the 3x3 convolutions, as many as the pyramid has.
      num_convs: number of 3x3 convolutions, each followed by a ReLU.
      dtype: dtype of the arithmetic.
    """

    anchors_per_cell: int = 3
    features: int = 256
    num_convs: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        pyramid: Mapping[int, Float[jax.Array, "B _Hl _Wl C"]],
        sampled: Int32[jax.Array, "B S"] | None = None,
        padded_size: Int[jax.Array, "B 2"] | None = None,
    ) -> tuple[list[Float32[jax.Array, "B _N"]], list[Float32[jax.Array, "B _N 4"]]]:
        """Logits and deltas of every anchor of a pyramid.

        Args:
          pyramid: maps (B, Hl, Wl, C) by stride, zero beyond each image's padded size.
          sampled: int32 (B, S), the anchors that the losses use, ascending and each once, filled up with indices beyond
            the last anchor. The gradient from the last 3x3 convolution on is then computed for these alone; the
            gradient of all other outputs must be zero. None: for all anchors.
          padded_size: int (B, 2), beyond which the maps between two convolutions are held at zero; None: nowhere.

        Returns:
          float32 logits (B, Hl * Wl * anchors_per_cell) and deltas (B, Hl * Wl * anchors_per_cell, 4) of each level,
          in the order of `anchors.grid_anchors`.
        """
        # The first is "conv", the only one that the original has.
        names = ["conv", *(f"conv{number}" for number in range(2, self.num_convs + 1))]
        for name in names[:-1]:
            conv = Conv(self.features, 3, kernel_init=normal(0.01), relu=True, dtype=self.dtype, name=name)
            pyramid = {stride: mask_outside(conv(level), padded_size, stride) for stride, level in pyramid.items()}
        hidden = Weights(3, self.features, name=names[-1])(next(iter(pyramid.values())).shape[-1])
        # The original and its files have two output layers. They are one product here, so that the map is read once.
        objectness = Weights(1, self.anchors_per_cell, name="logits")(self.features)
        boxes = Weights(1, 4 * self.anchors_per_cell, name="deltas")(self.features)
        outputs = [jnp.concatenate(pair) for pair in zip(objectness, boxes, strict=True)]
        layers = jax.tree.map(lambda x: x.astype(self.dtype), Layers(*hidden, *outputs))
        maps = [level.astype(self.dtype) for level in pyramid.values()]
        if sampled is None:
            found = _everywhere(layers, maps)
        else:
            found = _with_sampled_gradient(layers, maps, self._cells(sampled))
        split = self.anchors_per_cell
        logits = [level[..., :split].reshape(len(level), -1) for level in found]
        return logits, [level[..., split:].reshape(len(level), -1, 4) for level in found]

    def _cells(self, sampled):
        """The cells of the sampled anchors, each once; repetitions become an index beyond any cell."""
        cells = jax.lax.div(sampled, jnp.int32(self.anchors_per_cell))
        repeated = jnp.pad(cells[:, 1:] == cells[:, :-1], ((0, 0), (1, 0)))
        return jnp.where(repeated, np.iinfo(np.int32).max // 2, cells)


class Weights(nn.Module):
    """The parameters of a convolution, without its computation.

    Attributes:
      size: side of the kernel.
      features: output channels.
    """

    size: int
    features: int

    @nn.compact
    def __call__(
        self, channels: int
    ) -> tuple[Float[Array, "{self.features} {self.size} {self.size} {channels}"], Float[Array, "{self.features}"]]:
        """The kernel (features, size, size, channels) and the bias (features,), float32."""
        kernel = self.param("kernel", normal(0.01), (self.features, self.size, self.size, channels))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Layers(NamedTuple):
    """Kernels and biases of the 3x3 convolution and of the outputs, logits first."""

    hidden: Array
    hidden_bias: Array
    outputs: Array
    outputs_bias: Array


def _everywhere(layers, maps):
    """float32 outputs (B, Hl, Wl, 5 * anchors_per_cell) of every cell."""
    found = []
    for level in maps:
        x = relu(convolve(level, layers.hidden, stride=1, groups=1) + layers.hidden_bias)
        x = convolve(x, layers.outputs, stride=1, groups=1) + layers.outputs_bias
        found.append(x.astype(jnp.float32))
    return found


def _at_patches(layers, patches):
    """float32 outputs (B, S, 5 * anchors_per_cell) of the cells at the centres of patches (B, S, 9, C)."""
    x = patches.reshape(*patches.shape[:2], -1) @ layers.hidden.reshape(len(layers.hidden), -1).T
    x = relu(x + layers.hidden_bias)
    return (x @ layers.outputs[:, 0, 0].T + layers.outputs_bias).astype(jnp.float32)


@jax.custom_vjp
def _with_sampled_gradient(layers, maps, cells):
    """`_everywhere` with a gradient that is computed at a few hundred of its hundred thousand cells only."""
    del cells
    return _everywhere(layers, maps)


def _forward(layers, maps, cells):
    return _everywhere(layers, maps), (layers, maps, cells)


def _backward(residuals, gradients):
    layers, maps, cells = residuals
    _, pull = jax.vjp(_at_patches, layers, take_patches(maps, cells))
    of_layers, of_patches = pull(take_cells(gradients, cells))
    of_maps = put_patches(of_patches, cells, [level.shape for level in maps])
    return of_layers, of_maps, np.zeros(cells.shape, jax.dtypes.float0)


_with_sampled_gradient.defvjp(_forward, _backward)
