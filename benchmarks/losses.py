"""The box losses compared on real data: seeds, intervals, equal cost; and greedy against DIoU-NMS on the same weights.

    python benchmarks/losses.py --data FOLDER --out runs/losses --seeds 5
    python benchmarks/losses.py --data FOLDER --out runs/losses --seeds 5 --steps 800 --config.train.jitter='(0.5,1.5)'
    python benchmarks/losses.py --smoke                   # one loss and seed on a few drawn images

FOLDER is data for `configs/own.py` with a training and a validation set. Every training is `main.py` with that config
and the same options, whatever the loss. Three parts follow each other:

1. Tuning. The weight of each box loss is chosen once, by AP on a fifth of the training images that the tuning holds
   out, among the weights of `WEIGHTS`. The validation set has no part in it.
2. Losses. Each is trained with its weight on all training images, once for each seed. A seed is that of the weights, of
   the order of the images and of all draws, the same for every loss, so that differences are paired by seed.
3. Suppression. The detections of the DIoU runs by greedy NMS and by DIoU-NMS with several beta1, from the same weights.
   Differences are paired by image: the interval is from resampled validation images.

Whatever is finished is kept in the folder --out; the same command goes on after an interruption. The tables are printed
and written to OUT/losses.md, the numbers to OUT/losses.json, the picture to OUT/losses.png.
"""

import argparse
import contextlib
import copy
import dataclasses
import io
import json
import math
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.stats
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diou_jax.data import layouts, shapes
from diou_jax.reporting.run_log import read_metrics

MAIN = pathlib.Path(__file__).resolve().parent.parent / "main.py"

