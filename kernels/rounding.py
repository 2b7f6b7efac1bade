"""Products and quotients whose rounding no compiler changes, so that kernels and references compute the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32


def product(
    a: Float[jax.Array | np.ndarray, "*#batch"] | float, b: Float[jax.Array | np.ndarray, "*#batch"] | float
) -> Float32[jax.Array, "*#batch"]:
    """``a * b``, rounded: the maximum keeps compilers from fusing product and sum, which would skip this rounding."""
    return jnp.maximum(a * b, jnp.finfo(jnp.float32).min)


def quotient(a: Float[jax.Array | np.ndarray, "*batch"], divisor: float) -> Float32[jax.Array, "*batch"]:
    """``a / divisor``, rounded once: XLA multiplies by the rounded reciprocal of a constant.

    So the divisor is one that it cannot know. Where `a` is no number, it makes no difference.
    """
    return jnp.divide(a, jnp.where(jnp.isnan(a), 1.0, divisor))
