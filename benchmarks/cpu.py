"""The detector on a CPU beside torchvision's in float32: one table.

    python benchmarks/cpu.py
    python benchmarks/cpu.py --breakdown     # after it, where the train step's time goes
    python benchmarks/cpu.py --smoke         # small, seconds

Both do the same work: R-50-FPN with the strides on the 3x3 convolutions, stem and res2 frozen, frozen batch
normalisation, 2000 proposals and 512 RoIs an image in training, 1000 RoIs in detection, and SGD with momentum and decay
in the step. They take turns, call by call, each in a process of its own, so that other work on the machine meets both.
Detection suppresses by DIoU, which torchvision does not know: it suppresses by IoU, and so do the rows of suppression.
Masks are those of the boxes: neither side pastes them into the image.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import breakdown
import inference
import jax
import nms
import numpy as np
import peers
import roi_align
import timing
import train
import workload

from diou_jax.devices import to_devices
from diou_jax.kernels.trials import draw_clusters, draw_pyramid
from diou_jax.options import build

CANDIDATES = 500  # boxes an image above the score threshold
TRAIN_SIZE = (480, 640)
COLUMNS = ("work", "ours, ms: median (best)", "torchvision, ms: median (best)", "ratio of medians", "of bests")


def make_config(size: tuple[int, int], *, smoke: bool, masks: bool = False):
    """The detector that torchvision has, in float32."""
    config = workload.make_config(smoke=smoke, dtype="float32", size=size, masks=masks)
    config.resnets.stride_1x1 = False
    return config


def make_training(smoke: bool, *, masks: bool = False) -> train.Training:
    """The train step of two images."""
    return train.Training(make_config(TRAIN_SIZE, smoke=smoke, masks=masks), 2, num_classes=workload.CLASSES)


def our_training(smoke: bool, *, masks: bool = False) -> Callable:
    """A call that trains on two images."""
    training = make_training(smoke, masks=masks)
    batch = next(to_devices([training.draw_batch()], ahead=0))
    return lambda: training(batch)


def our_detection(smoke: bool, *, masks: bool = False) -> Callable:
    """A call that detects in one image."""
    config = make_config(workload.SIZE, smoke=smoke, masks=masks)
    detector = build.detector(config, workload.CLASSES)
    variables = detector.network.folded(workload.make_variables(config, detector.network))
    batch = jax.device_put(workload.draw_batch(config, 1))
    detector = inference.with_candidates(detector, variables, batch, CANDIDATES)
    return functools.partial(jax.jit(detector.detect), variables, batch)


def draw_problems(work: str, smoke: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """One image's boxes, scores and threshold."""
    problems, count, threshold = (nms.SMOKE_ROWS if smoke else nms.ROWS)[work]
    return *draw_clusters(np.random.default_rng(0), images=1, problems=problems, count=count), threshold


def our_suppression(work: str, smoke: bool) -> Callable:
    """A call that suppresses in one image."""
    boxes, scores, threshold = draw_problems(work, smoke)
    placed = jax.device_put((boxes, scores))
    return functools.partial(nms.compile((), placed, threshold=threshold), *placed)


def draw_maps(smoke: bool) -> list:
    """One pyramid with RoIs and a gradient."""
    height, width, channels, rois = (128, 192, 8, 16) if smoke else (*workload.SIZE, 256, 512)
    random = np.random.default_rng(0)
    return [draw_pyramid(random, 1, rois, height=height, width=width, channels=channels, resolution=7)]


def our_pooling(direction: str, smoke: bool) -> Callable:
    """A call that pools, or pulls the gradient back."""
    calls, _ = roi_align.in_jax(roi_align.ours, (), draw_maps(smoke), "float32", 7)
    return calls[direction][0]


def their_training(smoke: bool, *, masks: bool = False) -> Callable:
    """As `our_training`, by torchvision."""
    return peers.training(2, workload.SMOKE_SIZE if smoke else TRAIN_SIZE, dtype="float32", masks=masks)[0]


def their_detection(smoke: bool, *, masks: bool = False) -> Callable:
    """As `our_detection`, by torchvision."""
    size = workload.SMOKE_SIZE if smoke else workload.SIZE
    return peers.detection(1, size, candidates=CANDIDATES, dtype="float32", masks=masks)[0]