NAMES = {"smooth_l1": "smooth L1", "iou": "IoU", "giou": "GIoU", "diou": "DIoU", "ciou": "CIoU"}
# Around the original's weights: 1 for smooth L1 and 12 for the others, which are smaller per RoI.
WEIGHTS = {"smooth_l1": (0.5, 1.0, 2.0), **dict.fromkeys(("iou", "giou", "diou", "ciou"), (3.0, 6.0, 12.0))}
MEASURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
BETAS = (0.6, 0.8, 1.0, 1.5, 2.0)
SUPPRESSED = "diou"  # the loss whose runs are used for the third part
TARGET = 0.8  # AP50; the steps until it are a measure of speed
TUNING_SEED = 1000  # not among the seeds of the comparison
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
      part: "tuning" or "losses".
      loss: a name of `NAMES`.
      weight: weight of the box loss.
      seed: seed of everything random.
    """

    part: str
    loss: str
    weight: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.part}/{self.loss}_{self.weight:g}_seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """The settings that all trainings share, and how they are compared.

    Attributes:
      out: the folder of all results.
      data: options that name the data, by part.
      val: the json of the validation set.
      steps: number of updates of a training.
      seeds: number of seeds, which count from 0.
      options: more options of every training, ``--config.NAME=VALUE``.
      betas: values of beta1 of DIoU-NMS.
      draws: number of resampled sets of validation images.
    """

    out: pathlib.Path
    data: Mapping[str, tuple[str, ...]]
    val: str
    steps: int
    seeds: int
    options: tuple[str, ...] = ()
    betas: tuple[float, ...] = BETAS
    draws: int = 300

    def command(self, run: Run) -> list[str]:
        """The command of a training; a tenth of the steps lies between two evaluations."""
        return [
            *(sys.executable, str(MAIN), "--config", "own", "--workdir", str(self.out / run.name)),
            *("--mode", "train_and_eval", f"--config.rng_seed={run.seed}"),
            f"--config.model.loss_type={run.loss}",
            f"--config.model.loss_bbox_weight={run.weight}",
            f"--config.solver.max_iter={self.steps}",
            f"--config.test.every={max(self.steps // 10, 1)}",
            "--config.log.images=0",
            *self.data[run.part],
            *self.options,
        ]


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def train(study: Study, run: Run, core: int | None = None) -> dict:
    """The result of a training, from its file if it was made before: measures, `reached` and `seconds`.

    Args:
      study: what all trainings share.
      run: the training.
      core: the core to which it is bound; None: all.

    Raises:
      SystemExit: if it fails; its log lies beside its folder.
    """
    result, log = (study.out / f"{run.name}.{ending}" for ending in ("json", "log"))
    if result.exists():
        return json.loads(result.read_text())
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with log.open("a") as file:
        bind = None if core is None else lambda: os.sched_setaffinity(0, {core})
        code = subprocess.run(
            study.command(run), cwd=MAIN.parent, stdout=file, stderr=subprocess.STDOUT, preexec_fn=bind, check=False
        ).returncode
    if code:
        raise SystemExit(f"{run.name} ended with code {code}; {log} has its log")
    outcome = outcome_of(read_metrics(study.out / run.name)) | {"seconds": time.perf_counter() - begin}
    write(result, json.dumps(outcome | dataclasses.asdict(run), indent=1))
    print(f"{run.name}: AP {outcome['AP']:.3f}, {outcome['seconds']:.0f} s", flush=True)
    return outcome


def outcome_of(rows: Sequence[Mapping]) -> dict:
    """The last measures of a run by name, None without objects of the size, and the step that `reached` TARGET."""
    rows = [row for row in rows if "eval/AP" in row]
    reached = next((row["step"] for row in rows if (row["eval/AP50"] or 0) >= TARGET), None)
    return {name: rows[-1].get(f"eval/{name}") for name in MEASURES} | {"reached": reached}


def train_all(study: Study, runs: Sequence[Run], *, jobs: int) -> dict[Run, dict]:
    """The results of trainings, `jobs` of which run at a time, each on a core of its own if there are several."""
    cores: queue.Queue = queue.Queue()
    for number in range(jobs):
        cores.put(number if jobs > 1 and hasattr(os, "sched_setaffinity") else None)

    def one(run):
        core = cores.get()
        try:
            return train(study, run, core)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(runs, pool.map(one, runs), strict=True))


def hold_out(part: layouts.Part, folder: pathlib.Path) -> tuple[str, ...]:
    """Divides training images, one in five of which is held out, and gives the options that name both parts."""
    content = json.loads(pathlib.Path(part.annotations).read_text())
    held = {image["id"] for image in sorted(content["images"], key=lambda image: str(image["file_name"]))[::5]}
    options = []
    for name, inside in (("train", False), ("val", True)):
        images = [image for image in content["images"] if (image["id"] in held) == inside]
        objects = [one for one in content["annotations"] if (one["image_id"] in held) == inside]
        file = folder / f"{name}.json"
        write(file, json.dumps(content | {"images": images, "annotations": objects}))
        options += [f"--config.data.{name}_annotations={file}", f"--config.data.{name}_images={part.images}"]
    return tuple(options)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of values and half the width of its interval by Student's t; NaN for a single one."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), math.nan
    half = scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(half)


def compare(results: Mapping[Run, Mapping], losses: Sequence[str]) -> dict[str, dict]:
    """The interval of each measure and of the difference from the first loss, paired by seed, for each loss.

    Returns:
      By loss: a mean and half a width for each of `MEASURES`, None without objects of the size, for "difference" in AP,
      the standard deviation of AP over "seeds", the mean "reached" with the "count" of runs that got there, and the
      "weight".
    """
    by_loss = {
        loss: [found for _, found in sorted((run.seed, found) for run, found in results.items() if run.loss == loss)]
        for loss in losses
    }
    first, rows = by_loss[losses[0]], {}
    for loss, found in by_loss.items():
        values = {name: [one[name] for one in found] for name in MEASURES}
        reached = [one["reached"] for one in found if one["reached"] is not None]
        rows[loss] = {
            **{name: None if None in column else interval(column) for name, column in values.items()},
            "difference": interval([one["AP"] - base["AP"] for one, base in zip(found, first, strict=True)]),
            "seeds": float(np.std(values["AP"], ddof=1)) if len(found) > 1 else math.nan,
            "reached": float(np.mean(reached)) if reached else None,
            "count": len(reached),
            "weight": next(run.weight for run in results if run.loss == loss),
        }
    return rows


def resampled(annotations: str, results: str, draws: np.ndarray) -> np.ndarray:
    """AP over all images, then over each resampled set of images: float64 (1 + R,).

    Args:
      annotations: COCO json of the N images.
      results: COCO results of the same images.
      draws: int (R, N), rows of the images, sorted by id, of each set.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        for one in truth.dataset["annotations"]:
            one.setdefault("iscrowd", 0)
            one.setdefault("area", one["bbox"][2] * one["bbox"][3])
        found = json.loads(pathlib.Path(results).read_text())
        evaluation = COCOeval(truth, truth.loadRes(found) if found else COCO(), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        count, matches = len(evaluation.params.imgIds), evaluation.evalImgs
        aps = []
        for rows in [np.arange(count), *draws]:
            # An image that is drawn twice counts twice: its matches are listed twice, under numbers of its own.
            evaluation.evalImgs = [one for start in range(0, len(matches), count) for one in _of(matches, start, rows)]
            for params in (evaluation.params, evaluation._paramsEval):
                params.imgIds = list(range(count))
            evaluation.accumulate()
            precision = evaluation.eval["precision"]
            aps.append(precision[precision > -1].mean() if (precision > -1).any() else math.nan)
    return np.array(aps)


def _of(matches, start, rows):
    """Copies of the matches of a class in images `rows`, as accumulate asks for objects of their own."""
    return [copy.copy(matches[start + row]) for row in rows.tolist()]


def detect(workdir: pathlib.Path, folder: pathlib.Path, options: Sequence[str]) -> pathlib.Path:
    """The results file of a trained run with other options of its test, in a folder of its own."""
    results = folder / "bbox_val_results.json"
    if not results.exists():
        from diou_jax.checkpoint.checkpoints import Checkpoints
        from diou_jax.command.arguments import parse
        from diou_jax.compilation import prepare
        from diou_jax.evaluation.evaluate import Evaluator
        from diou_jax.options.open_options import settle
        from diou_jax.reporting.run_log import RunLog

        config = settle(parse(["--workdir", str(workdir), "--mode", "eval", *options]).config, str(workdir))
        prepare(config.log.compilation_cache)
        folder.mkdir(parents=True, exist_ok=True)
        with Checkpoints(str(workdir), create=False) as checkpoints, RunLog(str(folder)) as log:
            evaluator = Evaluator(config, str(folder), checkpoints.metadata()["class_names"])
            variables = checkpoints.restore_variables(evaluator.detector.network.variable_shapes())
            with contextlib.redirect_stdout(io.StringIO()):
                evaluator(variables, checkpoints.latest(), log)
    return results


def compare_suppression(study: Study, runs: Sequence[Run]) -> dict:
    """AP of greedy NMS and, for each beta1, the mean AP of DIoU-NMS less that, with an interval over images.

    Returns:
      "greedy": AP; "betas": for each beta1 AP, its difference and the ends of the difference's interval.
    """
    images = len(json.loads(pathlib.Path(study.val).read_text())["images"])
    rows = np.random.default_rng(0).integers(0, images, (study.draws, images))

    def aps(name, *options):
        files = [detect(study.out / run.name, study.out / "nms" / f"{run.name}_{name}", options) for run in runs]
        return np.mean([resampled(study.val, str(file), rows) for file in files], 0)

    greedy = aps("greedy", "--config.test.diou_nms.enabled=False")
    found = {}
    for beta in study.betas:
        ours = aps(f"beta{beta:g}", "--config.test.diou_nms.enabled=True", f"--config.test.diou_nms.beta1={beta}")
        ends = np.nanquantile(ours[1:] - greedy[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        found[f"{beta:g}"] = {"AP": float(ours[0]), "difference": float(ours[0] - greedy[0]), "ends": ends.tolist()}
    return {"greedy": float(greedy[0]), "betas": found}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _shown(pair, *, signed=False) -> str:
    if pair is None:
        return "–"
    mean, half = pair
    return f"{mean:+.3f}" * signed + f"{mean:.3f}" * (not signed) + ("" if math.isnan(half) else f" ± {half:.3f}")


def report(tuning: Mapping[Run, Mapping], rows: Mapping[str, Mapping], suppression: Mapping, *, seeds: int) -> str:
    """The three tables in Markdown."""
    first = next(iter(rows))
    tuned = [
        [NAMES[loss], *(f"{run.weight:g}: {found['AP']:.3f}" for run, found in tuning.items() if run.loss == loss)]
        for loss in rows
        if any(run.loss == loss for run in tuning)
    ]
    compared = [
        [
            *(NAMES[loss], f"{row['weight']:g}", *(_shown(row[name]) for name in MEASURES)),
            "" if loss == first else _shown(row["difference"], signed=True),
            "–" if math.isnan(row["seeds"]) else f"{row['seeds']:.3f}",
            "–" if row["reached"] is None else f"{row['reached']:.0f} ({row['count']} of {seeds})",
        ]
        for loss, row in rows.items()
    ]
    nms = [["greedy", f"{suppression['greedy']:.4f}", ""]] + [
        [
            f"DIoU-NMS, beta1 {beta}",
            f"{one['AP']:.4f}",
            "{:+.4f} ({:+.4f} to {:+.4f})".format(one["difference"], *one["ends"]),
        ]
        for beta, one in suppression["betas"].items()
    ]
    percent = f"{CONFIDENCE:.0%}"
    parts = [
        f"Losses, seeds: {seeds}; mean and {percent} interval by Student's t; differences are paired by seed:",
        table(
            [
                "loss",
                "weight",
                *MEASURES,
                f"AP less {NAMES[first]}'s",
                "deviation of AP over seeds",
                f"steps to AP50 {TARGET}",
            ],
            compared,
        ),
        f"Suppression, runs of {NAMES[SUPPRESSED]}; {percent} interval over images, paired by image:",
        table(["suppression", "AP", "AP less greedy's"], nms),
    ]
    if tuned:
        most = max(map(len, tuned))
        rows_ = [[*row, *[""] * (most - len(row))] for row in tuned]
        parts += [
            "Tuning, weight of the box loss: AP on held out training images, one seed:",
            table(["loss", *["weight: AP"] * (most - 1)], rows_),
        ]
    return "\n\n".join(parts) + "\n"


def write_plot(path: pathlib.Path, results: Mapping[Run, Mapping], rows: Mapping[str, Mapping], suppression) -> None:
    """Draws AP and AP75 of every run with means and intervals, and the difference between the kinds of suppression."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    for shift, name, color in ((-0.12, "AP", "#0072b2"), (0.12, "AP75", "#d55e00")):
        for place, loss in enumerate(rows):
            values = [found[name] for run, found in results.items() if run.loss == loss]
            left.plot([place + shift] * len(values), values, ".", color=color, alpha=0.4)
            mean, half = rows[loss][name]
            left.errorbar(
                place + shift,
                mean,
                yerr=None if math.isnan(half) else half,
                fmt="o",
                color=color,
                capsize=4,
                label=name if place == 0 else None,
            )
    left.set_xticks(range(len(rows)), [NAMES[loss] for loss in rows])
    left.set_title(f"by loss: each seed, mean and {CONFIDENCE:.0%} interval")
    left.legend()
    betas = suppression["betas"]
    differences = np.array([one["difference"] for one in betas.values()])
    ends = np.abs(np.array([one["ends"] for one in betas.values()]).T - differences)
    right.errorbar(range(len(betas)), differences, yerr=ends, fmt="o", color="#009e73", capsize=4)
    right.axhline(0, color="#999999", linewidth=0.8)
    right.set_xticks(range(len(betas)), list(betas))
    right.set(xlabel="beta1 of DIoU-NMS", ylabel="AP less that of greedy NMS", title="suppression, paired by image")
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
    draft = path.with_name(path.name + ".draft")
    figure.savefig(draft, format="png")
    os.replace(draft, path)


def run_study(study: Study, losses: Mapping[str, Sequence[float]], *, jobs: int) -> str:
    """All three parts; returns the tables, and writes them, the numbers and the picture.

    Args:
      study: what all trainings share.
      losses: the weights to try for each loss.
      jobs: number of trainings at a time.
    """
    candidates = [Run("tuning", loss, w, TUNING_SEED) for loss, ws in losses.items() if len(ws) > 1 for w in ws]
    tuning = train_all(study, candidates, jobs=jobs)
    best = {loss: weights[0] for loss, weights in losses.items()}
    for loss in {run.loss for run in tuning}:
        best[loss] = max((found["AP"], run.weight) for run, found in tuning.items() if run.loss == loss)[1]
    # Seed by seed, so that an interrupted study has whole pairs.
    runs = [Run("losses", loss, best[loss], seed) for seed in range(study.seeds) for loss in losses]
    results = train_all(study, runs, jobs=jobs)
    rows = compare(results, list(losses))
    last = [run for run in runs if run.loss == (SUPPRESSED if SUPPRESSED in losses else runs[-1].loss)]
    suppression = compare_suppression(study, last)
    text = report(tuning, rows, suppression, seeds=study.seeds)
    write(study.out / "losses.json", json.dumps({"losses": rows, "suppression": suppression}, indent=1))
    write_plot(study.out / "losses.png", results, rows, suppression)
    write(study.out / "losses.md", text)
    return text


SMOKE = (
    *("--config.resnets.width_per_group=4", "--config.resnets.stem_width=8", "--config.fpn.dim=16"),
    *("--config.resnets.blocks=(1,1,1,1)", "--config.resnets.use_gn=False", "--config.fpn.use_gn=False"),
    *("--config.fast_rcnn.roi_box_head=roi_2mlp_head", "--config.fast_rcnn.mlp_head_dim=16"),
    *("--config.train.scales=(64,)", "--config.train.max_size=64", "--config.test.scale=64"),
    *("--config.test.max_size=64", "--config.train.ims_per_batch=1"),
)


def main() -> None:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/losses"), help="folder of the results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="updates of each training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on one core")
    parser.add_argument("--draws", type=int, default=300, help="resampled sets of images")
    parser.add_argument("--smoke", action="store_true", help="one loss and seed on a few drawn images")
    given, options = parser.parse_known_args()
    for option in options:
        if not option.startswith("--config."):
            parser.error(f"unknown argument {option}; options of the trainings begin with --config.")
    if not (given.smoke or given.data):
        parser.error("--data FOLDER is needed")
    with contextlib.ExitStack() as stack:
        if given.smoke:
            given.out = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            given.data, given.seeds, given.steps, given.draws = str(given.out / "data"), 1, 2, 20
            shapes.COUNTS = {"train": 10, "val": 4}
            shapes.ensure(given.data)
            options += SMOKE
        losses = {"diou": (12.0,)} if given.smoke else WEIGHTS
        layout = layouts.find(given.data)
        if layout.parts["val"].share:
            parser.error(f"--data {given.data} has no validation set of its own")
        out = given.out.resolve()
        data = {
            "tuning": hold_out(layout.parts["train"], out / "tuning"),
            "losses": (f"--config.data.root={os.path.abspath(given.data)}",),
        }
        study = Study(
            out,
            data,
            layout.parts["val"].annotations,
            steps=given.steps,
            seeds=given.seeds,
            options=tuple(options),
            betas=BETAS[2:3] if given.smoke else BETAS,
            draws=given.draws,
        )
        print(run_study(study, losses, jobs=given.jobs))


if __name__ == "__main__":
    main()
