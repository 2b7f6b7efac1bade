"""Variables of a network that is done with learning."""

import functools

import jax
import jax.numpy as jnp
from flax import traverse_util

from diou_jax.models.conv import AFFINE


@functools.partial(jax.jit, static_argnames="dtype")
def fold(variables: dict, dtype: jnp.dtype) -> dict:
    """The variables with which the network does what it did, without turning each kernel into `dtype` at every call.

    Frozen scales are multiplied into the kernels, as `Conv` would do, and kernels and biases are rounded to `dtype`, as
    every layer would do. GroupNorm's parameters stay. Nothing can be trained or saved that way.

    Args:
      variables: a `Network`'s, float32.
      dtype: of its arithmetic.
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
