"""Whether this device is sound, and its ceilings: versions, compiler, eager arithmetic, copies and products.

    python benchmarks/device.py
    python benchmarks/device.py --smoke      # small arrays, seconds on a CPU

Exit code 3 where the arithmetic is wrong: nothing that is measured afterwards would mean anything.
"""

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import timing

WRONG = 3  # exit code
PACKAGES = ("jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cuda-nvcc", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink")


def versions() -> dict[str, str]:
    """Card, driver and compilers, as far as there are any."""
    found = {}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"]
    for name, command, pattern in (("card", query, ".*"), ("ptxas", ["ptxas", "--version"], r"release [\d.]+")):
        if shutil.which(command[0]):
            printed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
            if match := re.search(pattern, printed):
                found[name] = match[0].strip()
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def arithmetic() -> dict[str, tuple[float, float, float]]:
    """Results of eager operations, the right values, and the tolerance; some were wrong on a GPU (jax #40633)."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((256, 256)).astype(np.float32) for _ in range(2))
    a, b = (np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)) for x in (a, b))
    product = jnp.asarray(a, jnp.bfloat16) @ jnp.asarray(b, jnp.bfloat16)
    normal = np.asarray(jax.random.normal(jax.random.key(0), (100_000,)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    integers = jnp.arange(1000)
    return {
        "sum of ones(4) + 1": (float((jnp.ones(4) + 1).sum()), 8.0, 0.0),
        "sqrt(512)": (float(jnp.sqrt(jnp.float32(512.0))), float(np.sqrt(np.float32(512.0))), 1e-5),
        "deviation of 100,000 normal draws": (float(normal.std()), 1.0, 0.01),
        "mean of 100,000 normal draws": (float(normal.mean()), 0.0, 0.015),
        "sum of arange(1000)": (float(integers.sum()), 499_500.0, 0.0),
        "largest error of a bfloat16 product": (float(np.abs(np.asarray(product, np.float64) - exact).max()), 0.0, 0.3),
        # XLA needs NVIDIA's libdevice for these; in a program, as an eager operation may take another way.
        "sin(1) in a program": (float(jax.jit(jnp.sin)(1.0)), float(np.sin(1.0)), 1e-5),
        "3 ** 1.5 in a program": (float(jax.jit(jnp.power)(3.0, 1.5)), 3.0**1.5, 1e-4),
        "exp(log(7))": (float(jnp.exp(jnp.log(jnp.float32(7.0)))), 7.0, 1e-4),
    }


def ceilings(*, smoke: bool) -> dict[str, float]:
    """TB/s of a copy in device memory, read and written; TFLOP/s of bfloat16 products."""
    count, side = (2**20, 256) if smoke else (2**30, 8192)
    repeats = {"bursts": 1, "length": 1} if smoke else {"bursts": 10, "length": 10}
    source = jnp.zeros(count, jnp.bfloat16)
    copy = jax.jit(lambda x: -x)
    seconds = float(np.median(timing.measure(lambda: copy(source), jax.block_until_ready, **repeats)))
    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    multiply = jax.jit(jnp.matmul)
    product = float(np.median(timing.measure(lambda: multiply(matrix, matrix), jax.block_until_ready, **repeats)))
    return {"copy, TB/s": 2 * source.nbytes / seconds / 1e12, "bfloat16 product, TFLOP/s": 2 * side**3 / product / 1e12}


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    print(timing.header("Device"))
    timing.head("software", "version")
    for name, version in versions().items():
        timing.line(name, version)
    print()
    timing.head("eager operation", "result", "right", "")
    wrong = []
    for name, (result, right, tolerance) in arithmetic().items():
        fine = abs(result - right) <= tolerance
        timing.line(name, result, right, "yes" if fine else "WRONG")
        wrong += [] if fine else [name]
    if wrong:
        print(f"wrong arithmetic: {', '.join(wrong)}")
        sys.exit(WRONG)
    print()
    timing.head("ceiling", "measured")
    for name, value in ceilings(smoke=options.smoke).items():
        timing.line(name, value)


if __name__ == "__main__":
    main()
