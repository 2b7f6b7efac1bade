"""Trials of each kernel against its XLA reference, at the detector's sizes: are they equal, and which is faster?

    python -m diou_jax.kernels.trials          # all trials, one line of JSON before and one after each

A kernel that fails aborts its process, so `diou_jax.kernels.verdicts` runs this file in a process of its own. The sizes
are always those of R-50-FPN with 2 images of 800 x 1344 pixels, so that one verdict serves every run.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.kernels import selection
from diou_jax.kernels.match import match
from diou_jax.kernels.nms import nms
from diou_jax.kernels.roi_align import roi_align

HEIGHT, WIDTH, IMAGES = 800, 1344, 2
STRIDES = (4, 8, 16, 32)
CALLS = 4  # calls before the clock starts: XLA records a program in a command buffer at its second or third call
# Bursts of calls, of which the first, one call, does not count; no further one begins after this time.
BURSTS, LENGTH, SECONDS = 6, 4, 0.5


@dataclasses.dataclass(frozen=True)
class Trial:
    """One use of one kernel.

    Attributes:
      kernel: the kernel's name, one of `selection.NAMES`.
      function: takes and returns arrays; calls the kernel where `selection` allows it.
      inputs: draws the arguments of `function`, numpy arrays or trees of them.
      tolerance: largest accepted difference of a value from the reference, relative to ``|value| + 0.1 * max |value|``
        of the reference. 0 demands equal bits.
    """

    kernel: str
    function: Callable[..., Any]
    inputs: Callable[[np.random.Generator], Sequence[Any]]
    tolerance: float = 0.0


def draw_clusters(
    random: np.random.Generator, *, images: int, problems: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Float32 boxes (images, problems, count, 4) clustered around 40 objects per image, like proposals, and scores."""
    shape = (images, problems, count)
    objects = random.uniform(0, [WIDTH, HEIGHT], (images, 1, 40, 2))
    which = random.integers(0, 40, shape)
    centre = np.take_along_axis(np.broadcast_to(objects, (images, problems, 40, 2)), which[..., None], 2)
    size = np.exp(random.normal(4.5, 0.7, (images, problems, 40, 2)))
    size = np.take_along_axis(size, which[..., None], 2) * np.exp(random.normal(0, 0.15, (*shape, 2)))
    centre = centre + random.normal(0, 0.1, (*shape, 2)) * size
    boxes = np.concatenate([centre - size / 2, centre + size / 2], -1)
    return boxes.astype(np.float32), random.random(shape, np.float32)


