"""Exports a checkpoint as a file that detects without diou-jax."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from diou_jax.checkpoint.checkpoints import LAST, Checkpoints
from diou_jax.configs import base
from diou_jax.data.view import Size
from diou_jax.errors import UserError
from diou_jax.export import container, saved_model
from diou_jax.export.program import ImageRules, export_program, to_arrays
from diou_jax.files import printable, writable_file
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.reporting.run_log import print_line

# By the value of --format the function that writes programs, weights and metadata.
FORMATS = {"jax": container.write, "saved_model": saved_model.write}

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# The taps of an image's side are counted in float64, and the side is an int32.
LONGEST_SIDE = 2**16


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags of ``--mode export``.

    Attributes:
      sizes: heights and widths of images, a program for each.
      batch: images of a call.
      rgb: whether images are red, green, blue.
      any_size: whether images may be smaller.
      platforms: names in `PLATFORMS`.
      gpu_kernels: whether the kernels of this package are exported, too.
      format: a name in `FORMATS`.
    """

    sizes: tuple[Size, ...]
    batch: int = 1
    rgb: bool = False
    any_size: bool = False
    platforms: tuple[str, ...] = ("cpu", "cuda")
    gpu_kernels: bool = False
    format: str = "jax"


def request(flags: Mapping[str, Any]) -> Request:
    """The request of the command line's flags by name; raises UserError if they ask for the impossible."""
    if flags["batch"] < 1:
        raise UserError(f"--batch={flags['batch']}: a call needs at least one image")
    platforms = tuple(dict.fromkeys(flags["platforms"]))
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise UserError(f"--platforms={','.join(platforms)}: name some of {', '.join(PLATFORMS)}")
    if flags["gpu_kernels"] and platforms != ("cuda",):
        raise UserError("--gpu_kernels: a program with them runs on NVIDIA GPUs only; add --platforms=cuda")
    if flags["gpu_kernels"] and flags["format"] != "jax":
        raise UserError(f"--gpu_kernels: only JAX can run them; leave --format={flags['format']} out")
    return Request(
        sizes=tuple(dict.fromkeys(_size(text) for text in flags["image_size"])),
        batch=flags["batch"],
        rgb=flags["rgb"],
        any_size=flags["any_size"],
        platforms=platforms,
        gpu_kernels=flags["gpu_kernels"],
        format=flags["format"],
    )


def _size(text: str) -> Size:
    sides = text.lower().split("x")
    if len(sides) == 2 and all(side.isascii() and side.isdigit() and 0 < int(side) <= LONGEST_SIDE for side in sides):
        return int(sides[0]), int(sides[1])
    raise UserError(
        f"--image_size={text}: write HEIGHTxWIDTH, two numbers of pixels from 1 to {LONGEST_SIDE}, such as 480x640"
    )


def export_detector(
    config: ConfigDict,
    workdir: str | os.PathLike,
    output: str | os.PathLike,
    *,
    wanted: Request,
    checkpoint: str = LAST,
) -> None:
    """Writes a checkpoint of `workdir` and its programs to one file, see docs/export.md.

    Args:
      config: config of the network.
      workdir: the run's folder.
      output: the file.
      wanted: shapes and platforms of the programs, and the kind of file.
      checkpoint: the last one, the best one, or that of a step; see `Checkpoints`.

    Raises:
      UserError: if there is no checkpoint, the run has no detector that fits into one program, or `output` cannot be
        written.
    """
    began = time.perf_counter()
    writable_file(output, "--output")
    config = settle(config, workdir)
    base.check(config)
    _check(config)
    with Checkpoints(workdir, which=checkpoint, create=False) as checkpoints:
        metadata = checkpoints.metadata()
        detector = build.detector(config, len(metadata["class_names"]))
        variables = checkpoints.restore_variables(detector.network.variable_shapes(), averaged=config.test.ema)
        step = checkpoints.chosen()
    weights = to_arrays(detector.network.folded(variables))
    rules = ImageRules(
        looks=build.usual_pass(config),
        stride=config.fpn.coarsest_stride,
        batch=wanted.batch,
        rgb=wanted.rgb,
        any_size=wanted.any_size,
    )
    kinds: dict[str, Any] = {"platforms": wanted.platforms, "gpu_kernels": wanted.gpu_kernels}
    programs = {size: export_program(detector, rules, size, weights=weights, **kinds) for size in wanted.sizes}
    described = container.describe(
        programs, rules, class_names=metadata["class_names"], category_ids=metadata["category_ids"]
    )
    thresholds = {"score": config.test.score_thresh, "nms": config.test.nms, "mask": config.mrcnn.thresh_binarize}
    about = {"step": step, "dtype": config.dtype, "gpu_kernels": wanted.gpu_kernels, "thresholds": thresholds}
    FORMATS[wanted.format](output, programs, weights, metadata=described | about)
    print_line(
        f"{_list(wanted.sizes)} for {', '.join(wanted.platforms)} and {len(weights)} arrays of step {step} written to "
        f"{printable(output)}: {_bytes(output) / 1e6:.1f} MB, {time.perf_counter() - began:.1f} s"
    )


def _list(sizes: Sequence[Size]) -> str:
    return f"program{'s' if len(sizes) > 1 else ''} {', '.join('{}x{}'.format(*size) for size in sizes)}"


def _bytes(output):
    """The size of a file, or of all files of a folder."""
    path = pathlib.Path(output)
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def _check(config):
    """Raises UserError if the run has no detector, or one of several programs."""
    if config.model.rpn_only:
        raise UserError(
            "model.rpn_only=True: this network proposes boxes without classes and detects nothing, so that there is "
            "no detector to export; --mode eval writes its proposals"
        )
    if not config.model.faster_rcnn:
        raise UserError(
            "model.faster_rcnn=False: this network makes no proposals, and an exported program is given images only; "
            "export a run with model.faster_rcnn=True"
        )
    if config.test.bbox_aug.enabled or config.test.mask_aug.enabled:
        raise UserError(
            "test.bbox_aug.enabled or test.mask_aug.enabled: augmented testing resizes images on the host and takes "
            "several programs; export the usual pass with --config.test.bbox_aug.enabled=False "
            "--config.test.mask_aug.enabled=False"
        )
