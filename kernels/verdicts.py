"""Kernels earn their place: tried once on each kind of device, in processes of their own, and remembered.

A kernel that fails aborts its process without an exception, and one that waits for ever takes it along. So before a
run holds the device, each kernel is tried beside its XLA reference (`diou_jax.kernels.trials`) in another process with
a time limit. One that aborts, hangs, differs or is slower is not used, by this run and the following.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from diou_jax.kernels import platform

MODULE = "diou_jax.kernels.trials"
TRIAL_SECONDS, ALL_SECONDS = 12.0, 30.0  # limits of one trial, the start of its process included, and of all
HOPPER = 9.0  # compute capability


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a trial.

    Attributes:
      used: whether the kernel passed it.
      reason: in words, both times included where there are any.
      final: False where there was no time to try; the next start tries again.
    """

    used: bool
    reason: str
    final: bool = True


def earn(folder: str | os.PathLike | None, *, module: str = MODULE) -> list[str]:
    """Lets ``auto`` take the kernels that have earned their place on this machine's cards; tries them if need be.

    It does nothing where the environment asks for all or no kernels, or where JAX would not use an NVIDIA GPU. It must
    come before anything that holds the device, and takes up to `ALL_SECONDS` the first time.

    Args:
      folder: where verdicts are kept; None keeps them nowhere.
      module: has the table of trials.

    Returns:
      One line for each trial, and none where nothing was to be decided.
    """
    if platform.switch() != "auto" or not _jax_may_use_cuda():
        return []
    cards = _cards()
    if not cards:
        return []
    if any(float(capability) < HOPPER for *_, capability in cards):
        return [f"kernels: not used, {cards[0][0]} is older than Hopper; XLA's own programs run instead"]
    key = _key(cards)
    with _alone(folder):  # processes that start together try once
        kept = _read(folder, key)
        verdicts = kept or try_all(module)
        if not kept and all(verdict.final for verdict in verdicts.values()):
            _write(folder, key, verdicts)
    platform.accept(accepted(verdicts, module))
    origin = ", as decided before" if kept else ""
    return [
        f"kernel {name}: {'used' if verdict.used else 'not used'}, {verdict.reason}{origin}"
        for name, verdict in verdicts.items()
    ]


def accepted(verdicts: Mapping[str, Verdict], module: str = MODULE) -> set[str]:
    """The kernels that passed all their trials; those that have none are not among them."""
    kernels = {name: trial.kernel for name, trial in importlib.import_module(module).TRIALS.items()}
    failed = {kernels[name] for name in kernels if name not in verdicts or not verdicts[name].used}
    return set(kernels.values()) - failed


def try_all(
    module: str = MODULE, *, trial_seconds: float = TRIAL_SECONDS, all_seconds: float = ALL_SECONDS
) -> dict[str, Verdict]:
    """Tries the kernels of ``module.TRIALS`` one after another; one that takes its process with it costs one trial.

    Args:
      module: has the table of trials, see `diou_jax.kernels.trials`.
      trial_seconds: limit of a trial.
      all_seconds: limit of all; trials that have no time left get a verdict that is not final.
    """
    names = list(importlib.import_module(module).TRIALS)
    verdicts: dict[str, Verdict] = {}
    end = time.monotonic() + all_seconds
    later = f"there was no time to try it within {all_seconds:g} s"
    while names and time.monotonic() < end:
        # One process for all that is left: the start of JAX and of the device is the longest part of a trial.
        found, problem = _one_process(module, names, trial_seconds, end)
        verdicts |= found
        names = [name for name in names if name not in found]
        if not found:
            later = problem or later
            break
    untried = Verdict(False, f"{later}; the next start tries again", final=False)
    return verdicts | dict.fromkeys(names, untried)


