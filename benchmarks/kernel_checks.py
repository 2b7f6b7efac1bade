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
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing

from diou_jax.kernels import selection
from diou_jax.kernels.match import match
from diou_jax.kernels.nms import nms
from diou_jax.kernels.roi_align import roi_align
from diou_jax.kernels.trial_process import started
from diou_jax.kernels.trials import (
    STRIDES,
    TRIALS,
    Trial,
    deviation,
    draw_clusters,
    draw_pyramid,
    programs,
    same_bits,
)

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


def _small_pyramid(resolution, dtype):
    def draw(random):
        size = {"height": 96, "width": 160, "channels": 128, "resolution": resolution}
        features, rois, gradient = draw_pyramid(random, 3, 5, **size)
        return [feature.astype(dtype) for feature in features], rois, gradient.astype(dtype)

    return draw


def _small_pool(features, rois, gradient):
    def pool(features):
        return roi_align(features, rois[:, 1:], resolution=gradient.shape[2], sampling_ratio=2, strides=STRIDES)

    pooled, backward = jax.vjp(pool, features)
    return pooled, backward(gradient[:, 1:])


def _small_match(random):
    (anchors, boxes), _ = draw_clusters(random, images=2, problems=1, count=1001)
    masks = {"eligible": random.random((3, 1001)) < 0.8, "valid": random.random((3, 7)) < 0.5}
    return anchors[0], boxes[0, :21].reshape(3, 7, 4), masks


# Trials whose inputs are slices, and whose counts fill no block; those of 14 bins are as of masks.
ODD = {
    "nms of 3 x 77, sliced": Trial("nms", lambda boxes, scores: nms(boxes, scores, 0.5, overlap="diou"), _small_nms),
    "nms of 3 x 77, beta 0.8": Trial(
        "nms", lambda boxes, scores: nms(boxes, scores, 0.5, overlap="diou", beta=0.8), _small_nms
    ),
    "roi_align and its gradient of 3 x 4, sliced": Trial("roi_align", _small_pool, _small_pyramid(7, np.float32), 1e-4),
    "roi_align of 14 bins": Trial("roi_align", _small_pool, _small_pyramid(14, jnp.bfloat16), 2**-6),
    "gradient of 3 x 4, sliced": Trial("roi_align_gradient", _small_pool, _small_pyramid(7, np.float32), 1e-4),
    "gradient of 14 bins": Trial("roi_align_gradient", _small_pool, _small_pyramid(14, jnp.bfloat16), 2**-6),
    "match of 3 x 1001 and 7": Trial(
        "match", lambda anchors, boxes, masks: match(anchors, boxes, **masks), _small_match
    ),
}
CHECKED = ODD | TRIALS


def poison(like) -> None:
    """Leaves freed device memory of the size of these arrays full of bits that are no numbers."""
    garbage = [jnp.full((leaf.nbytes,), -1, jnp.int32) for leaf in jax.tree.leaves(like)]
    jax.block_until_ready(garbage)


def check(trial: Trial, *, seeds: int, repeats: int) -> dict:
    """The cells of a trial's row after the first two; results stay on the device, where they are compared."""
    draws = [jax.device_put(trial.inputs(np.random.default_rng(seed))) for seed in range(1, seeds + 1)]
    kernel, reference = programs(trial, draws[0])
    with selection.only((trial.kernel,)):
        together = jax.jit(lambda *arguments: among_others(trial.function, arguments)).lower(*draws[0]).compile()
    worst, poisoned = 0.0, True
    for arguments in draws:
        found = kernel(*arguments)
        worst = max(worst, deviation(found, reference(*arguments), trial.tolerance))
        for _ in range(3):
            poison(found)
            poisoned &= same_bits(kernel(*arguments), found)
    found = kernel(*draws[0])
    return {
        "deviation": worst,
        "poisoned": poisoned,
        "equal": all(same_bits(kernel(*draws[0]), found) for _ in range(repeats)),
        "together": all(deviation(together(*draws[0]), found, trial.tolerance) <= 1 for _ in range(3)),
    }


