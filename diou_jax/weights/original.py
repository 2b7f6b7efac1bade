"""Names and layouts of the original's tensors, and their conversion to our variables and back.

Batch norm that learns and further convolutions of the RPN, which the original does not have, get names in its style.
Those of batch norm are GroupNorm's, in the backbone with "bn" in place of "gn", and end as torch's: weight, bias,
running_mean, running_var.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from diou_jax.errors import UserError
from diou_jax.models.conv import AFFINE
from diou_jax.models.norms import STATISTICS
from diou_jax.weights.layer_options import layer_options

_MODULES = {
    "rpn/conv": "RPN.FPN_RPN_conv",
    "rpn/logits": "RPN.FPN_RPN_cls_score",
    "rpn/deltas": "RPN.FPN_RPN_bbox_pred",
    "box_head/fc1": "Box_Head.fc1",
    "box_head/fc2": "Box_Head.fc2",
    "box_head/fc": "Box_Head.fc",
    "box_head/logits": "Box_Outs.cls_score",
    "box_head/deltas": "Box_Outs.bbox_pred",
    "mask_head/upsample": "Mask_Head.upconv",
    "mask_head/logits": "Mask_Outs.classify",
    "neck/inner5": "Conv_Body.conv_top",
}
_STACKS = {"box_head": "Box_Head.convs", "mask_head": "Mask_Head.conv_fcn"}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Tensor(NamedTuple):
    """A tensor of the original.

    Attributes:
      name: name in the original's ``model`` state dict.
      shape: shape in the original.
      to_ours, to_original: convert the original's array to ours and back, exactly.
    """

    name: str
    shape: tuple[int, ...]
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_original: Callable[[np.ndarray], np.ndarray]


def original_tensors(variables: Mapping) -> dict[str, Tensor]:
    """The original's counterpart of every variable, by our "/"-joined path, which begins with the collection.

    Args:
      variables: the network's variables; shapes are enough.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {path: Tensor(_name(path, flat), *_layout(path, value.shape, flat)) for path, value in flat.items()}


def fit(tensors: Mapping[str, np.ndarray], variables: Mapping, *, only: str = "") -> tuple[dict, dict[str, str]]:
    """Compares the original's tensors with the network's variables.

    Args:
      tensors: tensors of the original's ``model`` state dict.
      variables: the network's variables, for names, shapes and dtypes (arrays or shape structs).
      only: prefix of the original's names of the wanted variables.

    Returns:
      Values by our "/"-joined path for every wanted variable with a tensor of its shape; and the problems of all
      others, by the original's name.
    """
    likes = traverse_util.flatten_dict(dict(variables), sep="/")
    counterparts = original_tensors(variables)
    values, problems = {}, {}
    for path, (name, shape, to_ours, _) in counterparts.items():
        if not name.startswith(only):
            continue
        if name not in tensors:
            problems[name] = "is missing"
        elif tensors[name].shape != shape:
            problems[name] = f"has shape {tensors[name].shape} instead of {shape}"
        else:
            with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite
                value = np.ascontiguousarray(to_ours(tensors[name]), likes[path].dtype)
            if np.isfinite(value).all():
                values[path] = value
            else:
                problems[name] = f"holds values that are not finite as {value.dtype}"
    known = {tensor.name for tensor in counterparts.values()}
    return values, problems | {name: "has no place in this network" for name in tensors if name not in known}


def import_original(tensors: Mapping[str, np.ndarray], variables: Mapping) -> dict:
    """The network's variables with the original's values; arguments as for `fit`.

    Raises:
      UserError: if a tensor is missing, of another shape, or unknown; the message names each.
    """
    values, problems = fit(tensors, variables)
    if problems:
        raise misfit(problems, tensors, variables)
    return traverse_util.unflatten_dict(values, sep="/")


def misfit(
    problems: Mapping[str, str], tensors: Collection[str], variables: Mapping, *, config: str | None = None
) -> UserError:
    """The error that lists the problems found by `fit`, and the options by which the two networks differ.

    Args:
      problems: the problem of each tensor, by name.
      tensors: names of the tensors in the file.
      variables: the network's variables; shapes are enough.
      config: the argument of ``--config`` that fits the file, if one is known.
    """
    lines = [f"{name} {what}" for name, what in problems.items()]
    if len(lines) > 8:
        lines = [*lines[:8], f"and {len(lines) - 8} more"]
    ours = layer_options([tensor.name for tensor in original_tensors(variables).values()])
    different = [f"{name}={value}" for name, value in layer_options(tensors).items() if ours.get(name, value) != value]
    mend = f"The file is of a network with {', '.join(different)}. " if different else ""
    if different and config:
        mend += f"--config {config} has these. "
    return UserError(
        f"these weights do not fit the network of this config: {'; '.join(lines)}. {mend}The argument after the "
        "config's colon names the backbone, model.mask_on and fast_rcnn.roi_box_head choose the heads, and --allow "
        "takes names that need not fit"
    )


