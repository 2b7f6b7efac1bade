"""ResNet and ResNeXt backbones (He et al., 2016; Xie et al., 2017)."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from diou_jax.models.conv import Conv
from diou_jax.models.initializers import he_normal, torch_default
from diou_jax.models.masking import mask_outside
from diou_jax.models.norms import Norm, UseAffine, UseBatchNorm


class Bottleneck(nn.Module):
    """A block of 1x1, 3x3 and 1x1 convolutions with a shortcut.

    Attributes:
      width: channels of the 3x3 convolution.
      features: output channels.
      stride: stride of the block, taken by the first convolution if `stride_1x1`, else by the second.
      groups: groups of the 3x3 convolution.
      stride_1x1: see `stride`.
      project: whether the shortcut is a convolution, as in the first block of a stage.
      conv: `Conv` with the backbone's settings bound.
    """

    width: int
    features: int
    stride: int
    groups: int
    stride_1x1: bool
    project: bool
    conv: Callable[..., Conv]

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B H W C"], padded_size: Int[jax.Array, "B 2"] | None, stride: int
    ) -> Float[jax.Array, "B _H _W {self.features}"]:
        """(B, H, W, C) at `stride` pixels per cell to (B, H', W', features)."""
        first, second = (self.stride, 1) if self.stride_1x1 else (1, self.stride)
        out = stride * self.stride
        y = self.conv(self.width, 1, first, relu=True, name="conv1")(x, padded_size, stride * first)
        y = mask_outside(y, padded_size, stride * first)
        y = self.conv(self.width, 3, second, groups=self.groups, relu=True, name="conv2")(y, padded_size, out)
        if self.project:
            x = self.conv(self.features, 1, self.stride, name="shortcut")(x, padded_size, out)
        return self.conv(self.features, 1, relu=True, name="conv3")(y, padded_size, out, residual=x)


class ResNet(nn.Module):
    """The backbone. It turns images into feature maps c2 to c5 at strides 4 to 32.

    Attributes:
      blocks: bottlenecks in res2 to res5; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101.
      num_groups: RESNETS.NUM_GROUPS.
      width_per_group: RESNETS.WIDTH_PER_GROUP, the width in res2; each stage doubles it. Outputs have 256, 512, ...
        channels for the usual 64, and proportionally fewer for a narrower backbone with one group.
      stem_width: channels of the first convolution.
      stride_1x1: RESNETS.STRIDE_1X1.
      freeze_at: RESNETS.FREEZE_AT; stages up to res<this> receive no gradient (`frozen_stage`).
      norm: norm of each convolution. In frozen stages batch norm keeps its statistics.
      dtype: dtype of the arithmetic.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    num_groups: int = 1
    width_per_group: int = 64
    stem_width: int = 64
    stride_1x1: bool = True
    freeze_at: int = 2
    norm: Norm = UseAffine()
    dtype: Any = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the maps, fine to coarse."""
        return tuple(4 << stage for stage in range(len(self.blocks)))

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B H W 3"], padded_size: Int[jax.Array, "B 2"] | None = None
    ) -> dict[int, Float[jax.Array, "B _Hl _Wl _Cl"]]:
        """Normalised images (B, H, W, 3) to c2 to c5 by stride; `padded_size`, int (B, 2) pixels, masks the padding."""
        # He's initialisation suits training from random weights; frozen affine layers expect loaded weights.
        init = torch_default if isinstance(self.norm, UseAffine) else he_normal
        conv = functools.partial(Conv, kernel_init=init, dtype=self.dtype)

        def norm(stage):
            if isinstance(self.norm, UseBatchNorm) and stage <= self.freeze_at:
                return dataclasses.replace(self.norm, frozen=True)
            return self.norm

        def freeze(x, stage):
            return jax.lax.stop_gradient(x) if stage <= self.freeze_at else x

        x = mask_outside(x, padded_size, 1)
        x = conv(self.stem_width, 7, 2, norm_type=norm(1), relu=True, name="conv1")(x, padded_size, 2)
        x = freeze(max_pool(x), 1)
        features = 256 if self.num_groups > 1 else 4 * self.width_per_group
        stride, maps = 4, {}
        for stage, blocks in enumerate(self.blocks, start=2):
            for block in range(blocks):
                block_stride = 2 if block == 0 and stage > 2 else 1
                x = Bottleneck(
                    width=self.num_groups * self.width_per_group * 2 ** (stage - 2),
                    features=features * 2 ** (stage - 2),
                    stride=block_stride,
                    groups=self.num_groups,
                    stride_1x1=self.stride_1x1,
                    project=block == 0,
                    conv=functools.partial(conv, norm_type=norm(stage)),
                    name=f"res{stage}_{block}",
                )(x, padded_size, stride)
                stride *= block_stride
            x = freeze(x, stage)
            maps[stride] = x
        return maps


def max_pool(x: Float[jax.Array, "B H W C"]) -> Float[jax.Array, "B {x.shape[1]//2} {x.shape[2]//2} C"]:
    """The maximum over 3x3 windows, stride 2, of a map (B, H, W, C) without negative values, H and W even.

    The original pads by one cell of minus infinity; after a ReLU zero is as neutral. A window reaches one cell to both
    sides of an even cell, so that none reaches beyond an even padded size and no mask is needed.
    """
    # It takes the maximum of shifted maps, since the gradient of XLA's windowed maximum is many times slower on a CPU.
    x = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
    x = jnp.maximum(jnp.maximum(x[:, :-1:2], x[:, 2::2]), x[:, 1::2])
    return jnp.maximum(jnp.maximum(x[:, :, :-1:2], x[:, :, 2::2]), x[:, :, 1::2])


def frozen_stage(path: str, freeze_at: int) -> bool:
    """Whether a parameter of the network, named by its "/"-joined path, belongs to a stage that `freeze_at` freezes."""
    match = re.match(r"backbone/(?:res(\d)_|conv1/)", path)
    return match is not None and int(match[1] or 1) <= freeze_at
