"""Variables for inference: frozen scales multiplied into kernels, everything in the dtype of the arithmetic."""

import functools

import jax
import jax.numpy as jnp
from flax import traverse_util

from diou_jax.models.conv import AFFINE


@functools.partial(jax.jit, static_argnames="dtype")
def fold(variables: dict, dtype: jnp.dtype) -> dict:
    """Variables that give the same results as `variables` and need no conversion at every call.

    Frozen scales are multiplied into the kernels, as `Conv` would do, and kernels and biases are rounded to `dtype`, as
    every layer would do. GroupNorm's parameters stay as they are. Folded variables can be neither trained nor saved.

    Args:
      variables: the variables of a `Network`, float32.
      dtype: dtype of the network's arithmetic.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    folded = {}
    for path, value in flat.items():
        collection, module = path.split("/", 1)
        module, leaf = module.rsplit("/", 1)
        if collection == AFFINE and leaf == "scale":
            continue
        scale = flat.get(f"{AFFINE}/{module}/scale")
        if leaf == "kernel" and scale is not None:
            value = value * scale[:, None, None, None]
        norm = f"params/{module}/kernel" not in flat
        folded[path] = value if norm else value.astype(dtype)
    return traverse_util.unflatten_dict(folded, sep="/")