def draw_pyramid(
    random: np.random.Generator, images: int, rois: int, *, height: int, width: int, channels: int, resolution: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Float32 feature maps (NHWC), RoIs log-uniform in area and aspect, much like proposals, and a gradient."""
    side = np.exp(random.uniform(np.log(16), np.log(height), (images, rois)))
    stretch = np.exp(random.uniform(-0.7, 0.7, (images, rois)))
    sides = np.minimum(np.stack([side * stretch, side / stretch], -1), [width - 1, height - 1])
    corner = random.uniform(0, 1, (images, rois, 2)) * ([width - 1, height - 1] - sides)
    boxes = np.concatenate([corner, corner + sides], -1).astype(np.float32)
    features = [random.standard_normal((images, height // s, width // s, channels), np.float32) for s in STRIDES]
    gradient = random.standard_normal((images, rois, resolution, resolution, channels), np.float32)
    return features, boxes, gradient


def _draw_nms(problems, count):
    return lambda random: draw_clusters(random, images=IMAGES, problems=problems, count=count)


def _draw_roi_align(dtype):
    def draw(random):
        size = {"height": HEIGHT, "width": WIDTH, "channels": 256, "resolution": 7}
        features, rois, gradient = draw_pyramid(random, IMAGES, 512, **size)
        return [feature.astype(dtype) for feature in features], rois, gradient.astype(dtype)

    return draw


def _pool(features, rois, gradient):
    del gradient
    return roi_align(features, rois, resolution=7, sampling_ratio=2, strides=STRIDES)


def _pool_gradient(features, rois, gradient):
    _, backward = jax.vjp(lambda features: _pool(features, rois, gradient), features)
    return backward(gradient)[0]


def draw_match(
    random: np.random.Generator, images: int, *, boxes: int | None = None, cells: int | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The arguments of `match`: three anchors per cell, 128 boxes per image, and the masks of both by name.

    Anchors are eligible inside the image.

    Args:
      random: the generator.
      images: number of images.
      boxes: number of valid boxes among the 128; None draws it for each image.
      cells: number of cells of all levels; None takes the pyramid's.
    """
    cells = cells or sum((HEIGHT // stride) * (WIDTH // stride) for stride in (*STRIDES, 64))
    (anchors, truth), _ = draw_clusters(random, images=2, problems=1, count=max(3 * cells, 128 * images))
    anchors = anchors[0, : 3 * cells]
    inside = (anchors.min(-1) >= 0) & (anchors[:, 2] < WIDTH) & (anchors[:, 3] < HEIGHT)
    valid = np.arange(128) < (random.integers(1, 40, (images, 1)) if boxes is None else np.full((images, 1), boxes))
    masks = {"eligible": np.tile(inside, (images, 1)), "valid": valid}
    return anchors, truth[0, : images * 128].reshape(images, 128, 4), masks


TRIALS = {
    "nms of proposals": Trial("nms", lambda boxes, scores: nms(boxes, scores, 0.7), _draw_nms(5, 2000)),
    "nms of detections": Trial(
        "nms", lambda boxes, scores: nms(boxes, scores, 0.5, overlap="diou"), _draw_nms(80, 1000)
    ),
    "match": Trial(
        "match", lambda anchors, boxes, masks: match(anchors, boxes, **masks), lambda random: draw_match(random, IMAGES)
    ),
    "roi_align, float32": Trial("roi_align", _pool, _draw_roi_align(np.float32), 1e-4),
    "roi_align_gradient, float32": Trial("roi_align_gradient", _pool_gradient, _draw_roi_align(np.float32), 1e-4),
    "roi_align, bfloat16": Trial("roi_align", _pool, _draw_roi_align(jnp.bfloat16), 2**-6),
    "roi_align_gradient, bfloat16": Trial("roi_align_gradient", _pool_gradient, _draw_roi_align(jnp.bfloat16), 2**-6),
}


def same_bits(found: Any, right: Any) -> bool:
    """Whether two trees of arrays hold the same bits; compared on the device, since outputs have 180 MB."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True))
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        return False
    return bool(_same_bits(pairs))


@jax.jit
def _same_bits(pairs):
    def bits(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")

    return jnp.stack([(bits(a) == bits(b)).all() for a, b in pairs]).all()


def deviation(found: Any, right: Any, tolerance: float) -> float:
    """The largest difference of two trees of arrays in units of the tolerance; 0 if all bits are equal, inf for NaN."""
    if same_bits(found, right):
        return 0.0
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True))
    if tolerance == 0 or any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        return float("inf")
    return float(_deviation(pairs)) / tolerance


@jax.jit
def _deviation(pairs):
    """The largest difference, relative to ``|value| + 0.1 * max |value|``."""

    def of_pair(a, b):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        scale = jnp.abs(b) + 0.1 * jnp.abs(b).max()
        difference = jnp.abs(a - b) / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
        return jnp.where(jnp.isfinite(a).all() & jnp.isfinite(b).all(), difference.max(), jnp.inf)

    return jnp.stack([of_pair(a, b) for a, b in pairs]).max()


def programs(trial: Trial, arguments: Sequence[Any]) -> tuple[Callable, Callable]:
    """The trial's function compiled with the kernel and with its reference, side by side."""
    lowered = []
    for names in ((trial.kernel,), ()):
        jax.clear_caches()  # functions that jit has traced before would keep the other choice
        with selection.only(names):
            lowered.append(jax.jit(lambda *arguments: trial.function(*arguments)).lower(*arguments))
    with concurrent.futures.ThreadPoolExecutor() as threads:
        kernel, reference = threads.map(lambda program: program.compile(), lowered)
    return kernel, reference


def run(trial: Trial, arguments: Sequence[Any]) -> dict[str, Any]:
    """Runs a trial on the first device.

    Args:
      trial: an entry of `TRIALS`.
      arguments: its inputs, on the device.

    Returns:
      ``deviation`` of the kernel from its reference, see `deviation`; ``stable``, whether every call of the kernel gave
      the same bits; ``kernel_ms`` and ``reference_ms``, milliseconds per call, medians of bursts of calls.
    """
    kernel, reference = programs(trial, arguments)
    found, right = kernel(*arguments), reference(*arguments)
    return {
        "deviation": deviation(found, right, trial.tolerance),
        "stable": all(same_bits(kernel(*arguments), found) for _ in range(CALLS - 1)),
        "kernel_ms": _milliseconds(kernel, arguments),
        "reference_ms": _milliseconds(reference, arguments),
    }


def _milliseconds(program, arguments):
    bursts: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(bursts) < BURSTS and (len(bursts) < 2 or time.perf_counter() < end):
        start, length = time.perf_counter(), LENGTH if bursts else 1
        for _ in range(length):
            result = program(*arguments)
        jax.block_until_ready(result)
        bursts.append((time.perf_counter() - start) / length * 1e3)
    return statistics.median(bursts[1:])


def main() -> None:
    """Writes two lines per trial to a file descriptor: ``{"begins": trial}``, then its result or ``error``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", default="diou_jax.kernels.trials", help="module with the table TRIALS")
    parser.add_argument("--trials", nargs="+", help="names of the trials; all by default")
    parser.add_argument("--output", type=int, default=1, help="file descriptor: compilers print to the standard ones")
    options = parser.parse_args()
    trials = importlib.import_module(options.module).TRIALS
    with os.fdopen(options.output, "w", buffering=1, closefd=False) as output:
        for name in options.trials or trials:
            try:
                arguments = jax.device_put(trials[name].inputs(np.random.default_rng(0)))
                print(json.dumps({"begins": name}), file=output)  # its clock starts once the inputs are there
                result = run(trials[name], arguments)
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            print(json.dumps({"trial": name, **result}), file=output)
            if "error" in result:
                sys.exit(1)  # the device stays in its error state, in which the next trial would fail, too


if __name__ == "__main__":
    main()
