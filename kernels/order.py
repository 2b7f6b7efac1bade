"""Floats as integers of the opposite order, which GPUs sort by one comparison."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32


def descending(x: Float[jax.Array, "*batch"]) -> Int32[jax.Array, "*batch"]:
    """Int32 keys that ascend where `x`, taken as float32, descends, in the total order of `jax.lax.top_k`.

    A NaN whose sign bit is clear comes first, and 0 comes before -0.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return ~jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
