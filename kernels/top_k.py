"""The largest of many numbers, in order."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Int32

from diou_jax.kernels.order import descending

# XLA sorts rows up to this length in one kernel, within the shared memory of a block. For a longer row it launches one
# more kernel for each distance of the sorting network that exceeds a block: 36 in all for the anchors of an image.
LENGTH = 4096


def top_k(
    x: Float32[jax.Array, "*batch N"], k: int
) -> tuple[Float32[jax.Array, "*batch {k}"], Int32[jax.Array, "*batch {k}"]]:
    """The `k` largest along the last axis of float32 (..., N), as `jax.lax.top_k`; lower indices first among equals.

    On NVIDIA GPUs a row is sorted in pieces of up to `LENGTH`, in rounds: the `k` best of each piece enter the next.

    Returns:
      Values, float32 (..., k), and indices, int32 (..., k).
    """
    whole = functools.partial(_whole, k=k)
    if x.shape[-1] <= LENGTH or 2 * k > LENGTH:
        return whole(x)
    return jax.lax.platform_dependent(x, cuda=functools.partial(by_rounds, k=k), default=whole)


def _whole(x, *, k):
    return tuple(jax.lax.top_k(x, k))


def by_rounds(
    x: Float32[jax.Array, "*batch N"], *, k: int, length: int = LENGTH
) -> tuple[Float32[jax.Array, "*batch {k}"], Int32[jax.Array, "*batch {k}"]]:
    """`top_k` by sorts of rows of at most `length`, which is at least twice `k`."""
    *lead, count = x.shape
    keys: Sequence[jax.Array] = descending(x), jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    pieces = None
    while pieces != 1:
        pieces = -(-count // length)
        # The pieces are equal and longer than k, so every round shortens the row.
        size = -(-count // pieces)
        ends = jnp.iinfo(jnp.int32).max
        keys = [jnp.pad(key, [(0, 0)] * len(lead) + [(0, pieces * size - count)], constant_values=ends) for key in keys]
        keys = jax.lax.sort([key.reshape(*lead, pieces, size) for key in keys], num_keys=2, is_stable=False)
        keys = [key[..., :k].reshape(*lead, -1) for key in keys]
        count = keys[0].shape[-1]
    return jnp.take_along_axis(x, keys[1], -1), keys[1]
