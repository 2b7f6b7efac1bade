"""Seconds that pycocotools takes to score an evaluation as large as COCO's, in one process and in several; no GPU.

    python benchmarks/scoring.py              # minutes
    python benchmarks/scoring.py --smoke      # seconds

5000 images of 640x480 pixels with 7 objects and 100 detections each, 80 classes, of which the first are frequent. A
detection is near an object, or anywhere; its class is that of an object of the image, or one of five others. Several
processes must give the numbers of one, bit for bit, before the table is printed.
"""

import argparse
import time

import numpy as np
import timing

from diou_jax.evaluation import cocoeval

OBJECTS, DETECTIONS, CLASSES = 7, 100, 80
PROCESSES = (1, 2, 4, 8)


def draw(images: int) -> cocoeval.Task:
    """An evaluation of some images, with its matches."""
    rng = np.random.default_rng(0)
    share = 0.94 ** np.arange(CLASSES)
    objects: list[dict] = []
    detections: list[dict] = []

    def add(entries, image, box, label, **fields):
        x, y, width, height = map(float, box)
        entries.append(
            {
                "id": len(entries) + 1,
                "image_id": image,
                "category_id": int(label),
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
                **fields,
            }
        )

    for image in range(1, images + 1):
        boxes = np.concatenate(
            [rng.uniform(0, (500, 350), (OBJECTS, 2)), np.exp(rng.uniform(2.5, 5.5, (OBJECTS, 2)))], 1
        )
        labels = 1 + rng.choice(CLASSES, OBJECTS, p=share / share.sum())
        for box, label in zip(boxes, labels, strict=True):
            add(objects, image, box, label)
        others = np.concatenate([labels, rng.integers(1, CLASSES + 1, 5)])
        for number in range(DETECTIONS):
            if number < OBJECTS:
                x, y, width, height = boxes[number]
                box = [x, y, *([width, height] * rng.uniform(0.8, 1.25, 2))]
                add(detections, image, box, labels[number], score=float(rng.beta(4, 2)))
            else:
                box = [*rng.uniform(0, (500, 350)), *np.exp(rng.uniform(2.5, 5.5, 2))]
                add(detections, image, box, rng.choice(others), score=float(rng.beta(1, 8)))
    ids = list(range(1, images + 1)), list(range(1, CLASSES + 1))
    return cocoeval.Task("bbox", *ids, objects, detections, max_dets=100, with_found=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few images")
    task = draw(20 if parser.parse_args().smoke else 5000)
    seconds, results = {}, {}
    for processes in PROCESSES:
        began = time.perf_counter()
        results[processes] = cocoeval.score(task, processes=processes)
        seconds[processes] = time.perf_counter() - began
    for found in results.values():
        for name in ("precision", "recall"):
            np.testing.assert_array_equal(getattr(found, name), getattr(results[1], name))
        np.testing.assert_array_equal(found.found.matched, results[1].found.matched)

    print(timing.header(f"Scoring {len(task.detections)} detections"))
    timing.head("processes", "seconds", "times as fast")
    for processes in PROCESSES:
        timing.line(processes, seconds[processes], seconds[1] / seconds[processes])


if __name__ == "__main__":
    main()
