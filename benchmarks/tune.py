"""Milliseconds of each kernel with other sizes of its blocks than the built-in ones; the best of each last.

    python benchmarks/tune.py                   # on a Hopper card or newer
    python benchmarks/tune.py --smoke           # interprets nothing: on a CPU every choice is the same program

The choices are the named constants of the kernels' files; one that is better on a card is changed there. Each is timed
on the trial of `diou_jax.kernels.trials` that uses the kernel, in a process of its own, as a kernel may abort.
"""

import argparse
import functools
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import timing

from diou_jax.kernels import match_gpu, nms_gpu, roi_align_gpu, selection
from diou_jax.kernels.trials import TRIALS

# Module, constant, trials that show it, and the values to try, the built-in one among them.
CHOICES = {
    "ROWS": (nms_gpu, ("nms of proposals", "nms of detections"), [{1: n, 2: n, 4: n} for n in (2, 4, 8)]),
    "POOL_ORDER": (roi_align_gpu, ("roi_align, bfloat16",), list(itertools.permutations(("image", "roi", "row")))),
    "GROUP": (roi_align_gpu, ("roi_align_gradient, bfloat16",), [1, 2, 4, 8]),
    "ITEMS": (match_gpu, ("match",), [2, 4, 8, 16]),
}


def measure(constant: str, number: int, name: str, *, bursts: int, length: int) -> float:
    """Milliseconds of a trial's kernel with the constant's choice of this number."""
    module, _, values = CHOICES[constant]
    setattr(module, constant, values[number])
    trial = TRIALS[name]
    arguments = jax.device_put(trial.inputs(np.random.default_rng(0)))
    with selection.only((trial.kernel,)):
        call = functools.partial(jax.jit(trial.function).lower(*arguments).compile(), *arguments)
    return float(np.median(timing.measure(call, jax.block_until_ready, bursts=bursts, length=length))) * 1e3


def apart(seconds: float, *arguments: str) -> float | None:
    """`measure` in a process of its own; None where it fails or takes too long."""
    command = [sys.executable, __file__, "--one", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        print(f"{' '.join(arguments)}: {error}".splitlines()[0], file=sys.stderr)
        return None


def main() -> None:
    """Prints a line for each choice, and the best of each kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, metavar=("CONSTANT", "NUMBER", "TRIAL"), help="prints one time and no table")
    parser.add_argument("--seconds", type=float, default=40.0, help="limit of one choice")
    parser.add_argument("--constants", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--smoke", action="store_true", help="two choices of one kernel, one burst")
    options = parser.parse_args()
    repeats = {"bursts": 1, "length": 1} if options.smoke else {"bursts": 11, "length": 20}
    if options.one:
        constant, number, name = options.one
        print(json.dumps(measure(constant, int(number), name, **repeats)))
        return
    smoke = ["--smoke"] if options.smoke else []
    print(timing.header("Sizes of blocks, milliseconds of a kernel's trial"))
    timing.head("constant", "value", "trial", "ms")
    best = {}
    for constant in ["POOL_ORDER"] if options.smoke else options.constants:
        _, names, values = CHOICES[constant]
        for name in names:
            for number, value in list(enumerate(values))[: 2 if options.smoke else None]:
                milliseconds = apart(options.seconds, constant, str(number), name, *smoke)
                timing.line(constant, value, name, milliseconds)
                if milliseconds is not None:
                    best.setdefault((constant, name), []).append((milliseconds, str(value)))
    for (constant, name), times in best.items():
        milliseconds, value = min(times)
        print(f"best {constant} for {name}: {value}, {milliseconds:.3f} ms")


if __name__ == "__main__":
    main()
