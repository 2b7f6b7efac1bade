"""The device axes over which arrays vary inside `jax.shard_map`, which are a part of their types there."""

from typing import Any

import jax
import jax.numpy as jnp


def varying_as(tree: Any, *sources: Any) -> Any:
    """The same arrays, of the type that results of all `sources` have.

    Constants, from which loops start, and the results of Pallas kernels vary over no device for shard_map, and the
    types of loops and branches would not match.

    Args:
      tree: arrays, or a tree of them.
      *sources: likewise.
    """

    def vary(x):
        typed = x
        for source in jax.tree.leaves(sources):
            typed = typed + jnp.zeros_like(source, x.dtype, shape=())
        # Outside shard_map the types are the same, and programs stay free of the sum.
        return x if jax.typeof(typed) == jax.typeof(x) else typed

    return jax.tree.map(vary, tree)