def _one_process(module, names, trial_seconds, end):
    """Verdicts up to the first trial that breaks its process, that one included; and why there are none."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", MODULE, "--module", module, "--output", str(writing), "--trials", *names]
    # Little of the device's memory, which other processes may hold.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    verdicts: dict[str, Verdict] = {}
    current = None
    with tempfile.TemporaryFile() as errors, os.fdopen(reading, "rb", buffering=0) as results:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, pass_fds=[writing], env=environment
        )
        os.close(writing)
        try:
            for row in _rows(results, trial_seconds, end):
                if row is None:
                    if current is not None and time.monotonic() < end:
                        verdicts[current] = Verdict(False, f"it did not end within {trial_seconds:g} s")
                    return verdicts, None
                if "begins" in row:
                    current = row["begins"]
                else:
                    verdicts[row["trial"]] = judge(row)
            process.wait(timeout=trial_seconds)
        except subprocess.TimeoutExpired:
            pass  # all results are there, and its end does not matter
        finally:
            process.kill()
            process.wait()
        if len(verdicts) == len(names) or (current in verdicts and process.returncode > 0):
            return verdicts, None
        errors.seek(0)
        problem = _how_it_died(process.returncode, errors.read())
    if current is not None and current not in verdicts:
        verdicts[current] = Verdict(False, problem)
    return verdicts, problem


def _rows(results, trial_seconds, end) -> Iterator[dict[str, Any] | None]:
    """The lines of a process as they come; None, as the last, once a trial or the whole takes too long."""
    rest, limit = b"", end  # of the time: the start of the process is no trial's
    with selectors.DefaultSelector() as selector:
        selector.register(results, selectors.EVENT_READ)
        while True:
            if not selector.select(max(limit - time.monotonic(), 0)):
                yield None
                return
            piece = os.read(results.fileno(), 65536)
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                limit = min(time.monotonic() + trial_seconds, end)
                yield json.loads(line)


def _how_it_died(code, errors):
    lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip()[:200] if lines else "no message"
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"its process died ({name}): {last}"


def judge(row: Mapping[str, Any]) -> Verdict:
    """The verdict on the result of a trial, see `diou_jax.kernels.trials`."""
    if "error" in row:
        return Verdict(False, f"it failed: {row['error'][:200]}", final="RESOURCE_EXHAUSTED" not in row["error"])
    times = f"{row['kernel_ms']:.3f} ms, XLA's {row['reference_ms']:.3f} ms"
    if not row["stable"]:
        return Verdict(False, f"two calls gave different results ({times})")
    if not row["deviation"] <= 1:
        return Verdict(False, f"it differs from its reference, {row['deviation']:.3g} times the tolerance ({times})")
    if row["kernel_ms"] > row["reference_ms"]:
        return Verdict(False, f"it is slower than its reference ({times})")
    return Verdict(True, times)


def _jax_may_use_cuda():
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted and not {"cuda", "gpu"} & set(wanted.split(",")):
        return False
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _cards() -> list[tuple[str, str, str]]:
    """Name, driver and compute capability of each kind of NVIDIA card here, asked of the driver and not of JAX."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = {tuple(cell.strip() for cell in line.split(",")) for line in done.stdout.splitlines()}
    return sorted(row for row in rows if len(row) == 3)


def _key(cards) -> dict[str, Any]:
    """All that a verdict depends on."""
    source = hashlib.sha256()
    for file in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        source.update(file.read_bytes())
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib")}
    return {"cards": [list(card) for card in cards], **versions, "kernels": source.hexdigest()[:16]}


def _file(folder, key):
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return pathlib.Path(folder) / f"kernels-{name}.json"


def _read(folder, key) -> dict[str, Verdict]:
    """Empty where there is no verdict, or a file that is none."""
    if folder is None:
        return {}
    try:
        content = json.loads(_file(folder, key).read_text())
        if content["key"] != key:
            return {}
        return {name: Verdict(**fields) for name, fields in content["verdicts"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write(folder, key, verdicts):
    """Where the folder cannot be written, the next start tries again."""
    if folder is None:
        return
    content = {"key": key, "verdicts": {name: dataclasses.asdict(verdict) for name, verdict in verdicts.items()}}
    file = _file(folder, key)
    draft = file.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(draft, file)


@contextlib.contextmanager
def _alone(folder):
    """Waits until no other process of this machine is inside; without a folder, or one that knows no locks, at once."""
    if folder is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((pathlib.Path(folder) / "kernels.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
