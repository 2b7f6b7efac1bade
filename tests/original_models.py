"""The original's results with its further models: weights, networks and outputs of golden2."""

import ast
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import views
from conftest import find_golden
from ml_collections import ConfigDict

from diou_jax.configs import base, mask, mask_gn
from diou_jax.data import packing
from diou_jax.data.buckets import Bucket
from diou_jax.masks import Rle, encode
from diou_jax.structures import Batch, Detections
from diou_jax.weights.original import import_original

GOLDEN = "golden2"
# The tolerances of two correct implementations, from the README of the numbers; GroupNorm's are wider.
SCORE, BOX, MASK = 2e-5, 0.002, 6e-6
GROUP_NORM_SCORE, GROUP_NORM_BOX = 8e-5, 0.005


def configs() -> dict[str, ConfigDict]:
    """The config of every model."""
    return {
        "r50fpn": base.get_config(),
        "mask_r50fpn": mask.get_config(),
        "mask_r50fpn_gn": mask_gn.get_config(),
        "r101fpn": base.get_config("r101"),
        "x101_32x8d_fpn": base.get_config("x101_32x8d"),
    }


def load(name: str, folder: str = GOLDEN) -> dict[str, np.ndarray]:
    """The arrays of a golden file."""
    with np.load(find_golden(name, folder)) as file:
        return dict(file)


def packed(golden: dict[str, np.ndarray]) -> Batch:
    """The image that a model saw, as the loader would hand it over: of its own file, or of that of the first proof."""
    pixels = golden.get("image_u8_bgr")
    if pixels is None:
        pixels = load("model_r50fpn.npz", "golden")["image_u8_bgr"]
    height, width = map(int, golden["im_info"][0, :2])
    bucket = Bucket(height, width, *pixels.shape[:2])
    target, max_size = map(int, golden["test_scale"])
    example = packing.example(pixels, views.resized(pixels, target=target, max_size=max_size), bucket)
    return jax.tree.map(jnp.asarray, packing.pack([example], bucket))


def detections(rows: np.ndarray) -> Detections:
    """The original's detections (D, 6) of an image: class, box and score."""
    return Detections(
        boxes=jnp.asarray(rows[None, :, 1:5]),
        scores=jnp.asarray(rows[None, :, 5]),
        classes=jnp.asarray(rows[None, :, 0], jnp.int32),
        valid=jnp.ones((1, len(rows)), bool),
    )


def pasted(masks: np.ndarray, golden: dict[str, np.ndarray], rows: np.ndarray, threshold: float = 0.5) -> list[Rle]:
    """The masks (D, M, M) of the original's detections (D, 6), pasted into the image."""
    height, width = map(int, packed(golden).original_size[0])
    return encode(masks, rows[:, 1:5], height=height, width=width, threshold=threshold)


def channels(golden: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, slice]:
    """Some channels of a map of the original, channels last, and which ones."""
    key = next(key for key in golden if key.startswith(f"{name}_chstride"))
    return golden[key].transpose(0, 2, 3, 1), slice(None, None, int(key.rpartition("chstride")[2]))


def maker():
    """The script that draws the weights."""
    spec = importlib.util.spec_from_file_location("make_further_weights", find_golden("make_weights.py", GOLDEN))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(model: str, prefix: str = "") -> dict[str, np.ndarray]:
    """The original's tensors by its names, those that begin with `prefix`."""
    script = maker()
    rows = [(name, ast.literal_eval(shape)) for name, shape, *_ in script.rows(model) if name.startswith(prefix)]
    stored: dict[str, np.ndarray] = {}
    for file in script.STORED.get(model, [f"weights_outputs_{model}.npz"]):
        if not prefix or file == f"weights_outputs_{model}.npz":
            stored |= load(file)
    return {name: stored[name] if name in stored else script.draw(name, shape, 0) for name, shape in rows}


def variables(model: str, network) -> dict:
    """The network's variables with the original's weights."""
    return jax.tree.map(jnp.asarray, import_original(weights(model), network.variable_shapes()))
