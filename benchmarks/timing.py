"""The clock of the benchmarks of whole steps, and tables that can be pasted into docs/performance.md."""

import datetime
import functools
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib import metadata

import jax
import numpy as np


def measure(call: Callable, wait: Callable, *, bursts: int, length: int) -> np.ndarray:
    """Seconds per call, (bursts,), each the mean of a burst of `length` calls that waits for its last result only.

    The first burst is not counted: it compiles, tunes and fills queues.

    Args:
      call: starts the work and returns a handle.
      wait: blocks until the work behind a handle is done.
      bursts: number of bursts that count.
      length: number of calls in a burst.
    """
    seconds = []
    for _ in range(bursts + 1):
        start = time.perf_counter()
        for _ in range(length):
            result = call()
        wait(result)
        seconds.append((time.perf_counter() - start) / length)
    return np.array(seconds[1:])


def spread(seconds: np.ndarray) -> str:
    """Median and, in brackets, the 10th and 90th percentile, in milliseconds."""
    low, median, high = np.percentile(seconds, (10, 50, 90)) * 1e3
    return f"{median:.2f} ({low:.2f}, {high:.2f})"


def has_torchvision() -> bool:
    """Whether the peer can be imported; a build that does not fit the installed torch cannot."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def cost(stage: jax.stages.Lowered | jax.stages.Compiled) -> dict[str, float]:
    """XLA's count of a program's work and traffic by name; before compilation it is counted for a CPU, if need be.

    Plugins, such as that of NVIDIA's GPUs, count compiled programs only, in which calls of libraries hide the work.
    """
    counted = stage.cost_analysis()
    if counted is None and isinstance(stage, jax.stages.Lowered):
        from jax._src.lib import _jax  # JAX has no public name for this

        module = stage._lowering.hlo().as_hlo_module()
        counted = _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
    return counted or {}


def header(title: str) -> str:
    """The heading of a table, with devices, versions, date and command, so that a reader can repeat it."""
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    versions = [f"Python {platform.python_version()}"]
    for name in ("jax", "jaxlib", "torch", "torchvision"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    command = shlex.join(["python", *sys.argv])
    return f"## {title}\n\n{devices}, {', '.join(versions)}, {datetime.date.today()}, `{command}`\n"


def line(*cells) -> None:
    """Prints a line of a Markdown table; numbers have three digits, None is a dash."""
    print("| " + " | ".join(map(_show, cells)) + " |", flush=True)


def head(*names: str) -> None:
    """Prints the first two lines of a table."""
    line(*names)
    print("|" + "---|" * len(names), flush=True)


@functools.singledispatch
def _show(cell) -> str:
    return str(cell)


@_show.register(type(None))
def _(cell) -> str:
    return "-"


@_show.register(float)
def _(cell) -> str:
    digits = max(0, 2 - int(np.floor(np.log10(abs(cell))))) if cell and np.isfinite(cell) else 0
    return f"{cell:.{min(digits, 4)}f}"
