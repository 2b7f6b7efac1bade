"""Recognises weight files of other repositories by their content, and gives their tensors the original's names."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diou_jax.detection.preprocess import PIXEL_MEANS
from diou_jax.errors import UserError
from diou_jax.weights import detectron, files, imagenet, torchvision
from diou_jax.weights.original import fit, misfit, original_tensors
from diou_jax.weights.record import Record

BODY = "Conv_Body.conv_body."
STEM = "Conv_Body.conv_body.res1.conv1.weight"
RPN = "RPN.FPN_RPN_conv.weight"
MASKS = "Mask_Outs.classify.weight"
CLASSIFIER = "Box_Outs.cls_score.weight"
STATISTICS = "Conv_Body.conv_body.res1.bn1.running_var"
# Options that weights depend on and that neither their names nor their shapes show.
UNSEEN = ("model.box_convention", "resnets.stride_1x1", "pixel_means", "batch_norm.epsilon")


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """A weight file under the original's names.

    Attributes:
      kind: the recognised kind of file, in words.
      tensors: arrays by the original's names.
      unused: names in the file of tensors that no detector here has.
      step: number of updates done, or None if unknown.
      optimizer: torch's state of the optimiser, or None.
      style: convention of the images, and for a detector of its boxes: "caffe" or "torchvision"; None if unknown.
      record: the network's options and classes, if the file has them.
      notes: lines for the report on how the file was read.
    """

    kind: str
    tensors: dict[str, np.ndarray]
    unused: tuple[str, ...]
    step: int | None = None
    optimizer: Mapping[str, Any] | None = None
    style: str | None = None
    record: Record = dataclasses.field(default_factory=Record)
    notes: tuple[str, ...] = ()

    @property
    def is_detector(self) -> bool:
        """Whether the file holds more than a backbone."""
        return CLASSIFIER in self.tensors or RPN in self.tensors

    @property
    def has_masks(self) -> bool:
        """Whether the file holds a mask head."""
        return MASKS in self.tensors

    @property
    def num_classes(self) -> int | None:
        """K of a detector, None for a backbone or an RPN alone."""
        rows = self.tensors[CLASSIFIER].shape[:1] if CLASSIFIER in self.tensors else ()
        return rows[0] if rows else None

    @property
    def config(self) -> str | None:
        """The argument of ``--config`` for torchvision's detectors, None for other files."""
        if not (self.is_detector and self.style == "torchvision"):
            return None
        return "configs/torchvision.py:r50_bn" if STATISTICS in self.tensors else "configs/torchvision.py"


def read_source(path: str | os.PathLike, *, imagenet_style: str = "auto", batch_norm: bool = False) -> WeightSource:
    """Recognises a file by the names in it.

    Args:
      path: a file that `diou_jax.weights.files` reads.
      imagenet_style: "caffe", "torchvision", or "auto" to recognise the style of an ImageNet ResNet by its statistics.
      batch_norm: whether the batch norm of an ImageNet ResNet stays as it is, for a backbone whose batch norm learns;
        False folds it into frozen scales and biases.

    Raises:
      UserError: if the file cannot be read or is of no kind that can be imported, or with "auto" if its statistics do
        not tell its style.
    """
    file = files.read(path)
    names = file.tensors.keys()
    if any(name.startswith("Conv_Body.") for name in names):
        # The original counts steps from 0, and saves after the update.
        step = None if file.step is None else file.step + 1
        kind = "an exported checkpoint" if file.record.options else "a checkpoint of the original"
        source = WeightSource(kind, dict(file.tensors), (), step, file.optimizer, record=file.record)
        named = len(file.record.class_names)
        if named and source.num_classes not in (None, named):
            raise UserError(f"{path}: its scores are of {source.num_classes} classes, its record names {named}")
        return source
    if detectron.is_detectron(names):
        tensors, unused = detectron.to_original(file.tensors)
        return WeightSource("Detectron's blobs", tensors, tuple(unused))
    if imagenet.is_imagenet(names):
        style = imagenet.style(file.tensors) if imagenet_style == "auto" else imagenet_style
        if style is None:
            raise UserError(
                f"{path}: this ImageNet ResNet has no batch-norm statistics by which its style could be told, since "
                "every channel of bn1 has the same variance or none; set resnets.imagenet_style=caffe if it was "
                "trained on BGR images of 0 to 255 minus means, with the stride of a stage in the first 1x1, or "
                "resnets.imagenet_style=torchvision if it was trained on RGB images of unit variance, with the "
                "stride in the 3x3"
            )
        tensors, unused = imagenet.to_original(file.tensors, batch_norm=batch_norm)
        if style == "torchvision":
            tensors[STEM] = imagenet.from_bgr(tensors[STEM])
        return WeightSource(f"an ImageNet ResNet in {style}'s style", tensors, tuple(unused), style=style)
    if torchvision.is_torchvision(names):
        tensors, unused = torchvision.to_original(file.tensors)
        of_coco = torchvision.is_of_coco(file.tensors)
        notes = (f"{torchvision.CLASSES} rows of its heads are read as COCO's category ids",) if of_coco else ()
        return WeightSource("a torchvision detector", tensors, tuple(unused), style="torchvision", notes=notes)
    raise UserError(f"{path}: tensors such as {', '.join(list(names)[:3])} are of no network that can be imported")


