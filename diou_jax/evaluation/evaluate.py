"""Evaluation: detection in every image once, on all devices, scored by pycocotools."""

import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diou_jax.checkpoint.checkpoints import LAST, Checkpoints
from diou_jax.compilation import prepare
from diou_jax.configs import base
from diou_jax.data import proposals_file
from diou_jax.data.annotations import id_key
from diou_jax.data.check import check_image
from diou_jax.data.dataset import Dataset, align_classes, one_class
from diou_jax.data.decoding import decode
from diou_jax.data.loader import batches
from diou_jax.data.proposals import make_table
from diou_jax.detection.augmented import AugmentedDetection
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.devices import AXIS, replicate, to_devices
from diou_jax.errors import UserError
from diou_jax.evaluation import coco_results, metric_names, proposal_recall, true_masks
from diou_jax.evaluation.found import NOTHING, Collector, Found
from diou_jax.evaluation.validation_losses import ValidationLosses
from diou_jax.masks import Rle
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.options.trackers import make_trackers, require_trackers
from diou_jax.programs import Programs, compile_ahead, shapes
from diou_jax.reporting import picture_files
from diou_jax.reporting.curves import draw_curves
from diou_jax.reporting.progress import images_progress
from diou_jax.reporting.run_log import RunLog, print_line
from diou_jax.reporting.visualize import Objects, side_by_side
from diou_jax.structures import Batch

# Number of images of a test set that are read before anything is computed.
PROBES = 20

# Names of results files begin as the original's do, by kind of result.
RESULTS_PREFIX = {"bbox": "bbox", "segm": "segmentations"}


def evaluate(
    config: ConfigDict, workdir: str, evaluator: "Evaluator | None" = None, *, checkpoint: str = LAST
) -> list[dict]:
    """Evaluates a checkpoint in `workdir` on the config's test sets; see `Evaluator`.

    Args:
      config: the run's config.
      workdir: the run's folder.
      evaluator: that of the training run which has just ended here; None makes one. If it has evaluated the
        checkpoint already, this is not done again.
      checkpoint: "last", "best" (of those that were evaluated during training) or the step of one.

    Returns:
      Their rows of metrics.

    Raises:
      UserError: if there is no such checkpoint, data are missing, or their classes differ from the checkpoint's.
    """
    config = settle(config, workdir)
    base.check(config)
    require_trackers(config)
    prepare(config.log.compilation_cache)
    with Checkpoints(workdir, which=checkpoint, create=False) as checkpoints:
        evaluator = evaluator or Evaluator(config, workdir, checkpoints.metadata()["class_names"])
        if evaluator.done is not None and evaluator.done[0] == checkpoints.chosen():
            return evaluator.done[1]
        shapes_of_variables = evaluator.detector.network.variable_shapes()
        variables = checkpoints.restore_variables(shapes_of_variables, averaged=config.test.ema)
        step = checkpoints.chosen()
    with RunLog(workdir, active=jax.process_index() == 0, trackers=make_trackers(config, workdir)) as log:
        rows = evaluator(variables, step, log)
    if rows:
        draw_curves(workdir)
    return rows


