"""How programs are compiled, and that they are kept on disk from one start to the next."""

import functools
import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from diou_jax.files import make_folder
from diou_jax.kernels import platform, verdicts
from diou_jax.reporting.run_log import say

# XLA's flags that differ from its defaults, with what each brings and costs.
FLAGS = {
    # A resumed run gives the same bits only if every kernel does. By benchmarks/ahead_of_time.py it costs the step of
    # 16 images 0.1 ms of 40; not measured on a GPU yet.
    "xla_gpu_exclude_nondeterministic_ops": "true",
}


def set_flags() -> None:
    """Adds to the environment's XLA_FLAGS what it lacks of `FLAGS`. XLA reads them once, for its first program."""
    given = os.environ.get("XLA_FLAGS", "")
    ours = [f"--{name}={value}" for name, value in FLAGS.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()


@functools.cache
def prepare(folder: str) -> None:
    """What a program does before it holds a device: sees which kernels to use, and keeps compiled programs in `folder`.

    It does so once a process, however often it is called.

    In a run of several processes all take the kernels that every one of them would take: they run one program.

    Args:
      folder: of verdicts on kernels and compiled programs; empty: nothing is kept.
    """
    lines = earn_kernels(folder)
    cache_compilations(folder)
    if jax.process_count() > 1:
        mine = np.array([name in platform.accepted() for name in platform.NAMES])
        agreed = np.all(multihost_utils.process_allgather(mine), axis=0)
        platform.accept(name for name, everywhere in zip(platform.NAMES, agreed, strict=True) if everywhere)
    if jax.process_index() == 0:
        for line in lines:
            say(line)


def earn_kernels(folder: str) -> list[str]:
    """`verdicts.earn`, with the folder as the option names it."""
    return verdicts.earn(pathlib.Path(folder).expanduser() if folder else None)


def cache_compilations(folder: str) -> None:
    """Keeps what takes longer than a second to compile in `folder`, or nowhere if that is empty.

    Raises:
      UserError: the folder cannot be made.
    """
    if not folder:
        return
    path = pathlib.Path(folder).expanduser()
    make_folder(path, "log.compilation_cache", mend="name another folder, or none with ''")
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
