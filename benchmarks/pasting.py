"""Images per second of pasting masks, and of an evaluation with and without masks; host work, no GPU.

    python benchmarks/pasting.py              # a minute
    python benchmarks/pasting.py --smoke      # seconds

Every image has 640x480 pixels and 100 detections with masks of 28x28 cells. Boxes: the square root of the area is
log-uniform from 8 to 480 pixels, the aspect ratio log-uniform from 1/2 to 2, the place uniform; the mean area is about
27,000 pixels. Masks: a bump with smooth and independent noise, about 200 runs each.

"plain" fills an image per detection and has pycocotools encode it. Both ways must give the same strings before they are
timed. The second table runs `detect_all` with a device that computes nothing and gives its results at a fixed rate.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import jax
import numpy as np
import timing
from pycocotools import mask as coco_mask

from diou_jax import masks
from diou_jax.evaluation.evaluate import detect_all
from diou_jax.structures import Detections, blank_batch

HEIGHT, WIDTH, CELLS = 480, 640, 28
THREADS = (1, 2)

DETECTIONS = 100

# Images per second of the devices that the second table imitates, and images of a batch.
DEVICE_RATES, BATCH = (30.0, 60.0, 120.0, np.inf), 8


def draw(rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks and boxes of an image's detections."""
    side = np.exp(rng.uniform(np.log(8), np.log(480), number))
    stretch = np.exp(rng.uniform(-0.5, 0.5, number) * np.log(2))
    size = np.minimum(np.stack([side * stretch, side / stretch], 1), [WIDTH - 1, HEIGHT - 1])
    corner = rng.uniform(0, 1, (number, 2)) * ([WIDTH - 1, HEIGHT - 1] - size)
    y, x = np.mgrid[-1 : 1 : CELLS * 1j, -1 : 1 : CELLS * 1j]
    waves = np.stack([x * y, np.sin(3 * x), np.cos(4 * y)])
    logits = 4 * (1 - x**2 - y**2) + np.tensordot(rng.uniform(-3, 3, (number, 3)), waves, 1)
    logits += rng.normal(0, 0.3, logits.shape)
    boxes = np.concatenate([corner, corner + size], 1)
    return (1 / (1 + np.exp(-logits))).astype(np.float32), boxes.astype(np.float32)


def ours(probabilities: np.ndarray, boxes: np.ndarray) -> list[str]:
    """The strings of an image's masks."""
    return [rle["counts"] for rle in masks.encode(probabilities, boxes, height=HEIGHT, width=WIDTH)]


def plain(probabilities: np.ndarray, boxes: np.ndarray) -> list[str]:
    """The same by an image per mask."""
    grids = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    found = []
    for grid, (x1, y1, x2, y2) in zip(grids, masks.reference_boxes(boxes, resolution=CELLS).tolist(), strict=True):
        stretched = cv2.resize(grid, (x2 - x1 + 1, y2 - y1 + 1)) > 0.5
        image = np.zeros((HEIGHT, WIDTH), np.uint8)
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, WIDTH), min(y2 + 1, HEIGHT)
        image[top:bottom, left:right] = stretched[top - y1 : bottom - y1, left - x1 : right - x1]
        found.append(coco_mask.encode(np.asfortranarray(image))["counts"].decode())
    return found


def rate(way, images, *, threads: int) -> float:
    """Images per second of a way in some threads."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda image: way(*image), images[:threads]))
        began = time.perf_counter()
        list(pool.map(lambda image: way(*image), images))
        return len(images) / (time.perf_counter() - began)


class Pending:
    """An array that the device has computed at a certain time; whoever reads it waits until then."""

    def __init__(self, array: np.ndarray, ready: float):
        """Takes the array and the time, as `time.perf_counter` counts it."""
        self._array, self._ready = array, ready
        self.shape = array.shape

    def __array__(self, dtype=None, copy=None):
        time.sleep(max(self._ready - time.perf_counter(), 0))
        return self._array


def evaluation_rate(images, *, with_masks: bool, device_rate: float) -> float:
    """Images per second of `detect_all` with a device that computes `device_rate` images per second."""
    devices, ready = jax.local_device_count(), 0.0
    probabilities, boxes = (np.stack(column) for column in zip(*images, strict=True))
    blank = blank_batch(BATCH, 32, 32)
    blank = blank.replace(original_size=np.tile(np.array([[HEIGHT, WIDTH]], np.int32), (BATCH, 1)))
    numbers = np.arange(len(images) // BATCH * BATCH, dtype=np.int32).reshape(-1, BATCH)

    def detect(_, batch):
        nonlocal ready
        ready = max(ready, time.perf_counter()) + BATCH / device_rate
        rows = np.asarray(batch.index)
        shape = rows.shape + boxes.shape[1:2]
        columns = boxes[rows], np.ones(shape, np.float32), np.ones(shape, np.int32), np.ones(shape, bool)
        columns += (probabilities[rows],) if with_masks else ()
        return Detections(*(Pending(column, ready) for column in columns))

    began = time.perf_counter()
    found = detect_all(detect, {}, (blank.replace(index=rows) for rows in numbers))
    assert BATCH % devices == 0 and len(found) == numbers.size
    return len(found) / (time.perf_counter() - began)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few images")
    count = 16 if parser.parse_args().smoke else 320
    rng = np.random.default_rng(0)
    images = [draw(rng, DETECTIONS) for _ in range(count)]
    for image in images[:8]:
        assert ours(*image) == plain(*image), "the two ways differ"

    print(timing.header("Pasting, images per second"))
    timing.head("threads", "run lengths from the box", "plain", "ratio")
    for threads in THREADS:
        # Alternating, so that other work on the machine meets both alike.
        rates = np.array([[rate(way, images, threads=threads) for way in (ours, plain)] for _ in range(3)])
        best = rates.max(0)
        timing.line(threads, float(best[0]), float(best[1]), float(best[0] / best[1]))

    print("\n" + timing.header("Evaluation without COCOeval, images per second"))
    timing.head("the device's", "boxes", "boxes and masks")
    for device_rate in DEVICE_RATES:
        cells = [evaluation_rate(images, with_masks=flag, device_rate=device_rate) for flag in (False, True)]
        timing.line(device_rate if np.isfinite(device_rate) else "any", *cells)


if __name__ == "__main__":
    main()