class Evaluator:
    """Detects in a config's test sets, one after the other, and scores each separately.

    Attributes:
      detector: the config's detector for the trained classes.
      done: step and rows of the last evaluation, or None.
    """

    def __init__(self, config: ConfigDict, workdir: str, class_names: Sequence[str]):
        """Reads the annotations and some of the images, so that faulty data are found before anything is computed.

        Args:
          config: the run's config.
          workdir: the folder for results and pictures.
          class_names: K names of the network's classes, background first. Test sets may number them in any way.

        Raises:
          UserError: if data are missing or damaged, or have other classes.
        """
        self._config, self._folder = config, pathlib.Path(workdir)
        names = tuple(dict.fromkeys(config.test.datasets))
        datasets = [build.dataset(config, (name,), masks=False) for name in names]
        if not datasets:
            raise UserError("test.datasets=(): name one or more data sets to evaluate on")
        for dataset in datasets:
            if not dataset.annotation_files:
                raise UserError(f"{dataset.name} has no annotation file to evaluate by; set data.val_annotations")
        datasets = [build.with_test_proposals(config, dataset, name) for dataset, name in zip(datasets, names)]
        self._datasets = [align_classes(dataset, class_names) for dataset in datasets]
        for dataset in self._datasets:
            _refuse_unreadable(dataset)
        self._readers = [build.eval_reader(config, dataset) for dataset in self._datasets]
        if config.test.detections_per_im > config.test.max_dets:
            logging.warning(
                "test.detections_per_im=%d exceeds test.max_dets=%d, the number that counts per class and image",
                config.test.detections_per_im,
                config.test.max_dets,
            )
        self.detector = build.detector(config, len(class_names))
        self._detect = detect_function(self.detector, config)
        self._losses = self._validation_losses(class_names) if config.test.losses else None
        self.done: tuple[int, list[dict]] | None = None

    def __call__(self, variables: dict, step: int, log: RunLog) -> list[dict]:
        """Prints COCO's lines, AP by class and the ``copypaste`` lines; writes results files and pictures.

        Args:
          variables: the network's variables after `step` updates.
          step: number of updates, for names of files and rows.
          log: the log that gets rows of metrics and pictures.

        Returns:
          A row with ``dataset`` and ``eval/...`` for each data set with ground truth; in processes other than the first
          an empty list.

        Raises:
          UserError: if no image of a data set could be read.
        """
        compile_ahead(self.programs(variables))
        losses = self._losses(replicate(variables)) if self._losses else {}
        variables = replicate(self.detector.network.folded(variables))
        rows = []
        for dataset, reader in zip(self._datasets, self._readers, strict=True):
            rows.append(self._evaluate(dataset, reader, variables, step, log, losses.get(dataset.name, {})))
        self.done = step, [row for row in rows if row]
        return self.done[1]

    def metric_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the metrics of each data set with ground truth, by its name; the first one judges a network."""
        config = self._config
        if config.model.rpn_only:
            names = metric_names.proposal_metrics()
        else:
            about = {"max_dets": config.test.max_dets, "masks": config.model.mask_on}
            names = metric_names.detector_metrics(self._datasets[0].class_names, **about)
        losses = self._losses.names if self._losses else ()
        return {dataset.name: (*names, *losses) for dataset in self._datasets if dataset.annotated}

    def _validation_losses(self, class_names) -> ValidationLosses:
        """What computes losses on some images of each data set with ground truth."""
        config, readers = self._config, {}
        for dataset, name in zip(self._datasets, dict.fromkeys(config.test.datasets)):
            if not dataset.annotated:
                continue
            if config.model.mask_on:
                masked = build.with_test_proposals(config, build.dataset(config, (name,), masks=True), name)
                dataset = align_classes(masked, class_names)
            readers[dataset.name] = build.validation_reader(config, dataset)
        return ValidationLosses(self.detector, readers, seed=config.rng_seed, loading=build.loading(config))

    def programs(self, variables: dict) -> list[tuple[Programs, Any, Any]]:
        """The programs that a call with such variables needs and that are not yet compiled, for `compile_ahead`."""
        blanks = [blank for reader in self._readers for blank in reader.blanks(0, reader.steps)]
        missing = [batch for batch in to_devices(blanks, ahead=0) if not self._detect.has(batch)]
        wanted = []
        if self._losses:
            wanted += self._losses.programs(replicate(variables))
        if missing:
            variables = replicate(self.detector.network.folded(variables))
            wanted += [each for batch in missing for each in self._detect.programs(variables, batch)]
        return list({(each[0].title, shapes(each[2])): each for each in wanted}.values())

    def _evaluate(self, dataset, reader, variables, step, log, losses) -> dict:
        config, began = self._config, time.perf_counter()
        # A skipped image, which could not be read, has no detections, but its objects count.
        stream = batches(reader, 0, reader.steps, **build.loading(config))
        title, first = f"{dataset.name}, step {step}", jax.process_index() == 0
        with images_progress(len(dataset), title=title, active=first) as progress:
            found = detect_all(
                self._detect,
                variables,
                stream,
                progress=progress.update,
                mask_threshold=config.mrcnn.thresh_binarize,
            )
        if not found:
            raise UserError(
                f"{dataset.name}: none of its {len(dataset)} images could be read, {dataset.image_name(0)} first"
            )
        if jax.process_index() > 0:
            return {}
        seen, found = found.keys(), {index: found.get(index, NOTHING) for index in range(len(dataset))}
        duration = time.perf_counter() - began
        if config.model.rpn_only:
            return self._evaluate_proposals(dataset, found, sorted(seen), step, log, (duration, losses))

        results = as_results(dataset, found)
        files = {kind: self._folder / f"{RESULTS_PREFIX[kind]}_{dataset.name}_results.json" for kind in results}
        for kind, file in files.items():
            coco_results.write_results(file, results[kind])
        metrics: dict[str, float] = {}
        if dataset.annotated:
            summaries = [self._score(dataset, kind, results[kind]) for kind in results]
            for summary in summaries:
                metrics |= summary.metrics()
            metrics |= losses
            report = coco_results.report(dataset.name, summaries)
            log.scalars(step, metrics, dataset=dataset.name)
        else:
            names = " and ".join(map(str, files.values()))
            report = f"{dataset.name} has no annotations, so there is no AP: {names} for the server"
        print_line(f"step {step}: {len(dataset)} images of {dataset.name} in {duration:.1f} s")
        print_line(report)
        _print_losses(losses, dataset, step)
        self._draw(dataset, found, sorted(seen)[: config.log.images], step, log)
        return {"dataset": dataset.name, **metrics} if metrics else {}

    def _score(self, dataset, kind, results) -> coco_results.Summary:
        records = dataset.records
        ids, max_dets = records.image_ids.tolist(), self._config.test.max_dets
        sizes = dict(zip(ids, zip(records.heights.tolist(), records.widths.tolist())))
        return coco_results.evaluate(results, dataset.annotation_files, ids, kind=kind, max_dets=max_dets, sizes=sizes)

    def _evaluate_proposals(self, dataset, found, seen, step, log, about) -> dict:
        """As `_evaluate`, from the proposals of a network without a RoI head; `about`: seconds, validation losses."""
        duration, losses = about
        pairs = ((found[index].boxes, found[index].scores) for index in range(len(dataset)))
        table = make_table(dataset.records.image_ids.tolist(), pairs)
        file = self._folder / f"rpn_proposals_{dataset.name}.npz"
        proposals_file.write(file, table)
        metrics, report = {}, f"{dataset.name} has no annotations, so there is no recall"
        if dataset.annotated:
            recall = proposal_recall.measure(table, dataset.annotation_files)
            metrics, report = recall.metrics() | losses, recall.report(dataset.name)
            log.scalars(step, metrics, dataset=dataset.name)
        print_line(f"step {step}: {len(dataset)} images of {dataset.name} in {duration:.1f} s, proposals in {file}")
        print_line(report)
        _print_losses(losses, dataset, step)
        self._draw(one_class(dataset), found, seen[: self._config.log.images], step, log)
        return {"dataset": dataset.name, **metrics} if metrics else {}

    def _draw(self, dataset, found, indices, step, log):
        records, true = dataset.records, None
        if any(found[index].rles is not None for index in indices):
            sizes = {records.image_ids.tolist()[i]: (int(records.heights[i]), int(records.widths[i])) for i in indices}
            true = true_masks.by_box(dataset.annotation_files, sizes)
        for index in indices:
            picture = draw(dataset, index, found[index], true=true)
            name = f"{step:07d}_{dataset.name}_{picture_files.flat(dataset.image_name(index))}"
            with log.spared("pictures"):
                picture_files.write(self._folder / "pictures" / name, picture)
            log.image(step, f"detections/{dataset.name}/{index}", picture)


def _print_losses(losses, dataset, step):
    """Prints validation losses as the line of training has them."""
    named = {name.removeprefix("val/"): value for name, value in losses.items() if name.startswith("val/loss")}
    if named:
        values = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in named.items())
        print_line(f"step {step}: validation losses of {dataset.name}  {values}")


def _refuse_unreadable(dataset: Dataset) -> None:
    """Raises UserError if none of `PROBES` images, spread over the data set, can be read."""
    problems = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, PROBES).astype(int)).tolist():
        problem, _ = check_image(dataset, index)
        if problem is None:
            return
        problems.append(problem)
    raise UserError(f"{dataset.name}: none of {len(problems)} images tried can be read, the first: {problems[0]}")


def detect_function(detector: FasterRCNN, config: ConfigDict | None = None) -> Programs | AugmentedDetection:
    """``detect(variables, batch)`` on all local devices, which share the batch; with augmented testing by `config`."""

    def on_devices(title, function):
        return Programs(title, jax.pmap(function, AXIS, in_axes=(None, 0)))

    if config is not None and build.passes(config) is not None:
        return build.augmented_detection(config, detector, on_devices)
    return on_devices("detection", detector.detect)


def detect_all(
    detect: Callable,
    variables: dict,
    stream: Iterable[Batch],
    *,
    progress: Callable[[int], object] = lambda images: None,
    mask_threshold: float = 0.5,
) -> dict[int, Found]:
    """The valid detections in every present image of a stream of host batches.

    Args:
      detect: result of `detect_function`.
      variables: the network's variables.
      stream: batches of this process.
      progress: a function that is called after each batch with its number of images over all processes.
      mask_threshold: MRCNN.THRESH_BINARIZE.

    Returns:
      The detections by the image's row in its data set; every process gets those of all.
    """
    with Collector(mask_threshold=mask_threshold) as collector:
        waiting = None
        for batch in to_devices(stream, ahead=1):
            result = (batch.index, batch.present, batch.original_size), detect(variables, batch)
            # The device computes this batch while the host collects the one before.
            if waiting is not None:
                progress(collector.add(*waiting[0], detections=waiting[1]))
            waiting = result
        if waiting is not None:
            progress(collector.add(*waiting[0], detections=waiting[1]))
        return collector.all()


def as_results(dataset: Dataset, found: Mapping[int, Found]) -> dict[str, list[dict]]:
    """The COCO results of all images by kind: "bbox", and "segm" if there are masks."""
    ids, category_ids = dataset.records.image_ids.tolist(), dataset.category_ids
    results: dict[str, list[dict]] = {"bbox": []}
    for index, one in found.items():
        about = {"image_id": ids[index], "category_ids": category_ids}
        results["bbox"] += coco_results.to_results(one.boxes, one.scores, one.classes, **about)
        if one.rles is not None:
            mine = coco_results.to_mask_results(one.rles, one.scores, one.classes, **about)
            results.setdefault("segm", []).extend(mine)
    return results


def draw(
    dataset: Dataset,
    index: int,
    found: Found,
    *,
    score_threshold: float = 0.5,
    true: Mapping[tuple, Rle] | None = None,
) -> np.ndarray:
    """A picture of detections beside ground truth, uint8 BGR; `true` has its masks, see `true_masks.by_box`."""
    records = dataset.records
    image = decode(
        dataset.read(index),
        dataset.image_name(index),
        height=int(records.heights[index]),
        width=int(records.widths[index]),
    )
    boxes, classes, crowd = records.annotations(index)
    key = id_key(records.image_ids.tolist()[index])
    of_truth = None if true is None else [true.get((key, *box)) for box in boxes.tolist()]
    shown = np.flatnonzero(found.scores >= score_threshold).tolist()
    rles = None if found.rles is None else [found.rles[row] for row in shown]
    return side_by_side(
        image,
        Objects(found.boxes[shown], found.classes[shown], scores=found.scores[shown], rles=rles),
        Objects(boxes, classes, crowd=crowd, rles=of_truth),
        class_names=dataset.class_names,
    )
