"""Latency and images per second of detection, R-50-FPN with DIoU-NMS at 800 x 1344 in bfloat16, beside torchvision's.

    python benchmarks/inference.py
    python benchmarks/inference.py --smoke      # a sketch of the network, small images; seconds on a CPU

Images per second: the same batch again and again on the device, waiting for the last of a burst of calls; the median of
bursts. Latency: of a call by itself, from arrays on the device to detections there, and from uint8 images to detections
on the host; median, 10th and 90th percentile. Ours resizes inside the call. torchvision knows no DIoU and suppresses by
IoU.

The weights are random, so each detector has the score threshold that as many boxes exceed as those of a trained one
exceed 0.05 (`--candidates`): with none, the last suppression would cost nothing.
"""

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import peers
import timing
import workload

from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.options import build
from diou_jax.structures import Batch

COLUMNS = (
    "images",
    "",
    "images/s",
    "call in a row, ms (p10, p90)",
    "lone call, ms",
    "host to host, ms",
    "times torchvision, images/s",
    "latency",
)


def with_candidates(detector: FasterRCNN, variables: dict, batch: Batch, count: int) -> FasterRCNN:
    """The detector with the score threshold that `count` boxes of the batch exceed."""

    @jax.jit
    def scores(variables, batch):
        found = detector.candidates(variables, detector.test_pyramid(variables, batch), batch)
        return jnp.where(found.valid, found.scores, 0.0)

    ascending = np.sort(np.asarray(scores(variables, batch)), None)
    first, *others = detector.heads
    thresholds = first.detection.thresholds._replace(score=float(ascending[-min(count + 1, len(ascending))]))
    rules = dataclasses.replace(first.detection, thresholds=thresholds)
    return dataclasses.replace(detector, heads=(dataclasses.replace(first, detection=rules), *others))


def measure(
    detector: FasterRCNN, variables: dict, host: Batch, *, candidates: int, bursts: int, length: int, lone: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds per call of ours, in the three ways of `peers.detect`."""
    batch = jax.device_put(host)
    detector = with_candidates(detector, variables, batch, len(host.image) * candidates)
    detect = jax.jit(detector.detect)
    call = functools.partial(detect, variables, batch)
    return (
        timing.measure(call, jax.block_until_ready, bursts=bursts, length=length),
        timing.measure(call, jax.block_until_ready, bursts=lone, length=1),
        timing.measure(lambda: jax.device_get(detect(variables, host)), lambda _: None, bursts=lone, length=1),
    )


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--candidates", type=int, default=500, help="boxes an image above the score threshold")
    parser.add_argument("--bursts", type=int, default=20)
    parser.add_argument("--length", type=int, default=10, help="calls of a burst")
    parser.add_argument("--lone", type=int, default=100, help="calls by themselves")
    parser.add_argument("--no-peer", action="store_true", help="leave torchvision out")
    parser.add_argument("--smoke", action="store_true", help="a small network, each call once")
    options = parser.parse_args()
    workload.prepare()
    if options.smoke:
        options.batches, options.bursts, options.length, options.lone = [2], 1, 1, 1

    size = workload.SMOKE_SIZE if options.smoke else workload.SIZE
    repeats = {name: getattr(options, name) for name in ("bursts", "length", "lone", "candidates")}
    # torchvision is measured first, since our programs keep the device's memory once they have it.
    theirs = (
        {}
        if options.smoke or options.no_peer
        else {n: peers.measure(peers.detect, n, size, **repeats) for n in options.batches}
    )
    print(timing.header(f"Inference, {size[0]} x {size[1]}, {options.candidates} candidates an image, one device"))
    timing.head(*COLUMNS)
    config = workload.make_config(smoke=options.smoke)
    detector = build.detector(config, workload.CLASSES)
    variables = detector.network.folded(workload.make_variables(config, detector.network))
    for images in options.batches:
        ours = measure(detector, variables, workload.draw_batch(config, images), **repeats)
        peer = theirs.get(images)
        row, lone, _ = map(np.median, ours)
        ratios = (None, None) if peer is None else (np.median(peer[0]) / row, np.median(peer[1]) / lone)
        timing.line(images, "ours", float(images / row), *map(timing.spread, ours), *ratios)
        if peer is not None:
            rate = float(images / np.median(peer[0]))
            timing.line(images, "torchvision", rate, *map(timing.spread, peer), 1.0, 1.0)


if __name__ == "__main__":
    main()
