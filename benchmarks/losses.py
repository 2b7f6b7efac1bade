"""The box losses compared on real data: seeds, intervals, equal cost; and greedy against DIoU-NMS on the same weights.

    python benchmarks/losses.py --data FOLDER --out runs/losses --seeds 5
    python benchmarks/losses.py --data FOLDER --out runs/losses --seeds 5 --steps 800 --config.train.jitter='(0.5,1.5)'
    python benchmarks/losses.py --smoke                   # one loss and seed on a few drawn images

FOLDER is data for `configs/own.py` with a training and a validation set. Every training is `main.py` with that config
and the same options, whatever the loss. Three parts follow each other:

1. Tuning. The weight of each box loss is chosen once, by AP on a fifth of the training images that the tuning holds
   out, among the weights of `WEIGHTS`. The validation set has no part in it. A tuning takes half the updates.
2. Losses. Each is trained with its weight on all training images, once for each seed. A seed is that of the weights, of
   the order of the images and of all draws, the same for every loss, so that differences are paired by seed.
3. Suppression. The detections of the DIoU runs by greedy NMS and by DIoU-NMS with several beta1, from the same weights.
   Differences are paired by image: the interval is from resampled validation images.

Whatever is finished is kept in the folder --out; the same command goes on after an interruption. The tables are printed
and written to OUT/losses.md, the numbers to OUT/losses.json, the picture to OUT/losses.png.
"""

import contextlib
import copy
import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from study import (
    CONFIDENCE,
    MEASURES,
    TARGET,
    Run,
    Study,
    compare,
    make_parser,
    parse,
    save,
    shown,
    shown_reached,
    table,
    write,
)

from diou_jax.data import layouts

NAMES = {"smooth_l1": "smooth L1", "iou": "IoU", "giou": "GIoU", "diou": "DIoU", "ciou": "CIoU"}
# Around the original's weights: 1 for smooth L1 and 12 for the others, which are smaller per RoI.
WEIGHTS = {"smooth_l1": (0.5, 1.0, 2.0), **dict.fromkeys(("iou", "giou", "diou", "ciou"), (3.0, 6.0, 12.0))}
BETAS = (0.6, 0.8, 1.0, 1.5, 2.0)
SUPPRESSED = "diou"  # the loss whose runs are used for the third part
TUNING_SEED = 1000  # not among the seeds of the comparison


