"""The mask head: convolutions, upsampling by two, then a mask for each class."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int

from diou_jax.models.conv_stack import conv_stack
from diou_jax.models.initializers import msra_fill, msra_fill_transposed
from diou_jax.models.norms import Norm, UseBias


class MaskHead(nn.Module):
    """The original's ``mask_rcnn_fcn_head_v1upXconvs`` and ``mask_rcnn_outputs``.

    Attributes:
      num_masks: masks per RoI: K, background included, or 1 for masks of any class.
      num_convs: number of 3x3 convolutions.
      features: channels, MRCNN.DIM_REDUCED.
      norm: norm of each convolution.
      dtype: dtype of the arithmetic.
    """

    num_masks: int
    num_convs: int = 4
    features: int = 256
    norm: Norm = UseBias()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        pooled: Float[jax.Array, "*batch H W C"],
        labels: Int[jax.Array, "*batch"] | None = None,
        *,
        valid: Bool[jax.Array, "*batch"] | None = None,
    ) -> Float32[jax.Array, "*batch 2*H 2*W"] | Float32[jax.Array, "*batch {self.num_masks} 2*H 2*W"]:
        """Float32 logits of pooled RoIs (..., H, W, C).

        Args:
          pooled: the RoIs' features.
          labels: int (...), the mask of each RoI that is wanted; None: all.
          valid: bool (...), the RoIs that exist, for the statistics of batch norm; None: all exist.

        Returns:
          Logits (..., 2 H, 2 W), or (..., num_masks, 2 H, 2 W) for all masks.
        """
        x = conv_stack(
            pooled.reshape(-1, *pooled.shape[-3:]),
            count=self.num_convs,
            features=self.features,
            norm=self.norm,
            dtype=self.dtype,
            valid=valid,
        )
        x = Upsample(self.features, dtype=self.dtype, name="upsample")(x)
        logits = PixelClassifier(self.num_masks, kernel_init=msra_fill, dtype=self.dtype, name="logits")(x, labels)
        return logits.reshape(*pooled.shape[:-3], *logits.shape[1:])


class PixelClassifier(nn.Module):
    """A 1x1 convolution with a bias, of which one output per image may suffice.

    Attributes:
      classes: number of outputs K.
      kernel_init: initialiser of the kernel, (K, 1, 1, C).
      dtype: dtype of the arithmetic.
    """

    classes: int
    kernel_init: Callable
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "N H W C"], labels: Int[jax.Array, "*N"] | None
    ) -> Float32[jax.Array, "..."]:
        """Float32 logits (N, K, H, W), or (N, H, W) of one class per image, `labels` (..., ) with N values."""
        kernel = self.param("kernel", self.kernel_init, (self.classes, 1, 1, x.shape[-1]))[:, 0, 0].astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.classes,)).astype(self.dtype)
        x = x.astype(self.dtype)
        if labels is None:
            return (jnp.einsum("nhwc,kc->nkhw", x, kernel) + bias[:, None, None]).astype(jnp.float32)
        # A product with ones and zeros copies exactly, and its gradient is a product, too, with a fixed order of sums.
        chosen = jax.nn.one_hot(labels.reshape(-1), self.classes, dtype=self.dtype)
        kernel, bias = (jnp.matmul(chosen, w, precision=jax.lax.Precision.HIGHEST) for w in (kernel, bias))
        return (jnp.einsum("nhwc,nc->nhw", x, kernel) + bias[:, None, None]).astype(jnp.float32)


class Upsample(nn.Module):
    """A transposed convolution of kernel and stride 2 with a bias, then ReLU.

    Every output pixel has one input pixel, so that it is a product per pixel:
    ``y[2 i + a, 2 j + b, f] = bias[f] + sum(kernel[f, a, b, c] * x[i, j, c])``. The kernel is (features, 2, 2, C).

    Attributes:
      features: output channels.
      dtype: dtype of the arithmetic.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "N H W C"]) -> Float[jax.Array, "N 2*H 2*W {self.features}"]:
        """Upsamples (N, H, W, C) to (N, 2 H, 2 W, features)."""
        count, height, width, channels = x.shape
        kernel = self.param("kernel", msra_fill_transposed, (self.features, 2, 2, channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        flat = x.reshape(-1, channels).astype(self.dtype) @ kernel.transpose(3, 1, 2, 0).reshape(channels, -1)
        blocks = flat.reshape(count, height, width, 2, 2, self.features) + bias
        return nn.relu(blocks.transpose(0, 1, 3, 2, 4, 5).reshape(count, 2 * height, 2 * width, self.features))
