"""The 3x3 convolutions with which a RoI head begins."""

from typing import Any

import jax
from jaxtyping import Float

from diou_jax.models.conv import Conv
from diou_jax.models.initializers import msra_fill


def conv_stack(
    x: Float[jax.Array, "N H W _C"],
    *,
    count: int,
    features: int,
    norm_type: str,
    group_norm: tuple[tuple[str, Any], ...],
    dtype: Any,
) -> Float[jax.Array, "N H W _F"]:
    """Applies 3x3 convolutions, each followed by its norm and a ReLU, to the pooled RoIs (N, H, W, C).

    Only a module's compact method may call it; the convolutions become the submodules conv1, conv2, ... of that module.

    Args:
      x: the maps.
      count: number of convolutions; 0 returns `x`.
      features: output channels F of each.
      norm_type: "bias" or "group", as of `Conv`.
      group_norm: keyword arguments of `GroupNorm`, as pairs.
      dtype: dtype of the arithmetic.
    """
    for number in range(1, count + 1):
        x = Conv(
            features,
            3,
            norm_type=norm_type,
            kernel_init=msra_fill,
            group_norm=group_norm,
            relu=True,
            dtype=dtype,
            name=f"conv{number}",
        )(x)
    return x
