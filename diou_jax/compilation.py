"""How programs are compiled, and that they are kept on disk from one start to the next."""

import os
import pathlib

import jax

from diou_jax.files import make_folder

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