@dataclasses.dataclass(frozen=True)
class Losses:
    """The comparison of box losses.

    Attributes:
      study: the trainings' folder and common options.
      data: options that name the data, of "tuning" and "losses".
      val: the json of the validation set.
      steps: number of updates of a training; a tuning takes half of them.
      seeds: number of seeds, which count from 0.
      betas: values of beta1 of DIoU-NMS.
      draws: number of resampled sets of validation images.
    """

    study: Study
    data: Mapping[str, tuple[str, ...]]
    val: str
    steps: int
    seeds: int
    betas: tuple[float, ...] = BETAS
    draws: int = 300

    def run(self, part: str, loss: str, weight: float, seed: int) -> Run:
        """A training of "tuning" or of "losses"."""
        options = (f"--config.model.loss_type={loss}", f"--config.model.loss_bbox_weight={weight}", *self.data[part])
        steps = max(self.steps // 2, 1) if part == "tuning" else self.steps
        return Run(f"{part}/{loss}_{weight:g}_seed{seed}", seed, options, steps)


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


def compare_suppression(losses: Losses, runs: Sequence[Run]) -> dict:
    """AP of greedy NMS and, for each beta1, the mean AP of DIoU-NMS less that, with an interval over images.

    Returns:
      "greedy": AP; "betas": for each beta1 AP, its difference and the ends of the difference's interval.
    """
    images = len(json.loads(pathlib.Path(losses.val).read_text())["images"])
    rows = np.random.default_rng(0).integers(0, images, (losses.draws, images))

    def aps(name, *options):
        files = [
            detect(losses.study.out / run.name, losses.study.out / "nms" / f"{run.name}_{name}", options)
            for run in runs
        ]
        return np.mean([resampled(losses.val, str(file), rows) for file in files], 0)

    greedy = aps("greedy", "--config.test.diou_nms.enabled=False")
    found = {}
    for beta in losses.betas:
        ours = aps(f"beta{beta:g}", "--config.test.diou_nms.enabled=True", f"--config.test.diou_nms.beta1={beta}")
        ends = np.nanquantile(ours[1:] - greedy[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        found[f"{beta:g}"] = {"AP": float(ours[0]), "difference": float(ours[0] - greedy[0]), "ends": ends.tolist()}
    return {"greedy": float(greedy[0]), "betas": found}


def report(
    tuning: Mapping[str, Mapping[float, float]],
    weights: Mapping[str, float],
    rows: Mapping[str, Mapping],
    suppression: Mapping,
    *,
    seeds: int,
) -> str:
    """The three tables in Markdown.

    Args:
      tuning: AP by loss and weight; empty if nothing was tuned.
      weights: the weight of each loss.
      rows: result of `compare`, by loss.
      suppression: result of `compare_suppression`.
      seeds: number of seeds.
    """
    first = next(iter(rows))
    compared = [
        [
            *(NAMES[loss], f"{weights[loss]:g}", *(shown(row[name]) for name in MEASURES)),
            "" if loss == first else shown(row["difference"], signed=True),
            "–" if math.isnan(row["seeds"]) else f"{row['seeds']:.3f}",
            shown_reached(row, seeds),
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
    if tuning:
        most = max(map(len, tuning.values()))
        tuned = [
            [NAMES[loss], *(f"{weight:g}: {ap:.3f}" for weight, ap in aps.items()), *[""] * (most - len(aps))]
            for loss, aps in tuning.items()
        ]
        parts += [
            "Tuning, weight of the box loss: AP on held out training images, one seed:",
            table(["loss", *["weight: AP"] * most], tuned),
        ]
    return "\n\n".join(parts) + "\n"


def write_plot(path: pathlib.Path, results: Mapping[str, Sequence[Mapping]], rows: Mapping, suppression) -> None:
    """Draws AP and AP75 of every run with means and intervals, and the difference between the kinds of suppression."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    for shift, name, color in ((-0.12, "AP", "#0072b2"), (0.12, "AP75", "#d55e00")):
        for place, loss in enumerate(rows):
            values = [found[name] for found in results[loss]]
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
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)  # where it covers no value
    betas = suppression["betas"]
    differences = np.array([one["difference"] for one in betas.values()])
    ends = np.abs(np.array([one["ends"] for one in betas.values()]).T - differences)
    right.errorbar(range(len(betas)), differences, yerr=ends, fmt="o", color="#009e73", capsize=4)
    right.axhline(0, color="#999999", linewidth=0.8)
    right.set_xticks(range(len(betas)), list(betas))
    right.set(xlabel="beta1 of DIoU-NMS", ylabel="AP less that of greedy NMS", title="suppression, paired by image")
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
    save(figure, path)


def run_all(losses: Losses, candidates: Mapping[str, Sequence[float]]) -> str:
    """All three parts; returns the tables, and writes them, the numbers and the picture.

    Args:
      losses: the comparison.
      candidates: the weights to try for each loss; a single one is taken untried.
    """
    study, seeds = losses.study, range(losses.seeds)
    tried = {
        (loss, weight): losses.run("tuning", loss, weight, TUNING_SEED)
        for loss, weights in candidates.items()
        if len(weights) > 1
        for weight in weights
    }
    found = study.train_all(list(tried.values()))
    tuning: dict[str, dict[float, float]] = {}
    for (loss, weight), run in tried.items():
        tuning.setdefault(loss, {})[weight] = found[run]["AP"]
    best = {loss: weights[0] for loss, weights in candidates.items()}
    best |= {loss: max(aps, key=lambda weight: (aps[weight], weight)) for loss, aps in tuning.items()}
    # Seed by seed, so that an interrupted study has whole pairs.
    runs = {(loss, seed): losses.run("losses", loss, best[loss], seed) for seed in seeds for loss in candidates}
    found = study.train_all(list(runs.values()))
    results = {loss: [found[runs[loss, seed]] for seed in seeds] for loss in candidates}
    rows = compare(results)
    kind = SUPPRESSED if SUPPRESSED in candidates else next(iter(candidates))
    suppression = compare_suppression(losses, [runs[kind, seed] for seed in seeds])
    text = report(tuning, best, rows, suppression, seeds=losses.seeds)
    numbers = {"weights": best, "tuning": tuning, "losses": rows, "suppression": suppression}
    write(study.out / "losses.json", json.dumps(numbers, indent=1))
    write_plot(study.out / "losses.png", results, rows, suppression)
    write(study.out / "losses.md", text)
    return text


def main() -> None:
    """Runs the missing trainings and prints the tables."""
    parser = make_parser(__doc__, "runs/losses")
    parser.add_argument("--draws", type=int, default=300, help="resampled sets of images")
    with contextlib.ExitStack() as stack:
        given, options = parse(parser, stack)
        layout = layouts.find(given.data)
        if layout.parts["val"].share:
            parser.error(f"--data {given.data} has no validation set of its own")
        losses = Losses(
            Study(given.out, options, given.jobs),
            {
                "tuning": hold_out(layout.parts["train"], given.out / "tuning"),
                "losses": (f"--config.data.root={os.path.abspath(given.data)}",),
            },
            layout.parts["val"].annotations,
            steps=given.steps,
            seeds=given.seeds,
            betas=BETAS[2:3] if given.smoke else BETAS,
            draws=20 if given.smoke else given.draws,
        )
        print(run_all(losses, {"diou": (12.0,)} if given.smoke else WEIGHTS))


if __name__ == "__main__":
    main()
