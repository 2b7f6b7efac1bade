"""Shared by the GPU kernels, whose blocks are one warpgroup each."""

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

THREADS = 128


def spread(x: jax.Array, interpret) -> jax.Array:
    """`x` with one element per thread; Mosaic cannot infer this layout, and jax 0.10's interpreter knows no layouts."""
    return x if interpret else plgpu.layout_cast(x, plgpu.Layout.WG_STRIDED(x.shape, vec_size=1))
