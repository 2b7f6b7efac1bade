"""The choice of kernels as a run makes it: trials in a process of their own, then the verdicts that were kept.

    python benchmarks/verdicts.py
    python benchmarks/verdicts.py --smoke      # the same; without an NVIDIA GPU nothing is tried

Prints each kernel's verdict and the time of both starts. It must run before anything else holds the device.
"""

import argparse
import os
import tempfile
import time

import timing

from diou_jax.compilation import set_flags
from diou_jax.kernels import selection, verdicts


def main() -> None:
    """Prints a line for each kernel and start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.parse_args()
    set_flags()
    os.environ[selection.SWITCH] = "auto"
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        for start in ("first", "second"):
            began = time.monotonic()
            lines = verdicts.earn(folder)
            starts.append((start, time.monotonic() - began, lines))
    print(timing.header("The choice of kernels"))
    timing.head("start", "s", "verdict")
    for start, seconds, lines in starts:
        for text in lines or ["no NVIDIA GPU here, so that nothing is tried"]:
            timing.line(start, seconds, text)


if __name__ == "__main__":
    main()