def export_original(variables: Mapping) -> dict[str, np.ndarray]:
    """The original's ``model`` state dict of the network's variables; the inverse of `import_original`."""
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {
        tensor.name: np.ascontiguousarray(tensor.to_original(np.asarray(flat[path])))
        for path, tensor in original_tensors(variables).items()
    }


def _name(path, paths):
    collection, *module, leaf = path.split("/")
    is_norm = module[-1] == "norm"
    module = "/".join(module[:-1] if is_norm else module)
    leaf = _LEAVES[leaf]
    if module.startswith("backbone/"):
        batch_norm = is_norm and f"{STATISTICS}/{module}/norm/mean" in paths
        kind = "bn" if collection == AFFINE or batch_norm else "gn" if is_norm else "conv"
        return f"Conv_Body.conv_body.{_backbone_module(module, kind)}.{leaf}"
    # With GroupNorm the original has sequences of convolution and norm.
    sequence = f"params/{module}/norm/scale" in paths
    if stacked := re.fullmatch(r"(\w+_head)/conv(\d+)", module):
        # Each convolution of a head is followed by its norm, if it has one, and by a ReLU, which counts as well.
        place = (3 if sequence else 2) * (int(stacked[2]) - 1) + is_norm
        name = f"{_STACKS[stacked[1]]}.{place}"
    elif further := re.fullmatch(r"rpn/conv(\d+)", module):
        name = f"{_MODULES['rpn/conv']}{further[1]}"
    else:
        name = _MODULES.get(module) or _neck_module(module)
        if sequence:
            name += ".1" if is_norm else ".0"
    return f"{name}.{leaf}"


def _backbone_module(module, kind):
    """The original's name of a module of the backbone; `kind` is conv, bn (frozen affine or batch norm) or gn."""
    if module == "backbone/conv1":
        return f"res1.{kind}1"
    match = re.fullmatch(r"backbone/res(\d)_(\d+)/(\w+)", module)
    assert match is not None, module
    stage, block, part = match.groups()
    if part == "shortcut":
        return f"res{stage}.{block}.downsample.{0 if kind == 'conv' else 1}"
    return f"res{stage}.{block}.{part.replace('conv', kind)}"


def _neck_module(module):
    match = re.fullmatch(r"neck/(inner|output)(\d)", module)
    assert match is not None, module
    kind, level = match.groups()
    if kind == "output":
        return f"Conv_Body.posthoc_modules.{5 - int(level)}"
    return f"Conv_Body.topdown_lateral_modules.{4 - int(level)}.conv_lateral"


def _layout(path, shape, variables):
    """The original's shape for our array of `shape`, and the conversions to our layout and back."""
    if path.endswith("upsample/kernel"):
        return (shape[3], shape[0], *shape[1:3]), lambda a: a.transpose(1, 2, 3, 0), lambda a: a.transpose(3, 0, 1, 2)
    if len(shape) == 4:
        return (shape[0], shape[3], *shape[1:3]), lambda a: a.transpose(0, 2, 3, 1), lambda a: a.transpose(0, 3, 1, 2)
    if path.endswith(("box_head/fc1/kernel", "box_head/fc/kernel")):
        # The original flattens a RoI's features channel first, ours channel last.
        channels = _flattened_channels(variables)
        side = round((shape[0] / channels) ** 0.5)
        return (
            shape[::-1],
            lambda a: a.reshape(-1, channels, side, side).transpose(2, 3, 1, 0).reshape(shape),
            lambda a: a.reshape(side, side, channels, -1).transpose(3, 2, 0, 1).reshape(shape[::-1]),
        )
    return shape[::-1], np.transpose, np.transpose


def _flattened_channels(variables):
    """The channels of the features that the box head's first fully connected layer takes."""
    convolution = variables.get("params/box_head/conv1/kernel", variables["params/neck/output2/kernel"])
    return convolution.shape[0]
