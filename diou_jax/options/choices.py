"""Chooses the options that a config leaves open (None), from the data, the weights to start from and the devices.

Every step of the rule sees the options that were given or chosen before it, so that a given option also influences
later choices. docs/own_data.md explains the rule.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diou_jax.configs import base
from diou_jax.data.buckets import round_up
from diou_jax.data.dataset import Dataset
from diou_jax.nested_config import flatten
from diou_jax.option_groups import NETWORK

# Options that a new run takes over from the weights it starts from. Whether it has masks, its dtype and the masking of
# padding are its own.
FROM_WEIGHTS = {*NETWORK, "resnets.freeze_at"} - {"model.mask_on", "dtype", "fpn.mask_padding"}
SMALL_BODY = {
    "resnets.blocks": (1, 1, 1, 1),
    "resnets.width_per_group": 16,
    "resnets.stem_width": 16,
    "resnets.stride_1x1": False,
    "resnets.freeze_at": 0,
    "resnets.use_gn": True,
    "group_norm.num_groups": 8,
    "fpn.dim": 48,
    "fpn.use_gn": False,
    "fast_rcnn.mlp_head_dim": 128,
}
LARGE_BODY = {"resnets.use_gn": True, "resnets.stride_1x1": False, "resnets.freeze_at": 0, "fpn.use_gn": True}
ENOUGH = 10  # number of boxes from which on the sizes of a class count
LEAST_BOX = 16  # desired side of the smaller boxes, in pixels at the training scale
SHORT = {"cpu": 224, "gpu": 800}  # the largest training scale


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of a data set.

    Attributes:
      images: number of images.
      short: median of their shorter sides, pixels.
      aspect: 95th percentile of longer over shorter side.
      both_ways: whether there are both landscape and portrait images.
      small: sqrt(area) of a box over its image's shorter side: the smallest 10th percentile of any class, since all
        classes count the same in AP; 0 without boxes.
      large: the same measure, the largest 95th percentile of any class.
      most: number of boxes in the fullest image.
    """

    images: int
    short: float
    aspect: float
    both_ways: bool
    small: float
    large: float
    most: int


@dataclasses.dataclass(frozen=True)
class Start:
    """The weights that a run starts from.

    Attributes:
      weights: their origin in words; empty for random weights.
      network: options of `FROM_WEIGHTS` that the weights require.
    """

    weights: str = ""
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Devices:
    """The number of devices of all processes, and their kind, "cpu" or "gpu"."""

    count: int
    kind: str


def measure(dataset: Dataset) -> Statistics:
    """The statistics of a data set that the rule uses."""
    records = dataset.records
    short, long = np.minimum(records.heights, records.widths), np.maximum(records.heights, records.widths)
    counts = np.diff(records.offsets)
    x1, y1, x2, y2 = records.boxes.astype(np.float64).T
    sides = np.sqrt((x2 - x1 + 1) * (y2 - y1 + 1)) / np.repeat(short, counts)
    of_class = [sides[records.classes == number] for number in np.unique(records.classes)]
    of_class = [some for some in of_class if len(some) >= ENOUGH] or [sides]
    small = min(np.percentile(some, 10) for some in of_class) if len(sides) else 0.0
    large = max(np.percentile(some, 95) for some in of_class) if len(sides) else 0.0
    return Statistics(
        images=len(records),
        short=float(np.median(short)),
        aspect=float(np.percentile(long / short, 95)),
        both_ways=bool((records.heights > records.widths).any() and (records.widths > records.heights).any()),
        small=float(small),
        large=float(large),
        most=int(counts.max(initial=0)),
    )


def is_open(config: ConfigDict) -> bool:
    """Whether a config has open options."""
    return any(value is None for value in flatten(config).values())


def resolve(config: ConfigDict, data: Statistics, *, start: Start, devices: Devices) -> tuple[ConfigDict, list[str]]:
    """A config without open options, and a line for each chosen one."""
    choices = Choices(config)
    for step in (_network, _scale, _anchors, _boxes, _sampling, _batch, _schedule, _reading):
        step(choices, data, start, devices)
    choices.set_defaults()
    return choices.config, choices.lines


