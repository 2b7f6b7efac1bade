"""The norms of a convolution: `Norm`, a network's choice, and the modules, whose statistics leave out padding."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models.masking import inside

STATISTICS = "batch_stats"  # the variable collection of batch norm's running statistics, by its name in Flax


@dataclasses.dataclass(frozen=True)
class UseBias:
    """No norm, but a trained bias."""


@dataclasses.dataclass(frozen=True)
class UseAffine:
    """A frozen scale and bias for each channel, the original's AffineChannel2d: a batch norm that no longer learns."""


@dataclasses.dataclass(frozen=True)
class UseGroupNorm:
    """A `GroupNorm`.

    Attributes:
      num_groups: GROUP_NORM.NUM_GROUPS. If it does not divide the channels, or a group would have fewer than two, the
        next smaller number that divides them into groups of at least two is taken.
      dim_per_group: GROUP_NORM.DIM_PER_GP, channels per group; replaces `num_groups` if positive.
      epsilon: GROUP_NORM.EPSILON.
    """

    num_groups: int = 32
    dim_per_group: int = -1
    epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class UseBatchNorm:
    """A `BatchNorm`.

    Attributes:
      momentum: the weight of a batch in the running statistics.
      epsilon: added to the variance.
      axis: the mapped axis of devices over whose images a batch's statistics are taken; None: a device's own.
      frozen: whether training uses the running statistics as well, and leaves them as they are.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    axis: str | None = None
    frozen: bool = False


Norm = UseBias | UseAffine | UseGroupNorm | UseBatchNorm


class GroupNorm(nn.Module):
    """Normalises groups of channels over the existing part of each image (Wu and He, 2018).

    Attributes:
      rules: the groups.
      dtype: dtype of the output; statistics are float32.
    """

    rules: UseGroupNorm = UseGroupNorm()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, padded_size: jax.Array | None = None, stride: int = 1) -> jax.Array:
        """Normalises (B, H, W, C); `padded_size` and `stride` as in `masking.inside`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = channels // self.rules.dim_per_group if self.rules.dim_per_group > 0 else self.rules.num_groups
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
        factor = scale * jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.rules.epsilon)
        shift = bias - mean * factor
        return (x * factor[:, None, None] + shift[:, None, None]).astype(self.dtype)


class BatchNorm(nn.Module):
    """Normalises each channel over all images of a batch (Ioffe and Szegedy, 2015).

    The statistics are the batch's where the caller may change the collection `STATISTICS`, which then gets the running
    ones, and the running ones everywhere else, as in tests. As in torch, a batch is normalised by its variance over n
    values, and the running variance is the one over n - 1.

    Attributes:
      rules: momentum, epsilon, devices.
      dtype: dtype of the output; statistics are float32.
    """

    rules: UseBatchNorm = UseBatchNorm()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, padded_size: jax.Array | None = None, stride: int = 1) -> jax.Array:
        """Normalises (B, H, W, C); `padded_size` and `stride` as in `masking.inside`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable(STATISTICS, "mean", jnp.zeros, (channels,))
        running_variance = self.variable(STATISTICS, "var", jnp.ones, (channels,))
        mean, variance = running_mean.value, running_variance.value
        if self.is_mutable_collection(STATISTICS) and not (self.is_initializing() or self.rules.frozen):
            cells, mean, variance = self._moments(x, padded_size, stride, near=running_mean.value)
            # A batch without a cell leaves the statistics as they are.
            share = jnp.where(cells > 0, self.rules.momentum, 0.0)
            unbiased = variance * cells / jnp.maximum(cells - 1, 1)
            running_mean.value += share * (mean - running_mean.value)
            running_variance.value += share * (unbiased - running_variance.value)
        factor = scale * jax.lax.rsqrt(variance + self.rules.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)

    def _moments(self, x, padded_size, stride, *, near):
        """The number of existing cells, and the mean and variance of each channel over them."""
        # One pass over the map has both sums; about a value near the mean they lose few digits in the difference.
        distance = x.astype(jnp.float32) - near
        if padded_size is None:
            cells = jnp.float32(x.shape[0] * x.shape[1] * x.shape[2])
        else:
            exists = inside(x.shape, padded_size, stride)
            distance = jnp.where(exists, distance, 0)
            cells = exists.sum().astype(jnp.float32)
        sums = distance.sum((0, 1, 2)), (distance**2).sum((0, 1, 2)), cells
        if self.rules.axis is not None:
            sums = jax.lax.psum(sums, self.rules.axis)
        total, squares, cells = sums
        count = jnp.maximum(cells, 1)
        offset = total / count
        return cells, near + offset, jnp.maximum(squares / count - offset**2, 0)
