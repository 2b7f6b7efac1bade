"""Runs trainings of `main.py`, keeps their results, and compares these with differences paired by seed.

`losses.py` and `recipe.py` are two such studies. Every training is `main.py --config own` on the same data. Whatever is
finished is kept in the folder of the study; the same command goes on after an interruption.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.stats

from diou_jax.data import shapes
from diou_jax.files import replacing
from diou_jax.reporting.run_log import read_metrics

MAIN = pathlib.Path(__file__).resolve().parent.parent / "main.py"
MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TARGET = 0.8  # an AP50; the number of steps until a run reaches it measures the speed of training
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
      name: name of its folder, below that of the study.
      seed: seed of everything random.
      options: its options, ``--config.NAME=VALUE``.
      steps: number of updates.
    """

    name: str
    seed: int
    options: tuple[str, ...]
    steps: int


@dataclasses.dataclass(frozen=True)
class Study:
    """The trainings' folder and options.

    Attributes:
      out: the folder of all results.
      options: options of every training, ``--config.NAME=VALUE``; those of a run come after them.
      jobs: number of trainings at a time, each on a core of its own if there are several.
      evaluations: number of evaluations of a training.
    """

    out: pathlib.Path
    options: tuple[str, ...] = ()
    jobs: int = 1
    evaluations: int = 10

    def command(self, run: Run) -> list[str]:
        """The command of a training."""
        return [
            *(sys.executable, str(MAIN), "--config", "own", "--workdir", str(self.out / run.name)),
            *("--mode", "train_and_eval", f"--config.rng_seed={run.seed}"),
            f"--config.solver.max_iter={run.steps}",
            f"--config.test.every={max(run.steps // self.evaluations, 1)}",
            *("--config.log.images=0", "--config.log.report=False", "--config.test.compare_nms=False"),
            *self.options,
            *run.options,
        ]

    def train(self, run: Run, core: int | None = None) -> dict:
        """The result of a training, its `outcome`; one that is finished is not repeated.

        Args:
          run: the training.
          core: the core to which it is bound; None: all.

        Raises:
          SystemExit: if it fails; its log lies beside its folder.
        """
        result, log = (self.out / f"{run.name}.{ending}" for ending in ("json", "log"))
        command = self.command(run)
        if not result.exists():
            log.parent.mkdir(parents=True, exist_ok=True)
            begin = time.perf_counter()
            with log.open("a") as file:
                bind = None if core is None else lambda: os.sched_setaffinity(0, {core})
                code = subprocess.run(
                    command, cwd=MAIN.parent, stdout=file, stderr=subprocess.STDOUT, preexec_fn=bind, check=False
                ).returncode
            if code:
                raise SystemExit(f"{run.name} ended with code {code}; {log} has its log")
            write(result, json.dumps({"command": command[2:]}, indent=1))
            found, seconds = outcome(read_metrics(self.out / run.name)), time.perf_counter() - begin
            print(f"{run.name}: AP {found['AP']:.3f}, {seconds:.0f} s", flush=True)
        if json.loads(result.read_text())["command"] != command[2:]:
            raise SystemExit(f"{result} is from another command; choose another --out or remove it with its folder")
        return outcome(read_metrics(self.out / run.name))

    def train_all(self, runs: Sequence[Run]) -> dict[Run, dict]:
        """The results of trainings, `jobs` of which run at a time."""
        cores: queue.Queue = queue.Queue()
        for number in range(self.jobs):
            cores.put(number if self.jobs > 1 and hasattr(os, "sched_setaffinity") else None)

        def one(run):
            core = cores.get()
            try:
                return self.train(run, core)
            finally:
                cores.put(core)

        with ThreadPoolExecutor(self.jobs) as pool:
            return dict(zip(runs, pool.map(one, runs), strict=True))


