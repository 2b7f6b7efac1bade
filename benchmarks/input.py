"""Images per second from JPEG files to batches, by threads and worker processes, beside bare decoding on one core.

    python benchmarks/input.py --root data/coco --datasets coco_2017_train
    python benchmarks/input.py --smoke          # a few drawn JPEGs, seconds

Batches are those of training at 800/1333 pixels. The first batch, which includes the start of the processes, and the
batches that stand ready when the clock starts do not count.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import cv2
import numpy as np
import timing
from absl import flags

from diou_jax.data import catalog, loader
from diou_jax.data.augmentation import Mirror, ScaleChoice
from diou_jax.data.make_reader import train_reader
from diou_jax.data.reader import Reader


def draw(root: pathlib.Path, count: int) -> None:
    """A COCO-format data set of `count` JPEGs of 640x480 pixels, about as large as COCO's."""
    (root / "images" / "drawn").mkdir(parents=True)
    (root / "annotations").mkdir()
    random = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        noise = random.integers(0, 256, (120, 160, 3), np.uint8)
        cv2.imwrite(str(root / "images" / "drawn" / f"{i}.jpg"), cv2.resize(noise, (640, 480)))
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [9, 9, 99, 99], "area": 9801})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "noise"}]}
    (root / "annotations" / "instances_drawn.json").write_text(json.dumps(content))


def measure_decoding(reader: Reader, count: int) -> float:
    """Images per second of OpenCV alone, one thread."""
    indices = np.concatenate([reader.schedule.entries(step).index for step in range(reader.steps)])[:count]
    files = [np.frombuffer(reader.dataset.read(int(index)), np.uint8) for index in indices]
    start = time.perf_counter()
    for file in files:
        cv2.imdecode(file, cv2.IMREAD_COLOR)
    return len(files) / (time.perf_counter() - start)


def measure(reader: Reader, *, threads: int, workers: int, seconds: float) -> tuple[float, float]:
    """Seconds to the first batch, and images per second from there on."""
    begin = time.perf_counter()
    stream = loader.batches(reader, 0, 10**6, threads=threads, workers=workers)
    next(stream)
    first = time.perf_counter()
    for _ in range(2 * threads * max(workers, 1)):
        next(stream)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += len(next(stream).image)
    rate = images / (time.perf_counter() - start)
    stream.close()
    return first - begin, rate


def main() -> None:
    """Prints one line per setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data/coco")
    parser.add_argument("--datasets", nargs="+", default=["coco_2017_train"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="per setting")
    parser.add_argument("--drawn", type=int, default=0, help="JPEGs to draw in place of --root")
    parser.add_argument("--settings", type=int, nargs=2, action="append", metavar=("THREADS", "WORKERS"))
    parser.add_argument("--smoke", action="store_true", help="drawn images, two settings, half a second each")
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    cv2.setNumThreads(0)

    with tempfile.TemporaryDirectory() as folder:
        if options.smoke:
            options.drawn, options.seconds = 16, 0.5
        if options.drawn:
            draw(pathlib.Path(folder), options.drawn)
            options.root, options.datasets = folder, ["drawn"]
        dataset = catalog.load(options.datasets, options.root)
        reader = train_reader(dataset, (Mirror(), ScaleChoice((800,), 1333)), batch_size=options.batch, seed=0)
        decoding = measure_decoding(reader, 16 if options.smoke else 256)
        print(timing.header(f"Input, batches of {options.batch}, {os.cpu_count()} cores, {len(dataset)} images"))
        print(f"decoding alone, one thread: {decoding:.0f} images/s\n")
        timing.head("threads", "workers", "first batch, s", "images/s")
        settings = [(1, 0), (2, 0), (4, 0), (1, 1), (1, 2), (1, 4), (2, 2)]
        for threads, workers in options.settings or settings[: 2 if options.smoke else None]:
            first, rate = measure(reader, threads=threads, workers=workers, seconds=options.seconds)
            timing.line(threads, workers, first, rate)


if __name__ == "__main__":
    main()
