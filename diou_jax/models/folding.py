"""Variables for inference: frozen scales and batch norm folded into kernels, all in the dtype of the arithmetic."""

import functools

import jax
import jax.numpy as jnp
from flax import traverse_util

from diou_jax.models.conv import AFFINE
from diou_jax.models.norms import STATISTICS


@functools.partial(jax.jit, static_argnames=("dtype", "epsilon"))
def fold(variables: dict, dtype: jnp.dtype, *, epsilon: float) -> dict:
    """Variables that give the same results as `variables` and need no conversion at every call.

    Frozen scales, and those of batch norm with its running statistics, are multiplied into the kernels; batch norm
    becomes a bias in the collection `AFFINE`. Kernels and biases are rounded to `dtype`, as every layer would do.
    GroupNorm's parameters stay as they are. Folded variables can be neither trained nor saved.

    Args:
      variables: the variables of a `Network`, float32.
      dtype: dtype of the network's arithmetic.
      epsilon: batch norm's.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    folded = {}
    for path, value in flat.items():
        collection, module = path.split("/", 1)
        module, leaf = module.rsplit("/", 1)
        convolution = module.removesuffix("/norm")
        factor = _factor(flat, convolution, epsilon)
        if f"{STATISTICS}/{module}/mean" in flat:
            if (collection, leaf) == ("params", "bias"):
                shifted = value - flat[f"{STATISTICS}/{module}/mean"] * factor
                folded[f"{AFFINE}/{convolution}/bias"] = shifted.astype(dtype)
        elif (collection, leaf) != (AFFINE, "scale"):
            if leaf == "kernel" and factor is not None:
                value = value * factor[:, None, None, None]
            norm = f"params/{module}/kernel" not in flat
            folded[path] = value if norm else value.astype(dtype)
    return traverse_util.unflatten_dict(folded, sep="/")


def _factor(flat, convolution, epsilon):
    """The factor of each output channel of a convolution; None if there is none."""
    if (variance := flat.get(f"{STATISTICS}/{convolution}/norm/var")) is not None:
        return flat[f"params/{convolution}/norm/scale"] * jax.lax.rsqrt(variance + epsilon)
    return flat.get(f"{AFFINE}/{convolution}/scale")
