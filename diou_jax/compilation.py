"""Compilation: XLA's flags, the choice of GPU kernels, and the cache of compiled programs on disk."""

import functools
import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from diou_jax.files import make_folder
from diou_jax.kernels import selection, verdicts
from diou_jax.reporting.run_log import print_line

# XLA's flags that differ from its defaults, each with its reason and cost.
FLAGS = {
    # A resumed run gives the same bits only if every kernel does. According to benchmarks/ahead_of_time.py the flag
    # costs 0.1 ms of the 40 ms of a step with 16 images; it is not measured on a GPU yet.
    "xla_gpu_exclude_nondeterministic_ops": "true",
}


def set_flags() -> None:
    """Adds the missing ones of `FLAGS` to the environment variable XLA_FLAGS, which XLA reads once, at its start."""
    given = os.environ.get("XLA_FLAGS", "")
    ours = [f"--{name}={value}" for name, value in FLAGS.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()


@functools.cache
def prepare(folder: str) -> None:
    """Sets XLA's flags, chooses the GPU kernels and opens the compilation cache; call it before a device is held.

    Only the first call in a process has an effect. The processes of a run execute one program, so they use the kernels
    that every one of them accepts.

    Args:
      folder: the folder of verdicts on kernels and of compiled programs; if empty, nothing is kept.
    """
    set_flags()
    lines = earn_kernels(folder)
    cache_compilations(folder)
    if jax.process_count() > 1:
        mine = np.array([name in selection.accepted() for name in selection.NAMES])
        agreed = np.all(multihost_utils.process_allgather(mine), axis=0)
        selection.accept(name for name, everywhere in zip(selection.NAMES, agreed, strict=True) if everywhere)
    if jax.process_index() == 0:
        for line in lines:
            print_line(line)


def earn_kernels(folder: str) -> list[str]:
    """Calls `verdicts.earn` with the folder that the option names."""
    return verdicts.earn(pathlib.Path(folder).expanduser() if folder else None)


def recall_kernels(folder: str) -> None:
    """Takes the GPU kernels that a run has accepted on this machine; for programs that may hold the device already.

    Args:
      folder: as for `prepare`.
    """
    verdicts.recall(pathlib.Path(folder).expanduser() if folder else None)


def cache_compilations(folder: str) -> None:
    """Keeps programs that take longer than a second to compile in `folder`; if it is empty, nothing is kept.

    Raises:
      UserError: if the folder cannot be made.
    """
    if not folder:
        return
    path = pathlib.Path(folder).expanduser()
    make_folder(path, "log.compilation_cache", mend="name another folder, or none with ''")
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