def outcome(rows: Iterable[Mapping]) -> dict:
    """The last measures of a run by name, None without objects of the size; `reached` and `rate`.

    `reached` is the step of an AP50 of TARGET, `rate` the median of images/s, which a pause does not change.

    AP50 is taken as linear between two evaluations, and as 0 before the first update. `reached` is None if no
    evaluation found as much.
    """
    rows = list(rows)
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    rows = [row for row in rows if "eval/AP" in row]
    before, reached = (0, 0.0), None
    for row in rows:
        step, ap50 = row["step"], row["eval/AP50"] or 0.0
        if ap50 >= TARGET:
            reached = before[0] + (step - before[0]) * (TARGET - before[1]) / (ap50 - before[1])
            break
        before = step, ap50
    last = {name: rows[-1].get(f"eval/{name}") for name in MEASURES}
    return last | {"reached": reached, "rate": float(np.median(rates)) if rates else None}


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of values and half the width of its interval by Student's t; NaN for a single one."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), math.nan
    half = scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(half)


def compare(results: Mapping[str, Sequence[Mapping]]) -> dict[str, dict]:
    """The interval of each measure and of the difference from the first entry, paired by seed.

    Args:
      results: results of `Study.train` in the order of the seeds, by name; the others are compared with the first.

    Returns:
      By name: a mean and half a width for each of `MEASURES`, None without objects of the size, for "difference" in AP,
      the standard deviation of AP over "seeds", the mean "reached" with the "count" of runs that got there, and the
      mean "rate", None if it is unknown.
    """
    first, rows = next(iter(results.values())), {}
    for name, found in results.items():
        values = {measure: [one[measure] for one in found] for measure in MEASURES}
        reached = [one["reached"] for one in found if one["reached"] is not None]
        rows[name] = {
            **{measure: None if None in column else interval(column) for measure, column in values.items()},
            "difference": interval([one["AP"] - base["AP"] for one, base in zip(found, first, strict=True)]),
            "seeds": float(np.std(values["AP"], ddof=1)) if len(found) > 1 else math.nan,
            "reached": float(np.mean(reached)) if reached else None,
            "count": len(reached),
            "rate": None if None in (rates := [one["rate"] for one in found]) else float(np.mean(rates)),
        }
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def shown(pair: tuple[float, float] | None, *, signed: bool = False) -> str:
    """A mean and half the width of its interval as text; a dash for None."""
    if pair is None:
        return "–"
    mean, half = pair
    return f"{mean:+.3f}" * signed + f"{mean:.3f}" * (not signed) + ("" if math.isnan(half) else f" ± {half:.3f}")


def shown_reached(row: Mapping, seeds: int) -> str:
    """The mean of the steps until `TARGET`, and how many seeds got there, as text."""
    return "–" if row["reached"] is None else f"{row['reached']:.0f} ({row['count']} of {seeds})"


def save(figure, path: pathlib.Path) -> None:
    """Writes a figure of matplotlib as a PNG, as a whole or not at all."""
    with replacing(path) as draft:
        figure.savefig(draft, format="png")


def make_parser(description: str, out: str) -> argparse.ArgumentParser:
    """A parser of the arguments that all studies have; `out` is the default folder of the results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out), help="folder of the results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="updates of each training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on one core")
    parser.add_argument("--smoke", action="store_true", help="one seed and two updates on a few drawn images")
    return parser


def parse(parser: argparse.ArgumentParser, stack: contextlib.ExitStack) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """The arguments, and the options of all trainings; --smoke draws the data into a folder that `stack` removes."""
    given, options = parser.parse_known_args()
    for option in options:
        if not option.startswith("--config."):
            parser.error(f"unknown argument {option}; options of the trainings begin with --config.")
    if not (given.smoke or given.data):
        parser.error("--data FOLDER is needed")
    if given.smoke:
        given.out = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        given.data, given.seeds, given.steps = str(given.out / "data"), 1, 2
        shapes.COUNTS = {"train": 10, "val": 4}
        shapes.ensure(given.data)
        options = [*SMOKE, *options]
    given.out = given.out.resolve()
    return given, tuple(options)


SMOKE = (
    *("--config.resnets.width_per_group=4", "--config.resnets.stem_width=8", "--config.fpn.dim=16"),
    *("--config.resnets.blocks=(1,1,1,1)", "--config.resnets.use_gn=False", "--config.fpn.use_gn=False"),
    *("--config.fast_rcnn.roi_box_head=roi_2mlp_head", "--config.fast_rcnn.mlp_head_dim=16"),
    *("--config.train.scales=(64,)", "--config.train.max_size=64", "--config.test.scale=64"),
    *("--config.test.max_size=64", "--config.train.ims_per_batch=1"),
)