def fill(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A config whose open options take the values of the same name in `values`, if these have one."""
    choices = Choices(config)
    for name, value in values.items():
        if value is not None:
            choices.set(name, value, "")
    return choices.config


class Choices:
    """A config whose open options are being chosen.

    Attributes:
      config: a copy of the config, to be filled.
      lines: a line for each chosen option.
    """

    def __init__(self, config: ConfigDict):
        """Starts from a copy of `config`."""
        self.config = config.copy_and_resolve_references()
        self.config.unlock()
        self.lines: list[str] = []

    def set(self, name: str, value: Any, why: str) -> None:
        """Gives an open option a value; other options stay."""
        *groups, option = name.split(".")
        group = self.config
        for key in groups:
            group = group.get(key, {})
        if option in group and group[option] is None:
            group[option] = tuple(value) if isinstance(value, list) else value
            if why:
                self.lines.append(f"chosen  {name} = {value!r}: {why}")

    def set_defaults(self) -> None:
        """Gives all options that are still open their defaults."""
        for name, value in flatten(base.get_config()).items():
            self.set(name, value, "")


def _network(choices, data, start, devices):
    config = choices.config
    for name, value in start.network.items():
        if name in FROM_WEIGHTS:
            choices.set(name, value, f"as {start.weights} has it" if name.startswith("resnets.") else "")
    if not start.weights:
        body: Mapping[str, Any] = SMALL_BODY if devices.kind == "cpu" else LARGE_BODY
        size = "a small backbone, for the CPU" if devices.kind == "cpu" else "R-50 unless named"
        given = config.resnets.use_bn
        norm = "batch norm is given" if given else "GroupNorm, for random weights"
        choices.set("resnets.use_gn", not given, f"{norm}; {size}")
        if given or config.fpn.use_bn:
            choices.set("fpn.use_gn", False, "")
        if config.resnets.blocks is None or devices.kind != "cpu":  # a named body has its own sizes
            for name, value in body.items():
                choices.set(name, value, "")
    for name, value in base.BODIES["r50"].items():
        choices.set(f"resnets.{name}", value, f"R-50, for {start.weights}" if start.weights else "")
    frozen = start.weights and not config.resnets.use_bn
    choices.set("resnets.use_gn", False, f"frozen affine layers, for {start.weights}" if frozen else "")
    choices.set("fpn.use_gn", config.resnets.use_gn and not config.fpn.use_bn, "")
    choices.set("fpn.use_bn", bool(config.resnets.use_bn) and not config.fpn.use_gn, "")
    from_scratch = config.resnets.use_gn or (config.resnets.use_bn and not start.weights)
    choices.set("fpn.mask_padding_train", from_scratch or bool(config.resnets.use_bn), "")
    choices.set("resnets.stride_1x1", not from_scratch, "")
    choices.set("resnets.freeze_at", 0 if from_scratch else 2, "")


def _scale(choices, data, start, devices):
    config, limit = choices.config, SHORT[devices.kind]
    wanted = data.short if not data.small else max(data.short, LEAST_BOX / data.small)
    scale = int(min(limit, max(64, wanted)) // 32 * 32)
    choices.set(
        "train.scales",
        (scale,),
        f"images have {data.short:.0f} pixels, median of the shorter side; 64 to {limit} on a {devices.kind.upper()}",
    )
    scale = max(config.train.scales)
    pixels = data.small * scale
    if 0 < pixels < LEAST_BOX / 2:
        choices.lines.append(
            f"chosen  at this scale one box in ten of a class is below {pixels:.1f} pixels and will hardly be found; "
            "larger train.scales and test.scale, or images cut into tiles, help"
        )
    aspect = min(max(data.aspect, 1.0), 2.0)
    choices.set(
        "train.max_size",
        round_up(math.ceil(scale * aspect), 32),
        f"images are up to {data.aspect:.2f} times as long as wide (95 in 100 of them)",
    )
    choices.set("test.scale", scale, "as in training")
    choices.set("test.max_size", config.train.max_size, "as in training")
    if devices.kind == "cpu" and data.both_ways:
        side = round_up(max(config.train.max_size, config.test.max_size), 32)
        choices.set("data.buckets", ((side, side),), "images are landscape and portrait; one shape compiles once")
    choices.set("data.buckets", (), "cut to the sizes of the images")


def _anchors(choices, data, start, devices):
    scale = max(choices.config.train.scales)
    small, large = data.small * scale, data.large * scale
    size = int(min(32, max(8, 4 * round(max(small, large / 24) / 4))))
    why = f"boxes measure {small:.0f} to {large:.0f} pixels, from the class of small boxes to that of large ones"
    choices.set("fpn.rpn_anchor_start_size", size, why)
    size = choices.config.fpn.rpn_anchor_start_size
    choices.set("fpn.roi_canonical_scale", 7 * size, "7 times the smallest anchor, as 224 is of 32")


def _boxes(choices, data, start, devices):
    why = f"the fullest image has {data.most} boxes"
    choices.set("data.max_boxes", min(512, max(8, round_up(data.most, 8))), why)
    choices.set("test.detections_per_im", max(100, round_up(3 * data.most // 2, 50)), why)


def _sampling(choices, data, start, devices):
    if devices.kind != "cpu":
        return
    found = choices.config.test.detections_per_im
    why = "fewer than on a GPU, for speed"
    choices.set("train.batch_size_per_im", min(512, max(48, round_up(2 * data.most, 16))), why)
    choices.set("train.fg_fraction", 0.5, why)
    choices.set("train.rpn_batch_size_per_im", 128, why)
    choices.set("train.rpn_pre_nms_top_n", max(256, 2 * data.most), why)
    choices.set("train.rpn_post_nms_top_n", max(800, 2 * data.most), why)
    choices.set("test.rpn_pre_nms_top_n", max(256, 2 * found), why)
    choices.set("test.rpn_post_nms_top_n", max(100, found), why)


def _batch(choices, data, start, devices):
    config, count = choices.config, devices.count
    most = 4 if devices.kind == "cpu" else 16
    wanted = max(1, min(8, most // count, max(1, data.images // count)))
    choices.set("train.ims_per_batch", wanted, f"{most} images over {count} device(s), at most 8 on each, no repeats")
    choices.set("num_gpus", count, "")
    choices.set("test.ims_per_batch", max(1, 8 // count) if devices.kind == "cpu" else 4, "")
    images = config.train.batch_size or config.train.ims_per_batch * count
    adam = devices.kind == "cpu"
    choices.set("solver.type", "Adam" if adam else "SGD", "for a short run" if adam else "as in the original")
    adam = config.solver.type != "SGD"
    choices.set("solver.bias_double_lr", not adam, "")
    choices.set("solver.clip_norm", 0.0 if start.weights and not adam else 10.0, "")
    if adam:
        rate, why = (0.0005, "Adam from weights") if start.weights else (0.002, "Adam from random weights")
    else:
        rate, why = 0.00125 * images * config.solver.iter_size, f"0.00125 times {images} images, as in the original"
    choices.set("solver.base_lr", rate, why)


def _schedule(choices, data, start, devices):
    config = choices.config
    images = (config.train.batch_size or config.train.ims_per_batch * devices.count) * config.solver.iter_size
    if devices.kind == "cpu":
        epochs, least, most = (10, 800, 2000) if start.weights else (17, 1200, 3500)
    else:
        epochs, least, most = (36, 24_000, 1_440_000) if start.weights else (108, 96_000, 4_320_000)
    seen = min(most, max(least, epochs * data.images))
    why = f"{epochs} times {data.images} images, at least {least} and at most {most} in all, {images} a step"
    choices.set("solver.max_iter", math.ceil(seen / images), why)
    last = config.solver.max_iter
    steps = (0, *sorted({max(1, last * 2 // 3), max(1, last * 8 // 9)}))
    choices.set("solver.steps", steps, "two thirds and eight ninths, as in the original")
    choices.set("solver.warm_up_iters", min(500, last // 20), "a twentieth of the steps, at most 500")
    choices.set("checkpoint.every", max(1, min(2500, last // 4)), "four in a run, at least one in 2500 steps")


def _reading(choices, data, start, devices):
    if devices.kind == "cpu":
        choices.set("data.threads", 1, "the CPU also trains")
