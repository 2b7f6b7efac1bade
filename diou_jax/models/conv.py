"""A convolution with its norm (or only a bias), a residual sum and a ReLU.

All are one module because cuDNN runs them as one kernel, without storing the values in between.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models import winograd
from diou_jax.models.initializers import he_normal
from diou_jax.models.norms import BatchNorm, GroupNorm, Norm, UseAffine, UseBatchNorm, UseBias, UseGroupNorm

AFFINE = "affine"  # the variable collection of frozen affine layers; no gradient, decay or optimiser reaches it


class Conv(nn.Module):
    """A convolution with torch's symmetric padding, then norm, residual sum and ReLU.

    The kernel is (features, size, size, C / groups), the layout that cuDNN uses for kernel and gradient; in another
    layout the optimiser could not update it in place.

    Attributes:
      features: output channels.
      size: side of the kernel; the map is padded by size // 2.
      stride, groups: stride and groups of the convolution.
      norm_type: the norm or the bias behind the convolution. A frozen affine layer is in the collection `AFFINE`, its
        scale folded into the kernel.
      kernel_init: initialiser of the kernel.
      relu: whether a ReLU comes last.
      dtype: dtype of the arithmetic; parameters are float32.
    """

    features: int
    size: int
    stride: int = 1
    groups: int = 1
    norm_type: Norm = UseBias()
    kernel_init: Callable = he_normal
    relu: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, padded_size: jax.Array | None = None, cell: int = 1, *, residual: jax.Array | None = None
    ) -> jax.Array:
        """Applies the layers to a map (B, H, W, C).

        Args:
          x: the map; unless the kernel is 1x1, it must be zero beyond `padded_size`.
          padded_size: as in `masking.inside`; only the statistics of norms use it.
          cell: pixels of the image per cell of the output.
          residual: an array of the output's shape that is added before the ReLU.
        """
        kernel = self.param(
            "kernel", self.kernel_init, (self.features, self.size, self.size, x.shape[-1] // self.groups)
        )
        bias = None
        if isinstance(self.norm_type, UseAffine):
            if self.is_initializing() or self.has_variable(AFFINE, "scale"):  # `folding.fold` removes it
                scale = self.variable(
                    AFFINE, "scale", lambda: jax.random.uniform(self.make_rng("params"), (self.features,))
                )
                kernel = kernel * scale.value[:, None, None, None]
            bias = self.variable(AFFINE, "bias", jnp.zeros, (self.features,)).value
        elif isinstance(self.norm_type, UseBatchNorm) and self.has_variable(AFFINE, "bias"):
            bias = self.get_variable(AFFINE, "bias")  # `folding.fold` has put it there, in place of the norm
        elif isinstance(self.norm_type, UseBias):
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, groups=self.groups)
        if bias is not None:
            y = y + bias.astype(self.dtype)
        elif isinstance(self.norm_type, UseGroupNorm):
            y = GroupNorm(self.norm_type, dtype=self.dtype, name="norm")(y, padded_size, cell)
        elif isinstance(self.norm_type, UseBatchNorm):
            y = BatchNorm(self.norm_type, dtype=self.dtype, name="norm")(y, padded_size, cell)
        if residual is not None:
            y = y + residual
        return relu(y) if self.relu else y


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int, groups: int) -> jax.Array:
    """Convolves (B, H, W, C) with a kernel (features, size, size, C / groups), padded by size // 2 on every side."""
    general = functools.partial(_general, stride=stride, groups=groups)
    if kernel.shape[1] == 1 and groups == 1:
        # On a CPU the gradient of a matrix product takes half as long; cuDNN fuses sum, ReLU and stride instead.
        return jax.lax.platform_dependent(x, kernel, cuda=general, default=functools.partial(_pointwise, stride=stride))
    if kernel.shape[1] == 3 and groups == 1 and winograd.pays(x, kernel, **winograd.GRADIENT):
        return _three_by_three(x, kernel, stride)
    return general(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _three_by_three(x, kernel, stride):
    """A convolution whose gradients a CPU computes another way; every other device has them from XLA."""
    general = functools.partial(_general, stride=stride, groups=1)
    if stride > 1 or not winograd.pays(x, kernel, **winograd.FORWARD):
        return general(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=winograd.convolve, default=general)


def _three_by_three_forward(x, kernel, stride):
    return _three_by_three(x, kernel, stride), (x, kernel)


def _three_by_three_backward(stride, saved, gradient):
    x, kernel = saved
    general = functools.partial(_general, stride=stride, groups=1)

    def of_input(gradient, kernel):
        return jax.vjp(lambda x: general(x, kernel), x)[1](gradient)[0]

    def of_kernel(x, gradient):
        return jax.vjp(lambda kernel: general(x, kernel), kernel)[1](gradient)[0]

    if stride == 1 and winograd.pays(gradient, kernel, **winograd.FORWARD):
        dx = jax.lax.platform_dependent(gradient, kernel, cpu=winograd.input_gradient, default=of_input)
    else:
        dx = of_input(gradient, kernel)
    on_a_cpu = winograd.kernel_gradient if stride == 1 else functools.partial(_gradient_by_products, stride=stride)
    return dx, jax.lax.platform_dependent(x, gradient, cpu=on_a_cpu, default=of_kernel)


_three_by_three.defvjp(_three_by_three_forward, _three_by_three_backward)


def _gradient_by_products(x, gradient, *, stride):
    """The gradient of a 3x3 kernel with a stride from nine matrix products, each with the cells of one of its taps.

    XLA for CPUs transposes the map for its own form, which takes twice as long.
    """
    _, height, width, features = gradient.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    ends = stride * height, stride * width
    products = [
        gradient.reshape(-1, features).T
        @ x[:, row : row + ends[0] : stride, column : column + ends[1] : stride].reshape(-1, x.shape[-1])
        for row in range(3)
        for column in range(3)
    ]
    return jnp.stack(products, 1).reshape(features, 3, 3, -1)


def _general(x, kernel, *, stride, groups):
    padding = kernel.shape[1] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "OHWI", "NHWC"),
        feature_group_count=groups,
    )


def _pointwise(x, kernel, *, stride):
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[:, 0, 0].T).reshape(*x.shape[:-1], len(kernel))


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """``max(x, 0)``; its gradient needs the result only, so that `x` is never stored."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = jnp.maximum(x, 0)
    return y, y


def _relu_backward(y, gradient):
    # With `y > 0` XLA would evaluate `x > 0` and keep x for the backward pass.
    return (jnp.where(y != 0, gradient, 0),)


relu.defvjp(_relu_forward, _relu_backward)
