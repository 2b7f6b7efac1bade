"""Rebuilds the weights that the original was run with for the numbers of the whole detector and of the training step.

41 million random numbers do not compress, so the big tensors are drawn again from a fixed recipe and only the four
calibrated output layers are stored (`weights_outputs.npz`). Names, shapes and layouts (OIHW, out x in) are the
original's.

    from make_weights import weights
    params = weights("public")                  # {name: float32 array}, 189 tensors

    # needs torch: the original's checkpoint file, and an ImageNet file for its backbone
    python make_weights.py public model_step.pth --legacy
    python make_weights.py imagenet resnet50_caffe.pth
"""

import ast
import pathlib
import sys
import zlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
SEEDS = {"public": 0}


def parameter_shapes():
    rows = [line.split("\t") for line in (HERE / "param_names.txt").read_text().splitlines() if line[0] != "#"]
    return {name: ast.literal_eval(shape) for name, shape, *_ in rows}


def normal(rng, shape, std):
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def uniform(rng, shape, low, high):
    return rng.random(shape, dtype=np.float32) * np.float32(high - low) + np.float32(low)


def draw(name, shape, seed):
    """One tensor of the recipe."""
    tensor = np.random.default_rng([seed, zlib.crc32(name.encode())]), shape
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 0
    if ".conv_body." in name:  # the ResNet
        if ".bn" not in name and ".downsample.1" not in name:
            return normal(*tensor, (2.0 / fan_in) ** 0.5)
        if name.endswith("bias"):
            return normal(*tensor, 0.1)
        if "res1.bn1" in name:
            return uniform(*tensor, 0.008, 0.02)
        if ".bn3." in name:
            return uniform(*tensor, 0.1, 0.3)
        if ".downsample." in name:
            return uniform(*tensor, 0.5, 0.9)
        return uniform(*tensor, 0.6, 1.2)
    if name.endswith("bias"):
        return normal(*tensor, 0.05)
    if "FPN_RPN_conv" in name:
        return normal(*tensor, 0.02)
    return uniform(*tensor, -((3.0 / fan_in) ** 0.5), (3.0 / fan_in) ** 0.5)  # FPN, fc1, fc2


def weights(which="public", seed=None, stored=None):
    seed = SEEDS[which] if seed is None else seed
    with np.load(stored or HERE / "weights_outputs.npz") as file:
        stored = dict(file)
    return {n: stored[n] if n in stored else draw(n, s, seed) for n, s in parameter_shapes().items()}


def imagenet_weights():
    """A made-up ImageNet ResNet-50 under torchvision's names, as the original's `resnet50_caffe.pth` has them.

    `resnet_pretrained_mapping.npz` holds what the original's loader turned it into: for every resulting tensor its
    first 64 values, its sum and its shape.
    """
    out = {}
    for name, shape in parameter_shapes().items():
        if ".conv_body." not in name or name.endswith("bias"):
            continue
        block = name.split(".conv_body.")[1].rsplit(".", 1)[0].split(".")
        key = ".".join(block[1:] if block[0] == "res1" else [f"layer{int(block[0][3]) - 1}", *block[1:]])
        tensor = np.random.default_rng([77, zlib.crc32(key.encode())]), shape
        if len(shape) == 4:
            out[key + ".weight"] = normal(*tensor, 0.05)
        else:
            out[key + ".weight"], out[key + ".bias"] = uniform(*tensor, 0.5, 1.5), normal(*tensor, 1.0)
            out[key + ".running_mean"] = normal(*tensor, 1.0)
            out[key + ".running_var"] = uniform(*tensor, 0.01, 2.01)
    out["fc.weight"] = normal(np.random.default_rng(77), (1000, 2048), 0.01)
    out["fc.bias"] = np.zeros(1000, np.float32)
    return out


if __name__ == "__main__":
    import torch

    which, path = sys.argv[1:3]
    arrays = imagenet_weights() if which == "imagenet" else weights(which)
    content = {n: torch.from_numpy(np.array(w)) for n, w in arrays.items()}
    if which != "imagenet":
        content = {"step": 1234, "train_size": 117264, "batch_size": 16, "model": content, "optimizer": {}}
    torch.save(content, path, _use_new_zipfile_serialization="--legacy" not in sys.argv)
