"""Do the kernels give their references' results: random inputs, poisoned outputs, repeats, command buffers, odd shapes.

    python benchmarks/kernel_checks.py --dump FOLDER
    python benchmarks/kernel_checks.py --smoke      # odd shapes only, once; on a CPU kernel and reference are one

Each trial of `diou_jax.kernels.trials`, and smaller ones of odd shapes, is checked in a process that goes on with the
next; a kernel that aborts costs its own checks, and is repeated once with Mosaic's PTX and machine code kept. The whole
is done twice, with and without XLA's command buffers. Exit code 1 where anything differs.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import timing

from diou_jax.kernels import selection
from diou_jax.kernels.match import match
from diou_jax.kernels.nms import nms
from diou_jax.kernels.roi_align import roi_align
from diou_jax.kernels.trials import STRIDES, TRIALS, Trial, deviation, draw_clusters, draw_pyramid

COLUMNS = (
    "trial",
    "command buffers",
    "deviation, share of tolerance",
    "outputs poisoned",
    "repeats equal",
    "in a program",
)
WITHOUT_BUFFERS = "--xla_gpu_enable_command_buffer="
SEEDS, REPEATS = 3, 50


def _small_nms(random):
    boxes, scores = draw_clusters(random, images=1, problems=3, count=78)
    return boxes[0, :, 1:], scores[0, :, 1:]


def _small_pyramid(random):
    return draw_pyramid(random, 3, 5, height=96, width=160, channels=128, resolution=7)


def _small_pool(features, rois, gradient):
    def pool(features):
        return roi_align(features, rois[:, 1:], resolution=7, sampling_ratio=2, strides=STRIDES)

    pooled, backward = jax.vjp(pool, features)
    return pooled, backward(gradient[:, 1:])


def _small_match(random):
    (anchors, boxes), _ = draw_clusters(random, images=2, problems=1, count=1001)
    masks = {"eligible": random.random((3, 1001)) < 0.8, "valid": random.random((3, 7)) < 0.5}
    return anchors[0], boxes[0, :21].reshape(3, 7, 4), masks


# Inputs that are slices, counts that fill no block.
ODD = {
    "nms of 3 x 77, sliced": Trial("nms", lambda boxes, scores: nms(boxes, scores, 0.5, overlap="diou"), _small_nms),
    "roi_align and its gradient of 3 x 4, sliced": Trial("roi_align", _small_pool, _small_pyramid, 1e-4),
    "gradient of 3 x 4, sliced": Trial("roi_align_gradient", _small_pool, _small_pyramid, 1e-4),
    "match of 3 x 1001 and 7": Trial(
        "match", lambda anchors, boxes, masks: match(anchors, boxes, **masks), _small_match
    ),
}
CHECKED = ODD | TRIALS


def poison(like) -> None:
    """Leaves freed device memory of the size of these arrays full of bits that are no numbers."""
    garbage = [jnp.full((leaf.nbytes,), -1, jnp.int32) for leaf in jax.tree.leaves(like)]
    jax.block_until_ready(garbage)


def check(name: str, *, seeds: int, repeats: int) -> dict:
    """The cells of a trial's row but for the first two."""
    trial = CHECKED[name]
    worst, poisoned, equal, together = 0.0, True, True, True
    draws = [jax.device_put(trial.inputs(np.random.default_rng(seed))) for seed in range(1, seeds + 1)]
    programs = []
    for names in ((trial.kernel,), ()):
        jax.clear_caches()
        with selection.only(names):
            programs.append(jax.jit(lambda *arguments: trial.function(*arguments)).lower(*draws[0]).compile())
    kernel, reference = programs
    for arguments in draws:
        right = jax.device_get(reference(*arguments))
        found = jax.device_get(kernel(*arguments))
        worst = max(worst, deviation(found, right, trial.tolerance))
        for _ in range(3):
            poison(found)
            poisoned &= deviation(jax.device_get(kernel(*arguments)), found, 0.0) == 0
    found = jax.device_get(kernel(*draws[0]))
    for _ in range(repeats):
        equal &= deviation(jax.device_get(kernel(*draws[0])), found, 0.0) == 0
    with selection.only((trial.kernel,)):
        program = jax.jit(lambda *arguments: among_others(trial.function, arguments)).lower(*draws[0]).compile()
    for _ in range(3):
        together &= deviation(jax.device_get(program(*draws[0])), found, trial.tolerance) <= 1
    return {"deviation": worst, "poisoned": poisoned, "equal": equal, "together": together}


