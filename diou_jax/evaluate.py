"""Evaluation: every image once, on all devices, judged by pycocotools."""

import pathlib
import time
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from diou_jax import build, coco_results
from diou_jax.batch import Batch
from diou_jax.checkpoint import Checkpoints
from diou_jax.compilation import cache_compilations
from diou_jax.data.dataset import Dataset
from diou_jax.data.loader import batches
from diou_jax.data.transforms import decode
from diou_jax.detector.detections import Detections
from diou_jax.detector.faster_rcnn import FasterRCNN
from diou_jax.errors import UserError
from diou_jax.logging import RunLog, draw_curves, say
from diou_jax.train_step import AXIS, to_devices
from diou_jax.visualize import side_by_side, write_image

NOTHING = Detections(
    boxes=np.zeros((0, 4), np.float32),
    scores=np.zeros(0, np.float32),
    classes=np.zeros(0, np.int32),
    valid=np.zeros(0, bool),
)


def evaluate(config: ConfigDict, workdir: str) -> dict[str, float]:
    """Evaluates the newest checkpoint in `workdir` on the config's test sets.

    Prints the twelve COCO lines, AP by class and the ``copypaste`` lines; leaves the results file, pictures, curves
    and a row of metrics.

    Returns:
      The row of metrics, ``eval/...``.

    Raises:
      UserError: there is no checkpoint, or the data is missing.
    """
    build.check(config)
    cache_compilations(config.log.compilation_cache)
    dataset = build.dataset(config, config.test.datasets)
    if not dataset.annotation_files:
        raise UserError(f"{dataset.name} has no annotation file to evaluate against; set data.val_annotations")
    detector = build.detector(config, len(dataset.class_names))
    shapes = detector.network.variable_shapes()
    with Checkpoints(workdir, create=False) as checkpoints:
        variables, step = checkpoints.restore_variables(shapes), checkpoints.latest()

    # An image that could not be read and was to be skipped has no detections, but it counts.
    reader = build.eval_reader(config, dataset)
    began = time.perf_counter()
    found = detect_all(detector, variables, batches(reader, 0, reader.steps, **build.loading(config)))
    found = {index: found.get(index, NOTHING) for index in range(len(dataset))}
    if jax.process_index() > 0:
        return {}
    say(f"step {step}: {len(dataset)} images of {dataset.name} in {time.perf_counter() - began:.1f} s")

    results = [result for index in range(len(dataset)) for result in as_results(dataset, index, found[index])]
    folder = pathlib.Path(workdir)
    coco_results.write_results(folder / f"bbox_{dataset.name}_results.json", results)
    summary = coco_results.evaluate(results, dataset.annotation_files, dataset.records.image_ids.tolist())
    say(summary.report(dataset.name))
    metrics = summary.metrics()
    with RunLog(workdir) as log:
        log.scalars(step, metrics)
        for index in range(min(config.log.images, len(dataset))):
            picture = draw(dataset, index, found[index])
            write_image(folder / "pictures" / f"{step:07d}_{pathlib.Path(dataset.image_name(index)).stem}.png", picture)
            log.image(step, f"detections/{index}", picture)
    draw_curves(workdir)
    return metrics


def detect_all(detector: FasterRCNN, variables: dict, stream: Iterable[Batch]) -> dict[int, Detections]:
    """The valid detections in every image that is present in a stream of host batches.

    Returns:
      Numpy `Detections` without the leading axis, by the image's row in its data set; in every process those of all.
    """
    detect = jax.pmap(detector.detect, AXIS, in_axes=(None, 0))
    found = {}

    def collect(rows, present, detections):
        rows, present, detections = jax.tree.map(
            lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), (rows, present, detections)
        )
        if jax.process_count() > 1:
            rows, present, detections = multihost_utils.process_allgather((rows, present, detections), tiled=True)
        for slot in np.flatnonzero(present):
            one = jax.tree.map(lambda x, slot=slot: x[slot], detections)
            found[int(rows[slot])] = jax.tree.map(lambda x, valid=one.valid: x[valid], one)

    waiting = None
    for batch in to_devices(stream, ahead=1):
        result = (batch.index, batch.present, detect(variables, batch))
        # The device works on this batch while the host collects the one before.
        if waiting is not None:
            collect(*waiting)
        waiting = result
    if waiting is not None:
        collect(*waiting)
    return found


def as_results(dataset: Dataset, index: int, found: Detections) -> list[dict]:
    """COCO results of one image."""
    image_id = dataset.records.image_ids[index]
    return coco_results.to_results(
        found.boxes,
        found.scores,
        found.classes,
        image_id=image_id.item() if isinstance(image_id, np.generic) else image_id,
        category_ids=dataset.category_ids,
    )


def draw(dataset: Dataset, index: int, found: Detections, *, score_threshold: float = 0.5) -> np.ndarray:
    """Detections beside ground truth, uint8 BGR."""
    records = dataset.records
    image = decode(
        dataset.read(index),
        dataset.image_name(index),
        height=int(records.heights[index]),
        width=int(records.widths[index]),
    )
    boxes, classes, crowd = records.annotations(index)
    shown = found.scores >= score_threshold
    return side_by_side(
        image,
        found.boxes[shown],
        found.classes[shown],
        found.scores[shown],
        truth_boxes=boxes,
        truth_classes=classes,
        truth_crowd=crowd,
        class_names=dataset.class_names,
    )
