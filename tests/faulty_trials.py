"""Kernels with every fault that a trial must survive, as a process of `diou_jax.kernels.trials` meets them."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.kernels import selection
from diou_jax.kernels.trials import Trial


def kernel_with(fault):
    """A function whose reference doubles its argument, and whose kernel has a fault."""

    def function(x):
        return fault(x) if selection.accepted() else x * 2

    return function


def abort(x):
    os.abort()


def hang(x):
    time.sleep(600)


def raise_error(x):
    raise RuntimeError("INTERNAL: no such instruction")


def differ(x):
    return x * 2 + 1e-3


def vary(x):
    return x * 2 + jax.pure_callback(lambda: np.float32(time.perf_counter() % 1), jax.ShapeDtypeStruct((), jnp.float32))


def dawdle(x):
    return jax.lax.fori_loop(0, 1000, lambda i, y: y + 0 * jnp.sin(y + i), x) * 2


def work(x):
    return x + x


def slow_reference(x):
    return work(x) if selection.accepted() else dawdle(x)


def varying_reference(x):
    return work(x) if selection.accepted() else vary(x)


def draw(random):
    return (random.random(2000, np.float32),)


# Two trials of one kernel: it must pass both.
TRIALS = {
    "differs": Trial("match", kernel_with(differ), draw, 1e-4),
    "aborts": Trial("roi_align", kernel_with(abort), draw),
    "works": Trial("nms", slow_reference, draw),
    "fails": Trial("match", kernel_with(raise_error), draw),
    "varies": Trial("match", kernel_with(vary), draw, 1e9),
    "dawdles": Trial("roi_align", kernel_with(dawdle), draw),
    "hangs": Trial("roi_align_gradient", kernel_with(hang), draw),
    "works again": Trial("nms", slow_reference, draw),
}
