"""The GPU kernels as compiled for a GPU, run on a CPU thread by thread, beside their references; no GPU is needed.

    pip install -e '.[cuda13]'               # brings the compiler; a C compiler is needed, too
    python benchmarks/emulation.py
    python benchmarks/emulation.py --capability 10 --trials match "nms of proposals"      # for Blackwell

Each trial of `diou_jax.kernels.trials`, at the detector's sizes, and those of odd shapes of `kernel_checks.py` are
compiled ahead of time. Mosaic's PTX is translated to C (`ptx.py`) and takes the place of the kernel in a program that
otherwise runs on the CPU, as does the reference that a GPU would get. Every kernel runs twice, the second time with
blocks and threads in another order. The table has the deviation from the reference, whether both orders gave the same
bits, and the faults of `ptx.FAULTS`. The exit code is 1 if a trial deviates, depends on the order, has a fault or
starts no kernel.

It shows neither how fast the kernels are nor faults of the machine code that a GPU's assembler makes of PTX.
"""

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np
import ptx
import timing
from ahead_of_time import H100, devices
from jax.experimental.pallas import mosaic_gpu as plgpu
from kernel_checks import ODD

from diou_jax.kernels import selection
from diou_jax.kernels.trials import TRIALS, Trial, deviation, same_bits

CHECKED = ODD | TRIALS
COLUMNS = ("trial", "kernels", "blocks", "deviation, share of tolerance", "same in another order", *ptx.FAULTS, "s")
# The start of a kernel in MLIR: its name, the constants of its grid and shared memory, its arguments' values.
LAUNCH = re.compile(
    r"gpu\.launch_func .*@(\w+)_mosaic_gpu_kernel blocks in \(%c(\d+)\w*, %c(\d+)\w*, %c(\d+)\w*\)"
    r".*memory_size %c(\d+)_i32\w* args\((.*?)\) loc"
)


class Emulator:
    """Takes the place of `plgpu.kernel`, with the kernels of a folder into which Mosaic has dumped its stages.

    Attributes:
      seed: the order of blocks and threads, as in `ptx.compile`.
      blocks: blocks that ran, by kernel.
      faults: the number of each of `ptx.FAULTS` of all launches.
    """

    def __init__(self, folder: pathlib.Path):
        self.seed = 0
        self.blocks: dict[str, int] = {}
        self.faults = dict.fromkeys(ptx.FAULTS, 0)
        self._kernels = {}
        for file in folder.glob("*.ptx"):
            name = file.stem.rpartition("_")[0]
            if name in self._kernels:
                raise ValueError(f"{name} was compiled twice; a trial may start each kernel once")
            started = LAUNCH.findall(file.with_name(f"{file.stem}.mlir-passes.log").read_text())[-1]
            values = [int(value) for value in re.findall(r"%(\d+) :", started[-1])]
            order = tuple(sorted(values).index(value) for value in values)  # the host loads its pointers in order
            x, y, z, shared = map(int, started[1:-1])
            self._kernels[name] = (
                ptx.Launch(order, (x, y, z), shared),
                ptx.compile(file.read_text(), folder),
            )

    def kernel(self, body, *, out_type, **_):
        """As `plgpu.kernel`; the call returns what the emulated kernel writes."""
        launch, run = self._kernels[body.__name__]
        several = isinstance(out_type, list)
        results = out_type if several else [out_type]

        def on_host(*operands):
            written, faults = run(launch, [np.asarray(x) for x in operands], results, self.seed)
            self.blocks[body.__name__] = int(np.prod(launch.grid))
            for kind, number in faults.items():
                self.faults[kind] += number
            return written if several else written[0]

        return lambda *operands: jax.pure_callback(on_host, out_type, *operands)


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """A context in which traced programs take the operations that they would take on an NVIDIA GPU."""

    def for_cuda(*operands, **choices):
        return choices.get("cuda", choices["default"])(*operands)

    with mock.patch.object(jax.lax, "platform_dependent", for_cuda):
        yield


@contextlib.contextmanager
def standard_error_to(file: pathlib.Path) -> Iterator[None]:
    """A context in which standard error, that of C++ included, goes to a file."""
    before = os.dup(2)
    with file.open("w") as output:
        os.dup2(output.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def dump(trial: Trial, arguments, capability: int, folder: pathlib.Path) -> None:
    """Compiles a trial with its kernel for a GPU; Mosaic leaves its stages in the folder."""
    target = H100.replace("major: 9", f"major: {capability}")
    place = jax.sharding.SingleDeviceSharding(devices(1, False, target)[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    jax.clear_caches()  # functions that jit has traced before would keep the other choice
    with selection.only((trial.kernel,)):
        lowered = jax.jit(lambda *arguments: trial.function(*arguments)).lower(*shapes)
    stages = mock.patch.dict(os.environ, {"MOSAIC_GPU_DUMP_TO": str(folder)})
    with stages, standard_error_to(folder / "messages"):  # Mosaic complains where it finds no disassembler
        lowered.compile({"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False})


def check(name: str, capability: int, seed: int) -> bool:
    """Prints a trial's line; whether all is well."""
    trial, start = CHECKED[name], time.perf_counter()
    arguments = trial.inputs(np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as folder, jax.default_device(jax.devices("cpu")[0]):
        dump(trial, arguments, capability, pathlib.Path(folder))
        emulator = Emulator(pathlib.Path(folder))
        found = []
        for order in (0, 1):
            emulator.seed = order
            jax.clear_caches()
            with selection.only((trial.kernel,)), as_on_a_gpu(), mock.patch.object(plgpu, "kernel", emulator.kernel):
                found.append(jax.block_until_ready(jax.jit(lambda *a: trial.function(*a))(*arguments)))
        jax.clear_caches()
        with selection.only(()), as_on_a_gpu():
            reference = jax.jit(lambda *a: trial.function(*a))(*arguments)
        off = deviation(found[0], reference, trial.tolerance)
        same = same_bits(*found)
    blocks = ", ".join(f"{number}" for number in emulator.blocks.values())
    kernels = ", ".join(emulator.blocks)
    seconds = round(time.perf_counter() - start)
    timing.line(name, kernels, blocks, off, "yes" if same else "NO", *emulator.faults.values(), seconds)
    return bool(emulator.blocks) and off <= 1 and same and not any(emulator.faults.values())


def main() -> None:
    """Prints a line for each trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, choices=(9, 10), default=9, help="Hopper or Blackwell")
    parser.add_argument("--trials", nargs="+", choices=CHECKED, default=list(CHECKED), metavar="TRIAL")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs")
    parser.add_argument("--one", choices=CHECKED, help="this trial in this process, without the table's head")
    options = parser.parse_args()
    if options.one:
        sys.exit(not check(options.one, options.capability, options.seed))
    if shutil.which("cc") is None:
        raise SystemExit("no C compiler here (cc); install gcc or clang")
    print(timing.header(f"Kernels compiled for compute capability {options.capability}.0, emulated"))
    timing.head(*COLUMNS)
    # A process compiles equal kernels once, and leaves their stages in the folder of the first trial only.
    same = [sys.executable, __file__, "--capability", str(options.capability), "--seed", str(options.seed), "--one"]
    broken = [name for name in options.trials if subprocess.run([*same, name]).returncode]
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
