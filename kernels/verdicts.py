"""Verdicts on the GPU kernels: each is tried once on each kind of device, and the result is remembered.

A kernel that fails aborts its process without an exception, and a kernel that never ends blocks it. So before a run
holds the device, each kernel is tried against its XLA reference (`diou_jax.kernels.trials`) in another process with a
time limit. A kernel that aborts, hangs, differs or is slower is not used by this run and the following ones.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from diou_jax.kernels import selection
from diou_jax.kernels.trial_process import started

MODULE = "diou_jax.kernels.trials"
TRIAL_SECONDS, ALL_SECONDS = 12.0, 30.0  # time limits of one trial, and of all with the starts of their processes
HOPPER = 9.0  # compute capability


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one trial.

    Attributes:
      used: whether the kernel passed.
      reason: the reason in words, with the times of kernel and reference if both were measured.
      final: False if the next start should try again: there was no time, or the device had too little free memory.
    """

    used: bool
    reason: str
    final: bool = True


def earn(folder: str | os.PathLike | None, *, module: str = MODULE) -> list[str]:
    """Lets ``auto`` take the kernels that pass their trials on this machine's cards.

    Only trials without a kept verdict take place. Nothing happens if the environment asks for all kernels or none, or
    if JAX would not use an NVIDIA GPU. Call it before anything holds the device; it takes up to `ALL_SECONDS` the first
    time.

    Args:
      folder: the folder where verdicts are kept; None keeps none.
      module: name of the module with the table of trials.

    Returns:
      One line for the log per trial; none if nothing was to be decided.
    """
    if not (cards := _cards_of_auto()):
        return []
    if any(float(capability) < HOPPER for *_, capability in cards):
        return [f"kernels: not used, {cards[0][0]} is older than Hopper; XLA's own programs run instead"]
    key = _key(cards)
    with _alone(folder):  # of processes that start together, one tries the kernels
        kept = _read(folder, key)
        names = list(importlib.import_module(module).TRIALS)
        missing = [name for name in names if name not in kept]
        found = try_all(module, missing) if missing else {}
        if final := {name: verdict for name, verdict in found.items() if verdict.final}:
            _write(folder, key, kept | final)
    verdicts = {name: (kept | found)[name] for name in names}
    selection.accept(accepted(verdicts, module))
    return [
        f"kernel {name}: {'used' if verdict.used else 'not used'}, {verdict.reason}"
        f"{', as decided before' if name in kept else ''}"
        for name, verdict in verdicts.items()
    ]


def recall(folder: str | os.PathLike | None) -> None:
    """Lets ``auto`` take the kernels whose verdicts are kept; tries none, so that a library can call it at any time.

    Nothing happens if the process has chosen kernels before, or where `earn` would do nothing.

    Args:
      folder: as for `earn`.
    """
    if selection.accepted() or not (cards := _cards_of_auto()):
        return
    if kept := _read(folder, _key(cards)):
        selection.accept(accepted(kept))


def accepted(verdicts: Mapping[str, Verdict], module: str = MODULE) -> set[str]:
    """The kernels that passed all their trials; a trial without a verdict counts as failed."""
    kernels = {name: trial.kernel for name, trial in importlib.import_module(module).TRIALS.items()}
    failed = {kernels[name] for name in kernels if name not in verdicts or not verdicts[name].used}
    return set(kernels.values()) - failed


def try_all(
    module: str = MODULE,
    names: Sequence[str] | None = None,
    *,
    trial_seconds: float = TRIAL_SECONDS,
    all_seconds: float = ALL_SECONDS,
) -> dict[str, Verdict]:
    """Tries the kernels of ``module.TRIALS`` one after another; a kernel that aborts its process fails only its trial.

    Args:
      module: name of the module with the table of trials, see `diou_jax.kernels.trials`.
      names: the trials; None tries all.
      trial_seconds: time limit of one trial.
      all_seconds: time limit of all; trials for which no time is left get a verdict that is not final.
    """
    names = list(importlib.import_module(module).TRIALS if names is None else names)
    verdicts: dict[str, Verdict] = {}
    end = time.monotonic() + all_seconds
    later = f"there was no time to try it within {all_seconds:g} s"
    while names and time.monotonic() < end:
        # One process for all remaining trials: starting JAX and the device takes longer than a trial.
        found, problem = _one_process(module, names, trial_seconds, end)
        verdicts |= found
        names = [name for name in names if name not in found]
        if not found:
            later = problem or later
            break
    untried = Verdict(False, f"{later}; the next start tries again", final=False)
    return verdicts | dict.fromkeys(names, untried)


def _one_process(module, names, trial_seconds, end):
    """Verdicts up to and including the first trial that breaks the process, and the reason for its end, or None."""
    command = [sys.executable, "-m", MODULE, "--module", module, "--trials", *names]
    # JAX takes only the device memory that it needs, since other processes may hold the rest.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    verdicts: dict[str, Verdict] = {}
    current = None
    with started(command, environment) as process:
        for row in process.rows(trial_seconds, end):
            if row is None:
                if current is not None and current not in verdicts and time.monotonic() < end:
                    verdicts[current] = Verdict(False, f"it did not end within {trial_seconds:g} s")
                return verdicts, None
            if "begins" in row:
                current = row["begins"]
            else:
                verdicts[row["trial"]] = judge(row)
        process.wait(trial_seconds)  # all results have arrived, so how the process ends does not matter
    if len(verdicts) == len(names) or (current in verdicts and process.code > 0):
        return verdicts, None
    problem = process.how_it_died()
    if current is not None and current not in verdicts:
        verdicts[current] = Verdict(False, problem)
    return verdicts, problem


def judge(row: Mapping[str, Any]) -> Verdict:
    """The verdict that follows from the result of a trial, see `diou_jax.kernels.trials`."""
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


def _cards_of_auto():
    """The machine's cards, see `_cards`, if the environment leaves the choice of kernels to their trials."""
    return _cards() if selection.switch() == "auto" and _jax_may_use_cuda() else []


def _jax_may_use_cuda():
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted and not {"cuda", "gpu"} & set(wanted.split(",")):
        return False
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _cards() -> list[tuple[str, str, str]]:
    """Name, driver and compute capability of each kind of NVIDIA card, from nvidia-smi: JAX would hold the device."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = {tuple(cell.strip() for cell in line.split(",")) for line in done.stdout.splitlines()}
    return sorted(row for row in rows if len(row) == 3)


def _key(cards) -> dict[str, Any]:
    """Everything that a verdict depends on: cards, versions of JAX, source of the kernels."""
    source = hashlib.sha256()
    for file in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        source.update(file.read_bytes())
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib")}
    return {"cards": [list(card) for card in cards], **versions, "kernels": source.hexdigest()[:16]}


def _file(folder, key):
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return pathlib.Path(folder) / f"kernels-{name}.json"


def _read(folder, key) -> dict[str, Verdict]:
    """The verdicts that are kept for `key`; empty if there is no file or it cannot be read."""
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
    """Keeps the verdicts; if the folder cannot be written, nothing is kept and the next start tries again."""
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
    """A lock among the processes of this machine; none without a folder, or if the folder supports no locks."""
    if folder is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((pathlib.Path(folder) / "kernels.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
