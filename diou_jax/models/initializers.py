"""The original's initial distributions.

The kernel of a convolution is (features, size, size, channels), that of a dense layer (channels, features).
"""

import jax
import jax.numpy as jnp
from flax.linen import initializers

CONVOLUTION = {"in_axis": -1, "out_axis": 0}

# Caffe2's XavierFill: uniform within sqrt(3 / fan_in).
xavier_fill = initializers.variance_scaling(1.0, "fan_in", "uniform")
xavier_fill_convolution = initializers.variance_scaling(1.0, "fan_in", "uniform", **CONVOLUTION)

# torch's default for a convolution, used for a ResNet without pretrained weights: uniform within sqrt(1 / fan_in).
torch_default = initializers.variance_scaling(1 / 3, "fan_in", "uniform", **CONVOLUTION)

# Caffe2's MSRAFill of a head's convolutions, and of a transposed one, whose fan is that of its inputs.
msra_fill = initializers.variance_scaling(2.0, "fan_out", "normal", **CONVOLUTION)
msra_fill_transposed = initializers.variance_scaling(2.0, "fan_in", "normal", **CONVOLUTION)

# For convolutions that are trained through ReLUs from random weights.
he_normal = initializers.he_normal(**CONVOLUTION)


def normal(std: float):
    """Gaussian with mean 0."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return std * jax.random.normal(key, shape, dtype)

    return init