def among_others(function, arguments):
    """A function between other operations, which XLA captures with it: its arguments go through a sort, a product, a
    reduction and a scan first, none of which changes a value.
    """
    floats = [leaf for leaf in jax.tree.leaves(arguments) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    flat = floats[0].reshape(-1)[:4096].astype(jnp.float32)
    product = jnp.outer(jnp.sort(flat), flat) @ flat
    total = jax.lax.scan(lambda total, x: (total + jnp.sin(x), None), 0.0, flat[:16])[0]
    nothing = jnp.where(jnp.isfinite(product.sum() + total), 0.0, 1.0)  # it is 0, but no compiler can know that
    arguments = jax.tree.map(
        lambda x: x + nothing.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, arguments
    )
    return function(*arguments)


def one_process(names: list[str], environment: dict[str, str], options) -> tuple[dict, str | None]:
    """Results by trial up to the first that breaks the process; and how it broke, None if it did not."""
    command = [sys.executable, __file__, "--one", *names, *(["--smoke"] if options.smoke else [])]
    found = {}
    with started(command, os.environ | environment) as process:
        for row in process.rows(options.seconds, time.monotonic() + options.seconds * len(names)):
            if row is None:
                return found, f"no end within {options.seconds:g} s"
            if "trial" in row:
                found[row.pop("trial")] = row
        process.wait(10)
    return found, process.how_it_died() if process.code else None


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
    parser.add_argument("--one", nargs="+", help="checks these in this process, two lines of JSON each")
    parser.add_argument("--output", type=int, default=1, help="with --one: file descriptor of the lines")
    parser.add_argument("--seconds", type=float, default=45.0, help="limit of a trial")
    parser.add_argument("--dump", type=pathlib.Path, help="folder for Mosaic's dump of a kernel that broke")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.one:
        size = {"seeds": 1, "repeats": 2} if options.smoke else {"seeds": SEEDS, "repeats": REPEATS}
        with os.fdopen(options.output, "w", buffering=1, closefd=False) as output:
            for name in options.one:
                print(json.dumps({"begins": name}), file=output)
                print(json.dumps({"trial": name, **check(CHECKED[name], **size)}), file=output)
        return
    print(timing.header("Kernels beside their references"))
    timing.head(*COLUMNS)
    flags = os.environ.get("XLA_FLAGS", "")
    fine = check_all("as built in", {}, options)
    if not options.smoke:
        fine &= check_all("off", {"XLA_FLAGS": f"{flags} {WITHOUT_BUFFERS}"}, options)
    sys.exit(not fine)


def check_all(buffers: str, environment: dict[str, str], options) -> bool:
    """Prints a line for each trial; whether all are well. A kernel's second trial that breaks leaves no dump."""
    fine, broken, problems = True, set(), []
    names = list(ODD if options.smoke else CHECKED)
    while names:
        rows, problem = one_process(names, environment, options)
        for name, row in rows.items():
            fine &= report(name, buffers, row, None)
        names = [name for name in names if name not in rows]
        if not names:
            break
        if problems[-2:] == [problem] * 2:  # a cause that breaks every kernel is not a fault of one of them
            report(", ".join(names), buffers, None, f"not tried, as three in a row broke alike: {problem}")
            return False
        name, *names = names
        fine &= report(name, buffers, None, problem)
        problems.append(problem)
        if options.dump and CHECKED[name].kernel not in broken:
            keep_dump(name, environment, options)
        broken.add(CHECKED[name].kernel)
    return fine


def keep_dump(name: str, environment: dict[str, str], options) -> None:
    """Repeats a trial that broke, and leaves Mosaic's PTX and machine code in a folder of its name."""
    folder = options.dump / "".join(letter if letter.isalnum() else "_" for letter in name)
    folder.mkdir(parents=True, exist_ok=True)
    switches = {f"MOSAIC_GPU_DUMP_{stage}": "1" for stage in ("PTX", "PTXAS", "SASS", "MLIR_PASSES")}
    _, problem = one_process([name], environment | switches | {"MOSAIC_GPU_DUMP_TO": str(folder)}, options)
    print(f"{name}, once more: {problem or 'no failure this time'}; see {folder.name}", flush=True)


if __name__ == "__main__":
    main()
