"""Weights of ImageNet ResNets under torchvision's names."""

import re
from collections.abc import Mapping

import numpy as np

from diou_jax.errors import UserError

BATCH_NORM_EPSILON = 1e-5

# torchvision's means and standard deviations for images with values 0 to 255, in the order blue, green, red.
MEANS = (103.53, 116.28, 123.675)
DEVIATIONS = (57.375, 57.12, 58.395)
COUNTER = "num_batches_tracked"  # of batch norm, for a mean over all batches, which nobody takes


def is_imagenet(names) -> bool:
    """Whether these are the names of torchvision's classifiers."""
    return "conv1.weight" in names and "layer1.0.conv1.weight" in names


def style(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The style of the images for which the weights are meant, by the statistics behind the first convolution.

    "caffe": BGR from 0 to 255 minus means, stride in the first 1x1. "torchvision": RGB of unit variance, stride in the
    3x3. The variance of a filter's output is about that of its input times the squared norm of the filter. The input's
    variance is 1 or 57 squared, so that no file is near the threshold of 57.

    None: the file does not tell. Its batch normalisation is folded into the convolution and left as an identity, or is
    absent. Channels have equal variances then, which no measured ones have.
    """
    conv1 = np.asarray(tensors["conv1.weight"], np.float64)
    energy = np.square(conv1).sum(tuple(range(1, conv1.ndim)))
    variance = np.asarray(tensors.get("bn1.running_var", ()), np.float64)
    if variance.shape != energy.shape or not energy.any():
        return None
    # An exporter that folds exactly leaves 1 minus an epsilon of 1e-5 to 1e-3 in place of 1.
    if np.ptp(variance) <= 1e-3 * variance.max():
        return None
    ratio = np.median(variance[energy > 0] / energy[energy > 0])
    return "caffe" if ratio > 57 else "torchvision"


def from_bgr(conv1: np.ndarray) -> np.ndarray:
    """Converts torchvision's first convolution (O, 3, 7, 7) for BGR images of 0 to 255 minus `MEANS`.

    Its outputs stay the same, so that statistics of batch norm behind it hold unchanged. An array of another shape, a
    misfit, stays.
    """
    if conv1.ndim != 4 or conv1.shape[1] != len(MEANS):
        return conv1
    return np.asarray(conv1, np.float32)[:, ::-1] / np.array(DEVIATIONS, np.float32)[:, None, None]


def to_original(
    tensors: Mapping[str, np.ndarray], *, batch_norm: bool = False, epsilon: float = BATCH_NORM_EPSILON
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The backbone under the original's names.

    Args:
      tensors: tensors by torchvision's names.
      batch_norm: whether batch normalisation stays as it is. If not, it is folded into a frozen scale and bias:
        ``scale = gamma / sqrt(variance + epsilon)``, ``bias = beta - mean * scale``.
      epsilon: added to the variance when folding.

    Returns:
      Tensors by name, and the names of unused tensors, batch norm's counters of batches last.

    Raises:
      UserError: if a norm lacks a part, or its parts do not fit each other; the message names it.
    """
    result, unused, counters = {}, [], []
    leaves = ("weight", "bias", "running_mean", "running_var") if batch_norm else ("weight", "bias")
    for name, value in tensors.items():
        module, leaf = name.rsplit(".", 1) if "." in name else (name, "")
        original = _module(module)
        if original is None:
            unused.append(name)
        elif leaf == COUNTER:
            counters.append(name)
        elif leaf in leaves:
            value = np.asarray(value, np.float32)
            if not batch_norm and any(f"{module}.running_{part}" in tensors for part in ("mean", "var")):
                value = _folded(tensors, module, leaf, epsilon)
            result[f"{original}.{leaf}"] = value
    return result, unused + counters


def _folded(tensors, module, leaf, epsilon):
    """Weight or bias of a norm that has no statistics of its own."""
    names = [f"{module}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    if missing := [name for name in names if name not in tensors]:
        raise UserError(f"the batch norm {module} cannot be folded: the file has no {' and no '.join(missing)}")
    gamma, beta, mean, variance = (np.float32(tensors[name]) for name in names)
    variance = variance + np.float32(epsilon)
    if len({part.shape for part in (gamma, beta, mean, variance)}) > 1:
        raise UserError(f"the batch norm {module} cannot be folded: {', '.join(names)} differ in shape")
    if not (variance > 0).all():
        raise UserError(f"the batch norm {module} cannot be folded: {names[-1]} holds a variance that is not positive")
    scale = gamma / np.sqrt(variance)
    return scale if leaf == "weight" else beta - mean * scale


def _module(name):
    if name in ("conv1", "bn1"):
        return f"Conv_Body.conv_body.res1.{name}"
    match = re.fullmatch(r"layer([1-4])\.(\d+)\.((?:conv|bn)[123]|downsample\.[01])", name)
    return match and f"Conv_Body.conv_body.res{int(match[1]) + 1}.{match[2]}.{match[3]}"
