"""ImageNet ResNets under torchvision's names."""

import re
from collections.abc import Mapping

import numpy as np

BATCH_NORM_EPSILON = 1e-5

# What torchvision subtracts and divides by, for images of 0 to 255; blue, green, red.
MEANS = (103.53, 116.28, 123.675)
DEVIATIONS = (57.375, 57.12, 58.395)


def is_imagenet(names) -> bool:
    """Whether these are the names of torchvision's classifiers."""
    return "conv1.weight" in names and "layer1.0.conv1.weight" in names


def style(tensors: Mapping[str, np.ndarray]) -> str:
    """Whose images the weights are meant for, told by the statistics behind the first convolution.

    "caffe": BGR from 0 to 255 less their means, the stride on the first 1x1. "torchvision": RGB of unit variance, the
    stride on the 3x3. A filter's output varies about as much as its input times its squared norm; the two inputs'
    variances are 1 and 57 squared, so that no file is near the boundary, which is 57.
    """
    energy = np.square(tensors["conv1.weight"], dtype=np.float64).sum((1, 2, 3))
    ratio = np.median(tensors["bn1.running_var"][energy > 0] / energy[energy > 0])
    return "caffe" if ratio > 57 else "torchvision"


def from_bgr(conv1: np.ndarray) -> np.ndarray:
    """The first convolution (O, 3, 7, 7) of torchvision's style, for BGR images of 0 to 255 less `MEANS`."""
    return np.asarray(conv1, np.float32)[:, ::-1] / np.array(DEVIATIONS, np.float32)[:, None, None]


def to_original(tensors: Mapping[str, np.ndarray], *, epsilon: float = BATCH_NORM_EPSILON):
    """The body under the original's names, batch-norm folded into scale and bias.

    ``scale = gamma / sqrt(variance + epsilon)``, ``bias = beta - mean * scale``.

    Returns:
      Tensors by name, and the names of what is not used.
    """
    result, unused = {}, []
    for name, value in tensors.items():
        module, leaf = name.rsplit(".", 1) if "." in name else (name, "")
        original = _module(module)
        if original is None:
            unused.append(name)
        elif leaf in ("weight", "bias"):
            if f"{module}.running_var" in tensors:
                value = np.asarray(value, np.float32)
                mean, variance = (np.float32(tensors[f"{module}.running_{kind}"]) for kind in ("mean", "var"))
                root = np.sqrt(variance + np.float32(epsilon))
                gamma = np.float32(tensors[f"{module}.weight"])
                value = value / root if leaf == "weight" else value - mean * (gamma / root)
            result[f"{original}.{leaf}"] = value
    return result, unused


def _module(name):
    if name in ("conv1", "bn1"):
        return f"Conv_Body.conv_body.res1.{name}"
    match = re.fullmatch(r"layer([1-4])\.(\d+)\.((?:conv|bn)[123]|downsample\.[01])", name)
    return match and f"Conv_Body.conv_body.res{int(match[1]) + 1}.{match[2]}.{match[3]}"