def their_suppression(work: str, smoke: bool) -> Callable:
    """As `our_suppression`, by torchvision."""
    return nms.in_torch(*draw_problems(work, smoke))[0]


def their_pooling(direction: str, smoke: bool) -> Callable:
    """As `our_pooling`, by torchvision."""
    return roi_align.in_torch(draw_maps(smoke), "float32", 7)[0][direction][0]


# Name of the row, function that makes our call, function that makes torchvision's, factor of --turns.
ROWS = (
    ("detection, 1 image, 800 x 1344", our_detection, their_detection, 1),
    ("train step, 2 images, 480 x 640", our_training, their_training, 1),
    (
        "Mask R-CNN, detection, 1 image, 800 x 1344",
        *(functools.partial(f, masks=True) for f in (our_detection, their_detection)),
        1,
    ),
    (
        "Mask R-CNN, train step, 2 images, 480 x 640",
        *(functools.partial(f, masks=True) for f in (our_training, their_training)),
        1,
    ),
    ("NMS, RPN, 5 x 2000 boxes", *(functools.partial(f, "RPN") for f in (our_suppression, their_suppression)), 3),
    ("NMS, final, 80 x 1000 boxes", *(functools.partial(f, "final") for f in (our_suppression, their_suppression)), 3),
    *(
        (f"RoIAlign, 512 RoIs, {way}", functools.partial(our_pooling, way), functools.partial(their_pooling, way), 3)
        for way in ("forward", "backward")
    ),
)


class Side:
    """Our call or torchvision's, in a process of its own; a context manager, which ends the process."""

    def __init__(self, make: Callable, smoke: bool):
        """Makes the call, and warms it up by two calls that do not count."""
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _set_up, (make, smoke))
        for _ in range(2):
            self()

    def __call__(self) -> float:
        """Seconds of a call."""
        return self._pool.submit(_clock).result()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown()


def _set_up(make, smoke):
    global _call
    _call = make(smoke)


def _clock():
    start = time.perf_counter()
    jax.block_until_ready(_call())  # torch's results are complete when the call returns
    return time.perf_counter() - start


def take_turns(ours: Callable, theirs: Callable | None, smoke: bool, turns: int) -> Iterator[np.ndarray]:
    """Seconds (turns,) of each side, which take turns; of ours alone without `theirs`."""
    with Side(ours, smoke) as first:
        if theirs is None:
            yield np.array([first() for _ in range(turns)])
            return
        with Side(theirs, smoke) as second:
            yield from np.array([(first(), second()) for _ in range(turns)]).T


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[""], help="parts of names; only rows whose name has one of them")
    parser.add_argument("--turns", type=int, default=11, help="calls of each side; three times as many of short ones")
    parser.add_argument("--breakdown", action="store_true", help="where the train step's time goes")
    parser.add_argument("--peak-tflops", type=float, default=0.18, help="TFLOP/s of float32 matrix products, measured")
    parser.add_argument("--peak-tbs", type=float, default=0.02, help="TB/s of a copy, measured")
    parser.add_argument("--smoke", action="store_true", help="a small network and small problems, once")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # for the other processes, too
    jax.config.update("jax_platforms", "cpu")
    options.bursts, options.length = (1, 1) if options.smoke else (5, 1)
    print(timing.header("On a CPU, float32"))
    timing.head(*COLUMNS)
    for name, ours, theirs, factor in ROWS:
        if any(part in name for part in options.rows):
            turns = 1 if options.smoke else options.turns * factor
            times = take_turns(ours, theirs if timing.has_torchvision() else None, options.smoke, turns)
            times = [seconds * 1e3 for seconds in times]
            cells = [f"{np.median(ms):.1f} ({ms.min():.1f})" for ms in times] + [None] * (2 - len(times))
            ratios = [float(f(times[1]) / f(times[0])) for f in (np.median, np.min)] if len(times) > 1 else [None] * 2
            timing.line(name, *cells, *ratios)
    if options.breakdown:
        breakdown.table(make_training(options.smoke), options)


if __name__ == "__main__":
    main()
