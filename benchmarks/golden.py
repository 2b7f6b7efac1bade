"""How far the whole detector is from the original's numbers on this device, at both precisions of products.

    python benchmarks/golden.py --golden FOLDER    # with model_r50fpn.npz and the recipe of its weights
    python benchmarks/golden.py                    # this device beside the CPU, random weights
    python benchmarks/golden.py --smoke            # a sketch of the network

GPUs multiply float32 in TF32 unless told otherwise, which keeps 10 bits of the mantissa. "highest" asks for float32.
A detection's partner is the nearest box of its class; one without a partner within a pixel counts as unmatched.
"""

import argparse
import importlib.util
import pathlib

import jax
import numpy as np
import timing
import workload

from diou_jax.configs import base
from diou_jax.data import packing
from diou_jax.data.buckets import Bucket
from diou_jax.data.view import scaled
from diou_jax.options import build
from diou_jax.weights.original import import_original

PRECISIONS = ("highest", None)


def rows(found) -> np.ndarray:
    """Float (M, 6): class, box, score of the first image's detections."""
    table = np.column_stack([found.classes[0], found.boxes[0], found.scores[0]])
    return table[np.asarray(found.valid[0])]


def compare(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, float, float]:
    """The number of detections without a partner, and the largest differences of partners in pixels and in score."""
    free, boxes, scores = np.ones(len(theirs), bool), 0.0, 0.0
    for row in ours:
        distance = np.abs(theirs[:, 1:5] - row[1:5]).max(1, initial=0.0)
        distance = np.where(free & (theirs[:, 0] == row[0]), distance, np.inf)
        if not len(distance) or distance.min() > 1:
            continue
        partner = distance.argmin()
        free[partner] = False
        boxes = max(boxes, float(distance[partner]))
        scores = max(scores, abs(float(theirs[partner, 5] - row[5])))
    matched = (~free).sum()
    return int(len(ours) + len(theirs) - 2 * matched), boxes, scores


def original(folder: pathlib.Path):
    """Detector, variables and batch of the stored photo, and the original's detections."""
    spec = importlib.util.spec_from_file_location("make_weights", folder / "make_weights.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = base.get_config()
    detector = build.detector(config, 81)
    with np.load(folder / "model_r50fpn.npz") as file:
        image, padded = file["image_u8_bgr"], file["data"].shape[2:]
        scale, theirs = float(file["im_scale_f64"][0]), file["dets_diou_b1.0"]
    bucket = Bucket(*padded, *image.shape[:2])
    batch = packing.pack([packing.example(image, scaled(image.shape[:2], scale), bucket)], bucket)
    variables = import_original(recipe.weights("public"), detector.network.variable_shapes())
    return detector, variables, batch, theirs


def beside_the_cpu(*, smoke: bool):
    """As `original`, for random weights and a drawn image; the detections are the CPU's."""
    config = workload.make_config(smoke=smoke)
    config.dtype = "float32"
    config.test.score_thresh = 0.0  # an untrained network is sure of nothing
    detector = build.detector(config, workload.CLASSES)
    variables = workload.make_variables(config, detector.network)
    batch = workload.draw_batch(config, 1)
    cpu = jax.devices("cpu")[0]
    theirs = rows(jax.device_get(jax.jit(detector.detect)(*jax.device_put((variables, batch), cpu))))
    return detector, variables, batch, theirs


def main() -> None:
    """Prints a line for each precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=pathlib.Path, help="folder of model_r50fpn.npz and make_weights.py")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    workload.prepare()
    stored = options.golden is not None and (options.golden / "model_r50fpn.npz").exists()
    against = "the original's" if stored else "the CPU's, random weights"
    print(timing.header(f"Detections beside {against}"))
    timing.head("precision of products", "detections", "theirs", "unmatched", "boxes differ by, pixels", "scores by")
    detector, variables, batch, theirs = original(options.golden) if stored else beside_the_cpu(smoke=options.smoke)
    for precision in PRECISIONS:
        with jax.default_matmul_precision(precision or "default"):
            ours = rows(jax.device_get(jax.jit(lambda *x: detector.detect(*x))(variables, batch)))
        unmatched, pixels, scores = compare(ours, theirs)
        differences = f"{pixels:.1e}", f"{scores:.1e}"
        timing.line(precision or "default", len(ours), len(theirs), unmatched, *differences)


if __name__ == "__main__":
    main()
