"""Programs of other devices: a GPU's, lowered or interpreted, and those that two devices share."""

import contextlib
from collections.abc import Callable, Iterable

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, PartitionSpec

from diou_jax.kernels import selection


def lower_for_cuda(function: Callable, *arguments, kernels: Iterable[str] | None = selection.NAMES) -> str:
    """The program that an NVIDIA H200 would get, as text; shapes are enough as arguments.

    It takes the named kernels; None: those that this process would take.
    """
    chosen = contextlib.nullcontext() if kernels is None else selection.only(kernels)
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    with chosen, jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def interpreter():
    """The flags by which a Mosaic GPU kernel runs on a CPU."""
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # jax 0.10 does not export it

    return InterpretGPUParams()


def on_both_devices(function: Callable) -> Callable:
    """The function as two devices compute it, each for half of every array, with all kernels traced beside it."""
    halves = PartitionSpec("device")
    mesh = Mesh(jax.devices()[:2], ("device",))
    divided = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=halves, out_specs=halves))

    def call(*arguments):
        with selection.only(selection.NAMES):
            return divided(*arguments)

    return call
