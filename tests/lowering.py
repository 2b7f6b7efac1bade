"""A GPU's programs on a machine that has none: lowered, or interpreted."""

from collections.abc import Callable

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh


def lower_for_cuda(function: Callable, *arguments) -> str:
    """The program that an NVIDIA H200 would get, as text; shapes are enough as arguments."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def interpreter():
    """The flags by which a Mosaic GPU kernel runs on a CPU."""
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # jax 0.10 does not export it

    return InterpretGPUParams()
