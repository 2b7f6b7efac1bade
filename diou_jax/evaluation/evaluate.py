"""Evaluation: detection in every image once, on all devices, scored by pycocotools."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from diou_jax.analysis.suppression import SideBySide, side_by_side
from diou_jax.checkpoint.checkpoints import LAST, Checkpoints
from diou_jax.compilation import prepare
from diou_jax.configs import base
from diou_jax.data import proposals_file
from diou_jax.data.dataset import Dataset, align_classes, one_class
from diou_jax.data.loader import batches
from diou_jax.data.proposals import make_table
from diou_jax.detection.staged import Selection
from diou_jax.devices import replicate
from diou_jax.errors import UserError
from diou_jax.evaluation import coco_results, metric_names, proposal_recall
from diou_jax.evaluation.datasets import open_datasets
from diou_jax.evaluation.detect_all import detect_all, detect_each, detect_function, missing_programs, on_devices
from diou_jax.evaluation.found import NOTHING, Found
from diou_jax.evaluation.given_options import given_options
from diou_jax.evaluation.pictures import write_pictures
from diou_jax.evaluation.report import Report
from diou_jax.evaluation.thresholds_file import write_thresholds
from diou_jax.evaluation.unwritten import Unwritten
from diou_jax.evaluation.validation_losses import ValidationLosses
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.options.trackers import make_trackers, require_trackers
from diou_jax.programs import Programs, compile_ahead
from diou_jax.reporting.curves import draw_curves
from diou_jax.reporting.progress import images_progress
from diou_jax.reporting.run_log import RunLog, print_line
from diou_jax.reporting.run_page import is_training, write_index

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
      UserError: if there is no such checkpoint, data are missing, or their classes differ from the checkpoint's; at the
        end, if a file could not be written.
    """
    config = settle(config, workdir)
    base.check(config)
    require_trackers(config)
    prepare(config.log.compilation_cache)
    with Checkpoints(workdir, which=checkpoint, create=False) as checkpoints:
        evaluator = evaluator or Evaluator(config, workdir, checkpoints.metadata()["class_names"])
        if evaluator.done is not None and evaluator.done[0] == checkpoints.chosen():
            evaluator.unwritten.check()
            return evaluator.done[1]
        shapes_of_variables = evaluator.detector.network.variable_shapes()
        variables = checkpoints.restore_variables(shapes_of_variables, averaged=config.test.ema)
        step = checkpoints.chosen()
    with RunLog(workdir, active=jax.process_index() == 0, trackers=make_trackers(config, workdir)) as log:
        rows = evaluator(variables, step, log)
        if config.log.report and jax.process_index() == 0:
            write_index(log, training=is_training(workdir))
    if rows:
        draw_curves(workdir)
    evaluator.unwritten.check()
    return rows


