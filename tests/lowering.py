"""Lowering for a GPU on a machine that has none."""

from collections.abc import Callable

import jax
from jax.sharding import AbstractDevice, AbstractMesh


def lower_for_cuda(function: Callable, *arguments) -> str:
    """The program that an NVIDIA H200 would get, as text; shapes are enough as arguments."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
