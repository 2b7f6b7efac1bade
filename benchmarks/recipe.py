"""The parts of the modern recipe (docs/recipe.md) on real data: each alone and all together against the defaults.

    python benchmarks/recipe.py --data FOLDER --out runs/recipe --seeds 5 --steps 1000 --jobs 2
    python benchmarks/recipe.py --data FOLDER --out runs/recipe --parts 'large-scale jitter,EMA'
    python benchmarks/recipe.py --data COCO128 --out runs/one --one_class    # all classes as one
    python benchmarks/recipe.py --smoke                    # one part and one seed on a few drawn images

FOLDER is data for `configs/own.py`. Every training is `main.py` with that config from random weights, with the same
number of updates and images, and a part's options. A seed is that of the weights, of the order of the images and of all
draws, the same for every part, so that differences are paired by seed.

Whatever is finished is kept in the folder --out; the same command goes on after an interruption. The table is printed
and written to OUT/recipe.md, the numbers to OUT/recipe.json, the picture to OUT/recipe.png.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

from study import CONFIDENCE, TARGET, Run, Study, compare, make_parser, parse, save, shown, shown_reached, table, write

from diou_jax.data import layouts

BASELINE = "defaults"
ONE_CLASS = {"id": 1, "name": "object"}
ALL = "all together"
# Channels of these convolutions for the small network that configs/own.py chooses on a CPU.
HEAD = 32


def parts(scale: int, longest: int) -> dict[str, tuple[str, ...]]:
    """The options of each part.

    Args:
      scale: `train.scales` of the defaults, pixels.
      longest: their `train.max_size`, pixels.
    """
    side = round(math.sqrt(scale * longest) / 32) * 32  # a square of about the area of the default input
    found = {
        "multi-scale": (
            f"train.scales=({scale - 32},{scale},{scale + 32})",
            f"train.max_size={longest * (scale + 32) // scale}",
        ),
        "large-scale jitter": ("train.jitter=(0.1,2.0)", f"train.jitter_size={side}"),
        "IoU crop": ("train.iou_crop=0.5",),
        "photometric jitter": ("train.photometric=0.5",),
        "repeat factors": ("data.repeat_threshold=1.0",),
        "cosine": ("solver.lr_policy=cosine",),
        "AdamW": ("solver.type=AdamW", "solver.weight_decay=0.05"),
        "EMA": ("solver.ema_decay=0.99",),
        "neck and heads of torchvision's v2, GroupNorm": (
            *("fpn.use_gn=True", "fpn.rpn_num_convs=2"),
            *("fast_rcnn.roi_box_head=roi_Xconv1fc_gn_head", f"fast_rcnn.conv_head_dim={HEAD}"),
        ),
        "the same, batch norm everywhere": (
            *("resnets.use_bn=True", "fpn.use_bn=True", "fpn.rpn_num_convs=2"),
            *("fast_rcnn.roi_box_head=roi_Xconv1fc_bn_head", f"fast_rcnn.conv_head_dim={HEAD}"),
        ),
    }
    # Jitter takes the place of several scales, and a layer has one norm.
    together = [name for name in found if name not in ("multi-scale", "the same, batch norm everywhere")]
    found[ALL] = tuple(option for name in together for option in found[name])
    return {BASELINE: ()} | {name: tuple(f"--config.{option}" for option in options) for name, options in found.items()}


def name_of(part: str) -> str:
    """The name of a part in names of folders."""
    return "".join(letter if letter.isalnum() else "_" for letter in part.lower())


def with_one_class(root: str, out: pathlib.Path) -> tuple[str, ...]:
    """The options of the data below `root` with all its classes as one; the new annotation files are written to `out`.

    Raises:
      UserError: if no data is found.
    """
    options: list[str] = []
    found = layouts.find(root).parts
    # If one json is divided, both parts name it, and the new json is divided as well.
    for name in ("train",) if found["val"].share else ("train", "val"):
        part = found[name]
        content = json.loads(pathlib.Path(part.annotations).read_text(encoding="utf-8"))
        content["categories"] = [ONE_CLASS]
        content["annotations"] = [one | {"category_id": ONE_CLASS["id"]} for one in content["annotations"]]
        file = out / f"{name}.json"
        write(file, json.dumps(content))
        options += [f"--config.data.{name}_annotations={file}", f"--config.data.{name}_images={part.images}"]
    return tuple(options)


def report(rows: Mapping[str, Mapping], *, seeds: int, steps: int) -> str:
    """The table in Markdown."""
    base = rows[BASELINE]["rate"]
    lines = [
        [
            *(name, *(shown(row[measure]) for measure in ("AP", "AP50", "AP75"))),
            "" if name == BASELINE else shown(row["difference"], signed=True),
            shown_reached(row, seeds),
            "–" if not (base and row["rate"]) else f"{base / row['rate']:.2f}",
        ]
        for name, row in rows.items()
    ]
    head = [
        "",
        "AP",
        "AP50",
        "AP75",
        f"AP less that of the {BASELINE}",
        f"steps to AP50 {TARGET}",
        "time of an update, relative",
    ]
    said = f"{steps} updates, seeds: {seeds}; mean and {CONFIDENCE:.0%} interval by Student's t, paired by seed:"
    return f"{said}\n\n{table(head, lines)}\n"


def write_plot(path: pathlib.Path, results: Mapping[str, Sequence[Mapping]], rows: Mapping[str, Mapping]) -> None:
    """Draws the difference in AP of each part from the defaults: each seed, mean and interval."""
    from matplotlib.figure import Figure

    names = [name for name in rows if name != BASELINE]
    figure = Figure(figsize=(8, 1 + 0.42 * len(names)), layout="constrained", dpi=110)
    axes = figure.subplots()
    for place, name in enumerate(names):
        pairs = zip(results[name], results[BASELINE], strict=True)
        differences = [one["AP"] - base["AP"] for one, base in pairs]
        axes.plot(differences, [place] * len(differences), ".", color="#0072b2", alpha=0.4)
        mean, half = rows[name]["difference"]
        axes.errorbar(mean, place, xerr=None if math.isnan(half) else half, fmt="o", color="#0072b2", capsize=4)
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=f"AP less that of the {BASELINE}, each seed, mean and {CONFIDENCE:.0%} interval")
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def run_all(study: Study, chosen: Mapping[str, tuple[str, ...]], *, seeds: int, steps: int) -> str:
    """Runs the missing trainings; returns the table, and writes it, the numbers and the picture.

    Args:
      study: the trainings' folder and common options.
      chosen: the options of each part, the defaults first.
      seeds: number of seeds, which count from 0.
      steps: number of updates of a training.
    """
    # Seed by seed, so that an interrupted study has whole pairs.
    runs = {
        (name, seed): Run(f"{name_of(name)}_seed{seed}", seed, options, steps)
        for seed in range(seeds)
        for name, options in chosen.items()
    }
    found = study.train_all(list(runs.values()))
    results = {name: [found[runs[name, seed]] for seed in range(seeds)] for name in chosen}
    rows = compare(results)
    text = report(rows, seeds=seeds, steps=steps)
    write(study.out / "recipe.json", json.dumps(rows, indent=1))
    write_plot(study.out / "recipe.png", results, rows)
    write(study.out / "recipe.md", text)
    return text


def main() -> None:
    """Runs the missing trainings and prints the table."""
    parser = make_parser(__doc__, "runs/recipe")
    parser.add_argument("--scale", type=int, default=224, help="train.scales and test.scale of the defaults")
    parser.add_argument("--longest", type=int, default=320, help="train.max_size and test.max_size of the defaults")
    parser.add_argument("--one_class", action="store_true", help="all classes of the data as one")
    parser.add_argument("--parts", help="names of parts, divided by commas; default: all")
    with contextlib.ExitStack() as stack:
        given, options = parse(parser, stack)
        if given.smoke:
            given.scale, given.longest, given.parts = 64, 64, "EMA"
        known = parts(given.scale, given.longest)
        names = [BASELINE, *(given.parts.split(",") if given.parts else list(known)[1:])]
        if unknown := [name for name in names if name not in known]:
            parser.error(f"--parts {','.join(unknown)}: there are {', '.join(list(known)[1:])}")
        size = (
            *(f"--config.train.scales=({given.scale},)", f"--config.train.max_size={given.longest}"),
            *(f"--config.test.scale={given.scale}", f"--config.test.max_size={given.longest}"),
        )
        data = (f"--config.data.root={os.path.abspath(given.data)}",)
        if given.one_class:
            data += with_one_class(os.path.abspath(given.data), given.out / "one_class")
        study = Study(given.out, (*data, *size, *options), given.jobs, evaluations=4)
        print(run_all(study, {name: known[name] for name in names}, seeds=given.seeds, steps=given.steps))


if __name__ == "__main__":
    main()