def wanted_options(source: WeightSource) -> dict[str, Any]:
    """The options, by name, with which a file's weights were trained and which shapes do not show."""
    wanted = {
        "caffe": {"resnets.stride_1x1": True, "pixel_means": PIXEL_MEANS},
        "torchvision": {"resnets.stride_1x1": False, "pixel_means": imagenet.MEANS},
        None: {},
    }[source.style]
    if source.style and STATISTICS in source.tensors:
        wanted["batch_norm.epsilon"] = imagenet.BATCH_NORM_EPSILON
    if source.is_detector:
        wanted["model.box_convention"] = source.style or "detectron"
    return wanted | {name: source.record.options[name] for name in UNSEEN if name in source.record.options}


def check_style(source: WeightSource, options: Mapping[str, Any]) -> None:
    """Raises a UserError that names the options if a file is meant for other settings than the network's.

    Args:
      source: the weight file.
      options: the network's options by name; those of `wanted_options` are read.
    """
    for name, value in wanted_options(source).items():
        here = options[name]
        same = value == here
        if name == "pixel_means" and np.shape(value) == np.shape(here):
            same = np.allclose(value, here, atol=0.5)
        if not same:
            if name in source.record.options:
                mend = "set it, since its network was trained with it"
            elif source.is_detector:
                mend = f"{source.config or 'configs/base.py'} has all that it needs"
            else:
                mend = "set it, or set resnets.imagenet_style if the file was recognised wrongly"
            raise UserError(f"{source.kind} wants {name}={value}, not {here}: {mend}")


def import_tensors(
    source: WeightSource, variables: Mapping, *, allow: Sequence[str] = (), backbone_only: bool = False
) -> tuple[dict, list[str]]:
    """Replaces variables by a source's tensors.

    Args:
      source: the weight file.
      variables: the network's variables, arrays; those that the source lacks keep their values if `allow` permits.
      allow: prefixes of the original's names that may be missing, misshapen or unknown.
      backbone_only: whether to take the backbone only from a file that holds more.

    Returns:
      The variables, and a report: lines on used and unused tensors.

    Raises:
      UserError: if tensors are missing, misshapen or unknown; the message names each.
    """
    backbone_only = backbone_only or not source.is_detector
    tensors = {k: v for k, v in source.tensors.items() if k.startswith(BODY)} if backbone_only else source.tensors
    values, problems = fit(tensors, variables, only=BODY if backbone_only else "")
    allowed = {name: what for name, what in problems.items() if name.startswith(tuple(allow))}
    if len(allowed) < len(problems):
        refused = {name: what for name, what in problems.items() if name not in allowed}
        raise misfit(refused, tensors, variables, config=source.config)
    report = [f"{source.kind}: {len(values)} tensors used"]
    if backbone_only:
        report.append("only the backbone is taken: pyramid, RPN and heads keep their random weights")
    else:
        report += source.notes
    unused = [*source.unused, *(source.tensors.keys() - tensors.keys())]
    if unused:
        report.append(f"not used: {', '.join(unused[:8])}" + (f" and {len(unused) - 8} more" if unused[8:] else ""))
    flat = traverse_util.flatten_dict(dict(variables), sep="/") | {k: jnp.asarray(v) for k, v in values.items()}
    return traverse_util.unflatten_dict(flat, sep="/"), report + [f"allowed: {k} {v}" for k, v in allowed.items()]


def inventory(source: WeightSource, variables: Mapping) -> str:
    """One line for every tensor of a source and of a network: its fate, the original's name, shape."""
    wanted = {tensor.name: tensor.shape for tensor in original_tensors(variables).values()}
    given = {name: value.shape for name, value in source.tensors.items()}
    lines = [f"# {source.kind}"]
    for name, shape in wanted.items():
        if name not in given:
            lines.append(f"missing {name} {shape}")
        else:
            fits = given[name] == shape
            lines.append(f"used {name} {shape}" if fits else f"misshapen {name} {given[name]}, not {shape}")
    lines += [f"unknown {name} {shape}" for name, shape in given.items() if name not in wanted]
    lines += [f"unused {name}" for name in source.unused]
    return "\n".join(lines) + "\n"
