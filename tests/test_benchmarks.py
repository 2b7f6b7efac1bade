"""Every benchmark still runs: `--smoke` prints its table, on a CPU and without torch."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import fast_compilation
import pytest
from conftest import slow

ROOT = pathlib.Path(__file__).resolve().parent.parent
# gpu.py, which gives it to the others, has a test of its own.
NAMES = sorted(
    file.stem
    for file in (ROOT / "benchmarks").glob("*.py")
    if "--smoke" in (text := file.read_text()) and "__main__" in text and file.stem != "gpu"
)
QUICK = ("input", "match", "scoring")
# One row of each kind, since each compiles a program of its own.
SOME_ROWS = {"cpu": ("--rows", "Mask R-CNN, detection", "NMS, final", "backward")}
# In the place of torch, which a user of JAX need not have.
NO_TORCH = "raise ImportError('no torch here')"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``run(command, *path)``: the output of a command on a CPU with one device; fails where it does.

    The commands share their compiled programs, as many measure the same network.
    """
    cache = tmp_path_factory.mktemp("cache")

    def call(command, *path):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "XLA_FLAGS": fast_compilation.FLAGS,
            "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
        }
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in NAMES])
def test_the_smoke_run_prints_a_table_of_finite_numbers(name, run, tmp_path):
    for module in ("torch", "torchvision"):
        (tmp_path / f"{module}.py").write_text(NO_TORCH)
    printed = run([f"benchmarks/{name}.py", "--smoke", *SOME_ROWS.get(name, ())], tmp_path)
    rows = [line for line in printed.splitlines() if len(re.findall(r"\d+(?:\.\d+)?", line)) >= 3]
    assert rows, printed
    assert not re.search(r"\b(nan|inf)\b", printed, re.IGNORECASE), printed


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_the_peer_trains_and_detects(run):
    call = "peers.train(1, (64, 96), bursts=1, length=1)[0], "
    call += "*peers.detect(1, (64, 96), candidates=9, bursts=1, length=1, lone=1)"
    printed = run(["-c", f"import peers; print([float(x[0]) for x in ({call})])"], ROOT / "benchmarks")
    times = [float(number) for number in printed.strip("[]\n").split(",")]
    assert len(times) == 4
    assert min(times) > 0
