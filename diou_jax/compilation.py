"""Compiled programs kept on disk from one start to the next."""

import pathlib

import jax


def cache_compilations(folder: str) -> None:
    """Keeps what takes longer than a second to compile in `folder`, or nowhere if that is empty."""
    if not folder:
        return
    path = pathlib.Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
