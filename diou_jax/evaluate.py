"""Evaluation: every image once, on all devices, judged by pycocotools."""

import pathlib
import time
from collections.abc import Callable, Iterable

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
from diou_jax.open_options import settle
from diou_jax.train_step import AXIS, replicate, to_devices
from diou_jax.visualize import side_by_side, write_image

NOTHING = Detections(
    boxes=np.zeros((0, 4), np.float32),
    scores=np.zeros(0, np.float32),
    classes=np.zeros(0, np.int32),
    valid=np.zeros(0, bool),
)


def evaluate(config: ConfigDict, workdir: str) -> dict[str, float]:
    """Evaluates the newest checkpoint in `workdir` on the config's test sets; see `Evaluator`.

    Returns:
      The row of metrics, ``eval/...``.

    Raises:
      UserError: there is no checkpoint, or the data is missing.
    """
    config = settle(config, workdir)
    build.check(config)
    cache_compilations(config.log.compilation_cache)
    evaluator = Evaluator(config, workdir)
    with Checkpoints(workdir, create=False) as checkpoints:
        variables = checkpoints.restore_variables(evaluator.detector.network.variable_shapes())
        step = checkpoints.latest()
    with RunLog(workdir, active=jax.process_index() == 0) as log:
        metrics = evaluator(variables, step, log)
    if metrics:
        draw_curves(workdir)
    return metrics


class Evaluator:
    """Finds everything in a config's test sets and has it judged.

    Attributes:
      detector: of the config, for the classes of the test sets.
    """

    def __init__(self, config: ConfigDict, workdir: str):
        """Reads the annotations; raises UserError where they are missing."""
        self._config, self._folder = config, pathlib.Path(workdir)
        self._dataset = build.dataset(config, config.test.datasets)
        if not self._dataset.annotation_files:
            raise UserError(f"{self._dataset.name} has no annotation file to evaluate by; set data.val_annotations")
        self.detector = build.detector(config, len(self._dataset.class_names))
        self._detect = detect_function(self.detector)
        self._reader = build.eval_reader(config, self._dataset)

    def __call__(self, variables: dict, step: int, log: RunLog) -> dict[str, float]:
        """Prints the twelve COCO lines, AP by class and the ``copypaste`` lines; leaves results file and pictures.

        Args:
          variables: of the network, after `step` updates.
          step: for names and rows.
          log: takes the row of metrics and the pictures.

        Returns:
          The row, ``eval/...``; nothing in other processes than the first.
        """
        dataset, config, began = self._dataset, self._config, time.perf_counter()
        # An image that could not be read and was to be skipped has no detections, but it counts.
        stream = batches(self._reader, 0, self._reader.steps, **build.loading(config))
        variables = replicate(self.detector.network.folded(variables))
        found = detect_all(self._detect, variables, stream)
        if jax.process_index() > 0:
            return {}
        seen, found = found.keys(), {index: found.get(index, NOTHING) for index in range(len(dataset))}
        say(f"step {step}: {len(dataset)} images of {dataset.name} in {time.perf_counter() - began:.1f} s")

        results = [result for index in range(len(dataset)) for result in as_results(dataset, index, found[index])]
        coco_results.write_results(self._folder / f"bbox_{dataset.name}_results.json", results)
        summary = coco_results.evaluate(results, dataset.annotation_files, dataset.records.image_ids.tolist())
        say(summary.report(dataset.name))
        metrics = summary.metrics()
        log.scalars(step, metrics)
        for index in sorted(seen)[: config.log.images]:
            picture = draw(dataset, index, found[index])
            name = f"{step:07d}_{pathlib.Path(dataset.image_name(index)).stem}.png"
            write_image(self._folder / "pictures" / name, picture)
            log.image(step, f"detections/{index}", picture)
        return metrics


def detect_function(detector: FasterRCNN):
    """``detect(variables, batch)`` on all local devices, the batch split over them."""
    return jax.pmap(detector.detect, AXIS, in_axes=(None, 0))


def detect_all(detect: Callable, variables: dict, stream: Iterable[Batch]) -> dict[int, Detections]:
    """The valid detections in every image that is present in a stream of host batches.

    Args:
      detect: from `detect_function`.
      variables: of the network.
      stream: batches of this process.

    Returns:
      Numpy `Detections` without the leading axis, by the image's row in its data set; in every process those of all.
    """
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
