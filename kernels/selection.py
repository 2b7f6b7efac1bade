"""The choice between a GPU kernel and its XLA reference.

The environment variable ``DIOU_JAX_KERNELS`` decides: ``auto``, the default, takes the kernels that passed their trials
on this kind of device (`diou_jax.kernels.verdicts`), ``pallas`` takes all kernels untried, ``xla`` takes none.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import jax

from diou_jax.kernels.varying import varying_as

NAMES = ("nms", "roi_align", "roi_align_gradient", "match")
# Compute capabilities before Hopper: Mosaic GPU needs Hopper's instructions.
TOO_OLD = ("5.", "6.", "7.", "8.")
SWITCH = "DIOU_JAX_KERNELS"

_earned: frozenset[str] = frozenset()


def switch() -> str:
    """The value of DIOU_JAX_KERNELS.

    Raises:
      ValueError: if it is none of "auto", "pallas" and "xla".
    """
    value = os.environ.get(SWITCH, "auto")
    if value not in ("auto", "pallas", "xla"):
        raise ValueError(f"environment variable {SWITCH} is {value!r}; set it to 'auto', 'pallas' or 'xla'")
    return value


def accept(names: Iterable[str]) -> None:
    """Sets the kernels that ``auto`` takes in every program that is traced from now on."""
    global _earned
    names = frozenset(names)
    unknown = names - set(NAMES)
    if unknown:
        raise ValueError(f"unknown kernels {sorted(unknown)}; there are {', '.join(NAMES)}")
    _earned = names


def accepted() -> frozenset[str]:
    """The kernels that ``auto`` takes."""
    return _earned


@contextlib.contextmanager
def only(names: Iterable[str]) -> Iterator[None]:
    """A context in which traced programs take exactly these kernels, whatever the environment says."""
    before, environment = _earned, os.environ.get(SWITCH)
    os.environ[SWITCH] = "auto"
    accept(names)
    try:
        yield
    finally:
        accept(before)
        os.environ.pop(SWITCH)
        if environment is not None:
            os.environ[SWITCH] = environment


def kernel_or_reference(name: str, kernel: Callable, reference: Callable, *operands):
    """``kernel(*operands)`` if it is wanted and the program runs on an NVIDIA GPU, else ``reference(*operands)``.

    The decision depends on the platform for which the program is lowered. So this can be called under jit, and a
    program lowered for CUDA on a machine without a GPU can take the kernel. GPUs older than Hopper take the reference.

    Args:
      name: the kernel's name, one of `NAMES`.
      kernel, reference: functions with equal results.
      *operands: arrays, or trees of them.
    """
    wanted = switch()
    old = any(getattr(device, "compute_capability", "").startswith(TOO_OLD) for device in jax.local_devices())
    if old or wanted == "xla" or (wanted == "auto" and name not in _earned):
        return reference(*operands)

    def typed_kernel(*operands):
        return varying_as(kernel(*operands), operands)

    return jax.lax.platform_dependent(*operands, cuda=typed_kernel, default=reference)
