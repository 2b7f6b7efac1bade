"""What the GPU kernels share: a block is one warpgroup."""

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

THREADS = 128


def spread(x: jax.Array, interpret) -> jax.Array:
    """One element a thread: Mosaic wants a layout where it infers none, and the interpreter of jax 0.10 knows none."""
    return x if interpret else plgpu.layout_cast(x, plgpu.Layout.WG_STRIDED(x.shape, vec_size=1))
