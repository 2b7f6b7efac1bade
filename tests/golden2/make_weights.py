"""The weights that the original's further models were run with, beside those of `../golden/make_weights.py`.

Every tensor is drawn by the seed and its name. The output layers are not drawn but stored, in `weights_outputs_*.npz`.
"""

import importlib.util
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
# The files with a model's output layers, if it has more than its own; later ones prevail.
STORED = {"mask_r50fpn": ["weights_outputs_r50fpn.npz", "weights_outputs_mask_r50fpn.npz"]}
HEADS = ("Box_Head.convs.", "Mask_Head.conv_fcn.")

_spec = importlib.util.spec_from_file_location("make_weights", HERE.parent / "golden" / "make_weights.py")
_first = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_first)


def rows(model: str) -> list[list[str]]:
    """Name, shape, trained or not, group and Detectron's name of each tensor of a model."""
    lines = (HERE / f"param_names_{model}.txt").read_text().splitlines()
    return [line.split("\t") for line in lines if line and line[0] != "#"]


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One tensor; what is not named here is drawn as for the first model."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])

    def normal(std):
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)

    def uniform(low, high):
        return rng.random(shape, dtype=np.float32) * np.float32(high - low) + np.float32(low)

    if ".gn" in name and name.endswith("bias"):
        return normal(0.1)
    affine = ".bn" in name or ".downsample." in name
    if len(shape) == 1 and name.endswith("weight") and not affine:
        return uniform(0.2, 0.5) if ".gn3." in name else uniform(0.6, 1.2)
    if len(shape) == 4 and any(head in name for head in HEADS):
        return normal((2.0 / np.prod(shape[1:])) ** 0.5)
    if len(shape) == 4 and ".upconv" in name:
        return normal((2.0 / shape[0]) ** 0.5)
    return _first.draw(name, shape, seed)


def features(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Drawn feature maps for the heads."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.standard_normal(shape, dtype=np.float32)