def among_others(function, arguments):
    """A function between other operations, which XLA captures with it: its arguments go through a sort, a product, a
    reduction and a scan first, none of which changes a value.
    """
    floats = [leaf for leaf in jax.tree.leaves(arguments) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    flat = floats[0].reshape(-1)[:4096].astype(jnp.float32)
    product = jnp.outer(jnp.sort(flat), flat) @ flat
    total = jax.lax.scan(lambda total, x: (total + jnp.sin(x), None), 0.0, flat[:16])[0]
    nothing = jnp.where(jnp.isfinite(product.sum() + total), 0.0, 1.0)  # 0, which no compiler can know
    arguments = jax.tree.map(
        lambda x: x + nothing.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, arguments
    )
    return function(*arguments)


def one_process(names: list[str], environment: dict[str, str], seconds: float, options) -> tuple[dict, str | None]:
    """Results by trial up to the first that breaks the process; and how it broke, None if it did not."""
    command = [sys.executable, __file__, "--one", *names, *(["--smoke"] if options.smoke else [])]
    try:
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=seconds)
        printed, problem = done.stdout, None
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            problem = f"exit code {done.returncode}: {lines[-1][:160] if lines else 'no message'}"
    except subprocess.TimeoutExpired as error:
        printed, problem = (error.stdout or b"").decode(errors="replace"), f"no end within {seconds:g} s"
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith('{"trial"')]
    return {row.pop("trial"): row for row in rows}, problem


def report(name: str, buffers: str, row: dict | None, problem: str | None) -> bool:
    """Prints a trial's line; whether all is well."""
    if row is None:
        timing.line(name, buffers, problem, None, None, None)
        return False
    words = ["yes" if row[key] else "NO" for key in ("poisoned", "equal", "together")]
    timing.line(name, buffers, row["deviation"], *words)
    return row["deviation"] <= 1 and "NO" not in words


def main() -> None:
    """Prints a line for each trial, with and without command buffers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs="+", help="checks these in this process, a line of JSON each")
    parser.add_argument("--seconds", type=float, default=90.0, help="limit of a process")
    parser.add_argument("--dump", type=pathlib.Path, help="folder for Mosaic's dump of a kernel that broke")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    size = {"seeds": 1, "repeats": 2} if options.smoke else {"seeds": SEEDS, "repeats": REPEATS}
    if options.one:
        for name in options.one:
            print(json.dumps({"trial": name, **check(name, **size)}), flush=True)
        return
    print(timing.header("Kernels beside their references"))
    timing.head(*COLUMNS)
    fine = True
    flags = os.environ.get("XLA_FLAGS", "")
    for buffers in ("as built in",) if options.smoke else ("as built in", "off"):
        environment = {"XLA_FLAGS": f"{flags} {WITHOUT_BUFFERS}"} if buffers == "off" else {}
        names = list(ODD if options.smoke else CHECKED)
        while names:
            rows, problem = one_process(names, environment, options.seconds, options)
            for name, row in rows.items():
                fine &= report(name, buffers, row, None)
            names = [name for name in names if name not in rows]
            if names:
                broken, names = names[0], names[1:]
                fine &= report(broken, buffers, None, problem)
                if options.dump:
                    keep_dump(broken, environment, options)
    sys.exit(not fine)


def keep_dump(name: str, environment: dict[str, str], options) -> None:
    """Repeats a trial that broke, and leaves Mosaic's PTX and machine code in a folder of its name."""
    folder = options.dump / "".join(letter if letter.isalnum() else "_" for letter in name)
    folder.mkdir(parents=True, exist_ok=True)
    switches = {f"MOSAIC_GPU_DUMP_{stage}": "1" for stage in ("PTX", "PTXAS", "SASS", "MLIR_PASSES")}
    _, problem = one_process([name], environment | switches | {"MOSAIC_GPU_DUMP_TO": str(folder)}, 60.0, options)
    print(f"{name}, once more: {problem or 'no failure this time'}; see {folder.name}", flush=True)


if __name__ == "__main__":
    main()
