"""Which of a kernel and its XLA twin a program takes."""

import os
from collections.abc import Callable

import jax

# Compute capabilities that Mosaic GPU does not compile for: it needs Hopper's instructions.
TOO_OLD = ("5.", "6.", "7.", "8.")
SWITCH = "DIOU_JAX_KERNELS"


def choose(kernel: Callable, twin: Callable, *operands):
    """``kernel(*operands)`` where the program runs on a GPU of compute capability 9.0 or more, ``twin`` elsewhere.

    Decided when the program is lowered for its platform, so it can be called under jit; what is lowered for CUDA on a
    machine without a GPU has the kernel. The environment's ``DIOU_JAX_KERNELS=xla`` asks for the twins everywhere.

    Raises:
      ValueError: if DIOU_JAX_KERNELS is set to anything but "xla" and "auto".
    """
    wanted = os.environ.get(SWITCH, "auto")
    if wanted not in ("auto", "xla"):
        raise ValueError(f"environment variable {SWITCH} is {wanted!r}; set it to 'xla' or 'auto', or unset it")
    if wanted == "xla" or any(
        getattr(device, "compute_capability", "").startswith(TOO_OLD) for device in jax.local_devices()
    ):
        return twin(*operands)
    return jax.lax.platform_dependent(*operands, cuda=kernel, default=twin)
