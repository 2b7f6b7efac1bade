"""Programs that are compiled before they are needed, in parallel.

A run has a few shapes of batches, and each shape needs a program of its own. XLA compiles a program mostly on one core;
if each program were compiled when its shape first occurs, the devices would wait again and again.
"""

import functools
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax

from diou_jax.devices import replicate
from diou_jax.reporting.run_log import print_line
from diou_jax.structures import Batch

# Each compilation of a large network takes one to two GB of host memory.
MAX_THREADS = 8


class Programs:
    """A compiled function of a pytree, a batch and constants, with one program for each shape of the batch.

    A batch is a `Batch` or a pytree that holds one, such as a batch with its detections.

    A program that `compile` has not made is compiled at its first call, as jax.jit and jax.pmap do it.

    Attributes:
      title: name of the function in messages.
    """

    def __init__(self, title: str, function: jax.stages.Wrapped, *constants: Any):
        """Takes a function that jax.pmap or jax.jit returned, and its arguments after the tree and the batch.

        These are numpy arrays, which are copied to the devices once.
        """
        self.title = title
        self._function = function
        self._constants = constants
        self._compiled: dict[tuple, jax.stages.Compiled] = {}

    def __call__(self, tree: Any, batch: Any) -> Any:
        """The function's result for a batch on the devices."""
        return self._compiled.get(shapes(batch), self._function)(tree, batch, *self._on_devices)

    @functools.cached_property
    def _on_devices(self) -> tuple:
        """The constants on all devices; a program that is only lowered may be for devices that are not there."""
        return replicate(self._constants)

    def programs(self, tree: Any, batch: Any) -> list[tuple["Programs", Any, Any]]:
        """Itself with arguments of these shapes, for `compile_ahead`."""
        return [(self, tree, batch)]

    def lower(self, tree: Any, batch: Any) -> jax.stages.Lowered:
        """The program for trees and batches of these shapes, not yet compiled; values are ignored."""
        return self._function.lower(tree, batch, *self._constants)

    def has(self, batch: Any) -> bool:
        """Whether `compile` has made the program for batches of this shape."""
        return shapes(batch) in self._compiled

    def compile(self, tree: Any, batch: Any) -> None:
        """Compiles the program for trees and batches of these shapes; values are ignored."""
        program = self.lower(tree, batch).compile()
        # With several processes pmap converts arrays before and after its program, so that only pmap can call it. It
        # then finds this program in the compilation cache.
        if jax.process_count() == 1:
            self._compiled[shapes(batch)] = program


def compile_ahead(wanted: Sequence[tuple[Programs, Any, Any]]) -> None:
    """Compiles programs in parallel threads and logs after each how many are ready; returns when all are.

    Args:
      wanted: for each program its function, and a tree and a batch with its shapes, dtypes and devices.
    """
    # Several processes find these programs on disk only; without a cache all would be compiled twice.
    if not wanted or (jax.process_count() > 1 and not jax.config.values["jax_compilation_cache_dir"]):
        return
    began = time.perf_counter()
    # Every process starts its programs in the same order, since XLA lets processes share results of tuning.
    with ThreadPoolExecutor(min(len(wanted), MAX_THREADS, os.cpu_count() or 1)) as pool:
        waiting = {
            pool.submit(programs.compile, tree, batch): f"{programs.title} {_size(batch)}".rstrip()
            for programs, tree, batch in wanted
        }
        for number, done in enumerate(as_completed(waiting), start=1):
            done.result()
            if jax.process_index() == 0:
                seconds = time.perf_counter() - began
                print_line(f"compiled {number} of {len(wanted)}: {waiting[done]}, {seconds:.1f} s after the start")


def shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of all arrays of a pytree, by which programs are kept."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def _size(tree):
    """Height and width of the network's input, and those of the canvas if they differ; empty without a batch."""
    found = [leaf for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Batch)) if isinstance(leaf, Batch)]
    if not found:
        return ""
    batch = found[0]
    shape, canvas = (batch.rows.index.shape[-1], batch.columns.index.shape[-1]), batch.image.shape[-3:-1]
    text = "{}x{}".format(*shape)
    return text if shape == canvas else text + " from {}x{}".format(*canvas)
