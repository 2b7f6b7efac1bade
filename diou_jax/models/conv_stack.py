"""The 3x3 convolutions with which a RoI head begins."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from diou_jax.models.conv import Conv
from diou_jax.models.initializers import msra_fill
from diou_jax.models.norms import Norm


def conv_stack(
    x: Float[jax.Array, "N H W _C"],
    *,
    count: int,
    features: int,
    norm: Norm,
    dtype: Any,
    valid: Bool[jax.Array, "*N"] | None = None,
) -> Float[jax.Array, "N H W _F"]:
    """Applies 3x3 convolutions, each followed by its norm and a ReLU, to the pooled RoIs (N, H, W, C).

    Only a module's compact method may call it; the convolutions become the submodules conv1, conv2, ... of that module.

    Args:
      x: the maps.
      count: number of convolutions; 0 returns `x`.
      features: output channels F of each.
      norm: the norm of each.
      dtype: dtype of the arithmetic.
      valid: bool, N values, the RoIs that exist; no other counts in the statistics of batch norm. None: all exist.
    """
    height, width = x.shape[1:3]
    # A RoI that does not exist is all padding.
    size = None if valid is None else jnp.where(valid.reshape(-1, 1), jnp.array([height, width]), 0)
    for number in range(1, count + 1):
        x = Conv(
            features,
            3,
            norm_type=norm,
            kernel_init=msra_fill,
            relu=True,
            dtype=dtype,
            name=f"conv{number}",
        )(x, size)
    return x
