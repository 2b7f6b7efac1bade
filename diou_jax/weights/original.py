"""The original's tensors and ours: names and layouts, both ways."""

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from flax import traverse_util

from diou_jax.errors import UserError


def original_name(path: str) -> str:
    """The original's name of a variable, which ours calls `path`, e.g. "params/body/res2_0/conv1/kernel"."""
    collection, part, *rest, leaf = path.split("/")
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
    module = rest[-1]
    if part == "body":
        stage, block = re.fullmatch(r"res(\d)_(\d+)", rest[0]).groups() if len(rest) > 1 else ("1", None)
        stem = f"Conv_Body.conv_body.res{stage}." + (f"{block}." if block else "")
        if module == "shortcut":
            module = "downsample.1" if collection == "affine" else "downsample.0"
        elif collection == "affine":
            module = module.replace("conv", "bn")
        return f"{stem}{module}.{leaf}"
    if part == "fpn":
        kind, level = module[:-1], int(module[-1])
        if kind == "output":
            return f"Conv_Body.posthoc_modules.{5 - level}.{leaf}"
        if level == 5:
            return f"Conv_Body.conv_top.{leaf}"
        return f"Conv_Body.topdown_lateral_modules.{4 - level}.conv_lateral.{leaf}"
    if part == "rpn":
        return "RPN.FPN_RPN_" + {"conv": "conv", "logits": "cls_score", "deltas": "bbox_pred"}[module] + f".{leaf}"
    return {
        "fc1": "Box_Head.fc1",
        "fc2": "Box_Head.fc2",
        "logits": "Box_Outs.cls_score",
        "deltas": "Box_Outs.bbox_pred",
    }[module] + f".{leaf}"


def _layout(path: str, shape: tuple[int, ...], channels: int) -> tuple[Callable, Callable]:
    """How to turn the original's array into ours of `shape`, and back."""
    if len(shape) == 4:
        return (lambda a: a.transpose(2, 3, 1, 0)), (lambda a: a.transpose(3, 2, 0, 1))
    if path.endswith("fc1/kernel"):
        # The original flattens pooled RoIs channel first, ours channel last.
        side = round((shape[0] / channels) ** 0.5)
        return (
            lambda a: a.reshape(-1, channels, side, side).transpose(2, 3, 1, 0).reshape(shape),
            lambda a: a.reshape(side, side, channels, -1).transpose(3, 2, 0, 1).reshape(shape[::-1]),
        )
    if len(shape) == 2:
        return np.transpose, np.transpose
    return (lambda a: a), (lambda a: a)


def _entries(variables: Mapping) -> Iterator[tuple[str, str, np.ndarray, Callable, Callable]]:
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    channels = flat["params/fpn/output2/kernel"].shape[-1]
    for path, value in flat.items():
        yield path, original_name(path), value, *_layout(path, value.shape, channels)


def import_original(tensors: Mapping[str, np.ndarray], variables: Mapping) -> dict:
    """The network's variables with the original's values.

    Args:
      tensors: every tensor of the original's ``model`` state dict.
      variables: of the network, for their names, shapes and dtypes (arrays or shape structs).

    Raises:
      UserError: names each tensor that is missing, of another shape, or unknown.
    """
    flat, problems, used = {}, [], set()
    for path, name, like, convert, _ in _entries(variables):
        if name not in tensors:
            problems.append(f"{name} is missing")
            continue
        used.add(name)
        value = np.asarray(tensors[name])
        wanted = _original_shape(path, like.shape)
        if value.shape != wanted:
            problems.append(f"{name} has shape {value.shape} instead of {wanted}")
            continue
        flat[path] = np.ascontiguousarray(convert(value)).astype(like.dtype)
    problems += [f"{name} has no place in this network" for name in tensors if name not in used]
    if problems:
        raise UserError(f"these weights do not fit the network of this config: {'; '.join(problems)}")
    return traverse_util.unflatten_dict(flat, sep="/")


def _original_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return shape[::-1]


def export_original(variables: Mapping) -> dict[str, np.ndarray]:
    """The original's ``model`` state dict of the network's variables; the inverse of `import_original`."""
    return {
        name: np.ascontiguousarray(restore(np.asarray(value))) for _, name, value, _, restore in _entries(variables)
    }
