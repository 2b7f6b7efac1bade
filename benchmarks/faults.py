"""Kills a training run again and again, and compares where it ends with a run that nobody disturbed.

    python benchmarks/faults.py          # 20 kills, some minutes
    python benchmarks/faults.py --smoke  # one kill

The run is `main.py --mode train` of a small detector on the drawn data set. It is killed with SIGKILL, which nobody
can catch, after random times, and at least every third time while a checkpoint is being written; then the same command
is given again. At the end weights, momentum, guard and window have to be the same bit for bit, and the log to have
every row once. Exit code 1 if not.
"""

import argparse
import functools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.configs import shapes
from diou_jax.data import shapes as drawn
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.reporting.run_log import read_metrics

MAIN = pathlib.Path(__file__).resolve().parent.parent / "main.py"


def small_config(root: pathlib.Path, steps: int, every: int):
    """A detector whose step takes some tens of milliseconds on a CPU, its data, and a checkpoint every few steps."""
    config = shapes.get_config()
    drawn.ensure(root / "data")
    config.data.source, config.data.root = "coco", str(root / "data")
    config.resnets.width_per_group, config.resnets.stem_width = 4, 8
    config.fpn.dim = config.fast_rcnn.mlp_head_dim = 16
    config.train.scales, config.train.max_size = (64,), 64
    config.train.batch_size_per_im, config.train.rpn_batch_size_per_im = 16, 32
    config.train.rpn_pre_nms_top_n = config.train.rpn_post_nms_top_n = 32
    config.solver.max_iter, config.solver.steps = steps, (0, steps * 3 // 4)
    config.solver.scale_with_devices = False
    config.checkpoint.every, config.log.every = every, 5
    config.log.compilation_cache = str(root / "cache")
    config.log.report = False
    return config


def start(file: pathlib.Path, workdir: pathlib.Path, log) -> subprocess.Popen:
    """Starts the run, or resumes it."""
    command = [sys.executable, str(MAIN), "--config", str(file), "--workdir", str(workdir), "--mode", "train"]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=MAIN.parent)


def is_saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))


def last_row(workdir: pathlib.Path) -> int:
    """The step of the newest row of the log."""
    return max((row["step"] for row in read_metrics(workdir)), default=0) if list(workdir.glob("metrics.*")) else 0


def disturb(process: subprocess.Popen, workdir: pathlib.Path, draw: random.Random, *, in_a_save: bool) -> bool | None:
    """Kills the run some time after its next row of the log; whether during a save, None if the run ended first."""
    before = last_row(workdir)
    while process.poll() is None and last_row(workdir) <= before:
        time.sleep(0.01)
    wait = time.monotonic() + draw.uniform(0, 1.5)
    while process.poll() is None and (time.monotonic() < wait or (in_a_save and not is_saving(workdir))):
        time.sleep(0.0005)
    saving = is_saving(workdir)
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    return saving


def final_state(config, workdir: pathlib.Path):
    """The state that the run has left."""
    data = build.dataset(config, config.train.datasets)
    optimizer = build.make_optimizer(config, build.rule(config).schedule)
    detector = build.detector(config, len(data.class_names))
    first = functools.partial(create_state, optimizer=optimizer, loss_names=detector.loss_names)
    with Checkpoints(workdir, create=False) as checkpoints:
        return checkpoints.restore(jax.eval_shape(first, detector.network.variable_shapes()))


def rows(workdir: pathlib.Path) -> list[dict]:
    """The log without values that depend on the clock."""
    return [{name: row[name] for name in row if name != "images_per_second"} for row in read_metrics(workdir)]


def main() -> None:
    """Prints a line for each kill and its outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, help="folder for the runs; they are replaced")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    kills, steps = (1, 25) if options.smoke else (options.kills, options.steps)
    if options.smoke:
        drawn.COUNTS = {"train": 24, "val": 6}
    root = (options.root or pathlib.Path(tempfile.mkdtemp())).absolute()
    root.mkdir(parents=True, exist_ok=True)
    config = small_config(root, steps, options.every)
    file = root / "config.py"
    file.write_text(
        "import json\nfrom diou_jax.configs import base\n\n\ndef get_config():\n    config = base.get_config()\n"
        f"    config.update(json.loads({json.dumps(config.to_dict())!r}))\n    return config\n"
    )
    whole, killed = root / "whole", root / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    with (root / "log").open("w") as log:
        if start(file, whole, log).wait() != 0:
            raise SystemExit(f"the undisturbed run failed, see {root / 'log'}")
        print(f"undisturbed: {steps} steps in {time.monotonic() - began:.0f} s", flush=True)

        draw, done, in_saves, starts = random.Random(options.seed), 0, 0, 0
        while True:
            starts += 1
            process = start(file, killed, log)
            if done < kills:
                saving = disturb(process, killed, draw, in_a_save=done % 3 == 2)
                if saving is not None:
                    done, in_saves = done + 1, in_saves + saving
                    step = last_row(killed)
                    print(f"kill {done:3d} behind step {step}{', during a save' if saving else ''}", flush=True)
                    continue
            if process.wait() == 0:
                break
            raise SystemExit(f"start {starts} failed by itself, see {root / 'log'}")

    a, b = (jax.tree_util.tree_leaves_with_path(final_state(config, folder)) for folder in (whole, killed))
    different = [
        jax.tree_util.keystr(path)
        for (path, x), (_, y) in zip(a, b, strict=True)
        if np.asarray(x).tobytes() != np.asarray(y).tobytes()
    ]
    same_log = rows(whole) == rows(killed)
    damaged = len(list(killed.glob("checkpoints.damaged/*")))
    print(
        f"{done} kills, {in_saves} of them during a save, {starts} starts, {damaged} damaged checkpoints, "
        f"{time.monotonic() - began:.0f} s on {os.cpu_count()} cores\n"
        f"state identical bit for bit: {'yes' if not different else different[:5]}; log identical: {same_log}"
    )
    sys.exit(bool(different) or not same_log or done < kills)


if __name__ == "__main__":
    main()