class Evaluator:
    """Detects in a config's test sets, one after the other, and scores each separately.

    Attributes:
      detector: the config's detector for the trained classes.
      done: step and rows of the last evaluation, or None.
      unwritten: the files that the last evaluation could not write.
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
        self._datasets = open_datasets(config, class_names)
        self._readers = [build.eval_reader(config, dataset) for dataset in self._datasets]
        if config.test.detections_per_im > config.test.max_dets:
            logging.warning(
                "test.detections_per_im=%d exceeds test.max_dets=%d, the number that counts per class and image",
                config.test.detections_per_im,
                config.test.max_dets,
            )
        self.detector = build.detector(config, len(class_names))
        self._detect = detect_function(self.detector, config)
        self._both = None
        if config.test.compare_nms and self.detector.heads:
            own = self.detector.detection_rules
            hard = [Selection(own.hard_nms(diou=diou), masks=False) for diou in (False, True)]
            self._both = build.staged_detection(config, self.detector, on_devices, selections=[Selection(own), *hard])
        self._losses = self._validation_losses(class_names) if config.test.losses else None
        self.done: tuple[int, list[dict]] | None = None
        self.unwritten = Unwritten()

    def __call__(self, variables: dict, step: int, log: RunLog) -> list[dict]:
        """Prints COCO's lines, AP by class and the ``copypaste`` lines; writes results files, pictures and report.html.

        A file that cannot be written is named and left out.

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
        self.unwritten = Unwritten()
        compile_ahead(self.programs(variables))
        losses = self._losses(replicate(variables)) if self._losses else {}
        variables = replicate(self.detector.network.folded(variables))
        page = Report(self._config, log, step) if self._config.log.report and jax.process_index() == 0 else None
        rows, given = [], given_options(log.workdir, self._config)
        for dataset, reader in zip(self._datasets, self._readers, strict=True):
            out = _Outputs(step, log, page, losses.get(dataset.name, {}), given)
            rows.append(self._evaluate(dataset, reader, variables, out))
        if page is not None:
            page.write()
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
        """The function that computes losses on some images of each data set with ground truth."""
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
        losses = self._losses.programs(replicate(variables)) if self._losses else []
        return losses + missing_programs(
            self._both or self._detect, self._readers, lambda: replicate(self.detector.network.folded(variables))
        )

    def _evaluate(self, dataset, reader, variables, out) -> dict:
        config, began = self._config, time.perf_counter()
        step, log, page = out.step, out.log, out.page
        # A skipped image, which could not be read, has no detections, but its objects count.
        stream = batches(reader, 0, reader.steps, **build.loading(config))
        title, first = f"{dataset.name}, step {step}", jax.process_index() == 0
        with images_progress(len(dataset), title=title, active=first) as progress:
            found, *both = self._find(variables, stream, progress.update)
        if not found:
            raise UserError(
                f"{dataset.name}: none of its {len(dataset)} images could be read, {dataset.image_name(0)} first"
            )
        if jax.process_index() > 0:
            return {}
        seen, found = found.keys(), {index: found.get(index, NOTHING) for index in range(len(dataset))}
        duration = time.perf_counter() - began
        if config.model.rpn_only:
            return self._evaluate_proposals(dataset, found, sorted(seen), duration, out)

        results = as_results(dataset, found)
        files: list[pathlib.Path] = []
        for kind, of_kind in results.items():
            file = self._folder / f"{RESULTS_PREFIX[kind]}_{dataset.name}_results.json"
            with self.unwritten.noting(file, files):
                coco_results.write_results(file, of_kind)
        metrics: dict[str, float] = {}
        summaries: list[coco_results.Summary] = []
        if dataset.annotated:
            options = {"max_dets": config.test.max_dets, "with_matches": True}
            summaries = [score(dataset, kind, results[kind], **options) for kind in results]
            assert summaries[0].matches is not None
            thresholds = self._folder / f"thresholds_{dataset.name}.json"
            with self.unwritten.noting(thresholds, files):
                write_thresholds(thresholds, summaries[0].matches)
            for summary in summaries:
                metrics |= summary.metrics()
            metrics |= out.losses
            report = coco_results.report(dataset.name, summaries)
            log.scalars(step, metrics, dataset=dataset.name, options=out.given)
        else:
            report = f"{dataset.name} has no annotations, so there is no AP"
            report += f": {' and '.join(map(str, files))} for the server" if files else ""
        print_line(f"step {step}: {len(dataset)} images of {dataset.name} in {duration:.1f} s")
        print_line(report)
        _print_losses(out.losses, dataset, step)
        suppression = None
        if both and dataset.annotated:
            suppression = self._compare_nms(dataset, both, summaries[0].matches)
            print_line("\n".join([*suppression.lines(), ""]))
        pictures = {"folder": self._folder / "pictures", "step": step, "log": log}
        write_pictures(dataset, found, sorted(seen)[: config.log.images], **pictures)
        if page is not None:
            about = {"files": files, "unread": len(dataset) - len(seen), "seconds": duration}
            page.add(dataset, results, summaries, suppression=suppression, **about)
        return {"dataset": dataset.name, **metrics} if metrics else {}

    def _find(self, variables, stream, progress) -> tuple[dict[int, Found], ...]:
        """The detections by image; with `test.compare_nms` also those of greedy NMS and of DIoU-NMS."""
        threshold = self._config.mrcnn.thresh_binarize
        if self._both is None:
            found = detect_all(self._detect, variables, stream, progress=progress, mask_threshold=threshold)
            return (found,)
        return detect_each(self._both.several, variables, stream, progress=progress, mask_thresholds=(threshold,) * 3)

    def _compare_nms(self, dataset, both, own) -> SideBySide:
        """Greedy NMS beside DIoU-NMS, from the detections of both by image and the matches of the run's own."""
        test, rules, matches = self._config.test, self.detector.detection_rules, []
        for diou, found in enumerate(both):
            if rules == rules.hard_nms(diou=bool(diou)):
                matches.append(own)  # COCOeval takes long
                continue
            results = as_results(dataset, found)["bbox"]
            matches.append(score(dataset, "bbox", results, max_dets=test.max_dets, with_matches=True).matches)
        return side_by_side(*matches, limit=test.detections_per_im)

    def _evaluate_proposals(self, dataset, found, seen, duration, out) -> dict:
        """As `_evaluate`, from the proposals of a network without a RoI head."""
        step, log, page = out.step, out.log, out.page
        pairs = ((found[index].boxes, found[index].scores) for index in range(len(dataset)))
        table = make_table(dataset.records.image_ids.tolist(), pairs)
        file = self._folder / f"rpn_proposals_{dataset.name}.npz"
        written: list[pathlib.Path] = []
        with self.unwritten.noting(file, written):
            proposals_file.write(file, table)
        values: dict[str, float] = {}
        metrics, report = {}, f"{dataset.name} has no annotations, so there is no recall"
        if dataset.annotated:
            recall = proposal_recall.measure(table, dataset.annotation_files)
            values = recall.values
            metrics, report = recall.metrics() | out.losses, recall.report(dataset.name)
            log.scalars(step, metrics, dataset=dataset.name, options=out.given)
        place = f", proposals in {file}" if written else ""
        print_line(f"step {step}: {len(dataset)} images of {dataset.name} in {duration:.1f} s{place}")
        print_line(report)
        _print_losses(out.losses, dataset, step)
        pictures = {"folder": self._folder / "pictures", "step": step, "log": log}
        write_pictures(one_class(dataset), found, seen[: self._config.log.images], **pictures)
        if page is not None:
            proposals = sum(len(one.scores) for one in found.values())
            unread = len(dataset) - len(seen)
            page.add_recall(dataset, values, proposals=proposals, unread=unread, seconds=duration)
        return {"dataset": dataset.name, **metrics} if metrics else {}


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """Where the results of a data set go after `step` updates.

    `losses` are those of its images, by name; `given` are the options that differ from the run's.
    """

    step: int
    log: RunLog
    page: Report | None
    losses: Mapping[str, float]
    given: Mapping[str, Any]


def _print_losses(losses, dataset, step):
    """Prints validation losses as the line of training has them."""
    named = {name.removeprefix("val/"): value for name, value in losses.items() if name.startswith("val/loss")}
    if named:
        values = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in named.items())
        print_line(f"step {step}: validation losses of {dataset.name}  {values}")


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


def score(
    dataset: Dataset, kind: str, results: Sequence[Mapping], *, max_dets: int, with_matches: bool = False
) -> coco_results.Summary:
    """The scores of COCO results of a data set; see `coco_results.evaluate`."""
    records = dataset.records
    ids = records.image_ids.tolist()
    sizes = dict(zip(ids, zip(records.heights.tolist(), records.widths.tolist())))
    return coco_results.evaluate(
        results, dataset.annotation_files, ids, kind=kind, max_dets=max_dets, sizes=sizes, with_matches=with_matches
    )
