"""Gathers the results of an evaluation for `report.html`."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from diou_jax.analysis.suppression import SideBySide
from diou_jax.data.annotations import id_key
from diou_jax.data.dataset import BadImageError, Dataset, clean_boxes
from diou_jax.data.decoding import decode
from diou_jax.evaluation import true_masks
from diou_jax.evaluation.coco_results import Summary
from diou_jax.masks import Rle
from diou_jax.reporting.document import count
from diou_jax.reporting.findings import analyse
from diou_jax.reporting.gallery import Photo, data_uri
from diou_jax.reporting.report_page import ReportedRun, TestSet, write_report
from diou_jax.reporting.run_log import RunLog, print_line, read_metrics
from diou_jax.reporting.run_page import REPORT_FILE


class DatasetAlbum:
    """The images of a data set for a page, an `Album`; masks of objects are read when the first one is asked for."""

    def __init__(self, dataset: Dataset, results: Mapping[str, Sequence[Mapping]], *, masks: bool = False):
        """Takes the COCO results by kind, whose masks are drawn; `masks`: whether objects have theirs without them."""
        self._dataset, self._results, self._masks = dataset, results, masks or "segm" in results
        self._row = {id_key(key): row for row, key in enumerate(dataset.records.image_ids.tolist())}
        self._true: dict[tuple, Rle] | None = None

    def photo(self, image_id: int | str) -> Photo:
        """As `Album.photo`."""
        row = self._row[id_key(image_id)]
        name, (height, width) = self._dataset.image_name(row), self._size(row)
        path, source = pathlib.Path(name), ""
        with contextlib.suppress(BadImageError):
            source = data_uri(decode(self._dataset.read(row), name, height=height, width=width))
        with contextlib.suppress(OSError, ValueError):
            if path.is_file():
                return Photo(path.name, path.resolve().as_uri(), source, (width, height))
        return Photo(path.name, "", source, (width, height))

    def _size(self, row):
        records = self._dataset.records
        return int(records.heights[row]), int(records.widths[row])

    def found_mask(self, kind: str, result: int) -> Rle | None:
        """As `Album.found_mask`; the masks of boxes are in the results of the same rows."""
        masks = self._results.get("segm")
        return masks[result]["segmentation"] if masks else None

    def true_mask(self, image_id: int | str, box: Sequence[float]) -> Rle | None:
        """As `Album.true_mask`; None for a detector without masks."""
        if not self._masks:
            return None
        if self._true is None:
            ids = self._dataset.records.image_ids.tolist()
            sizes = {key: self._size(row) for row, key in enumerate(ids)}
            self._true = true_masks.by_box(self._dataset.annotation_files, sizes)
        key = id_key(image_id)
        corners, *_ = clean_boxes(np.asarray(box), *self._size(self._row[key]))
        return self._true.get((key, *corners[0].tolist()))


class Report:
    """Gathers the test sets of an evaluation and writes `report.html` at its end.

    A page must not end a run: whatever goes wrong is logged, and the evaluation goes on.
    """

    def __init__(self, config: ConfigDict, log: RunLog, step: int):
        """Begins a page on the weights after `step` updates."""
        self._config, self._log, self._step = config, log, step
        self._sets: list[TestSet] = []
        self._data: list[tuple[str, str]] = []
        self._times: list[tuple[str, str]] = []

    def add(
        self,
        dataset: Dataset,
        results: Mapping[str, Sequence[Mapping]],
        summaries: Sequence[Summary],
        *,
        files: Sequence[pathlib.Path],
        unread: int,
        seconds: float,
        suppression: SideBySide | None = None,
    ) -> None:
        """Adds a test set.

        Args:
          dataset: the test set.
          results: its COCO results by kind.
          summaries: their scores, with matches; empty without annotations.
          files: the files that the evaluation has written into the folder of the page.
          unread: number of images that could not be read.
          seconds: time of detection.
          suppression: greedy NMS and DIoU-NMS side by side.
        """
        with self._no_harm("analysed"):
            began = time.perf_counter()
            found = {
                one.kind: analyse(one.matches, seed=self._config.rng_seed)
                for one in summaries
                if one.matches is not None
            }
            spent = time.perf_counter() - began
            self._note(dataset, seconds, spent)
            album = DatasetAlbum(dataset, results)
            names = [file.name for file in files]
            detections = len(results["bbox"])
            one = TestSet(dataset.name, len(dataset), unread, detections, seconds, names, found, album)
            self._sets.append(dataclasses.replace(one, suppression=suppression))

    def add_recall(
        self, dataset: Dataset, values: Mapping[str, float], *, proposals: int, unread: int, seconds: float
    ) -> None:
        """Adds a test set of an RPN alone; `values` is its average recall by name, empty without annotations."""
        with self._no_harm("analysed"):
            self._note(dataset, seconds, 0.0)
            album = DatasetAlbum(dataset, {})
            self._sets.append(
                TestSet(dataset.name, len(dataset), unread, proposals, seconds, [], {}, album, recall=values)
            )

    def _note(self, dataset, seconds, spent):
        objects = int((~dataset.records.crowd).sum())
        about = f"{count(len(dataset))} images, {count(objects)} objects, {len(dataset.class_names) - 1} classes"
        self._data.append((f"test set {dataset.name}", about))
        self._data += [(f"annotations of {dataset.name}", file) for file in dataset.annotation_files]
        self._data += [
            (f"{dataset.name}: left out", f"{number} {kind}") for kind, number in dataset.faults.counts.items()
        ]
        self._times.append((f"detection in {dataset.name}", f"{seconds:.1f} s"))
        if spent:
            self._times.append((f"analysis of {dataset.name}", f"{spent:.1f} s"))

    def write(self) -> None:
        """Writes the page."""
        with self._no_harm("written"), self._log.spared("report.html"):
            data = [("training sets", ", ".join(self._config.train.datasets)), *self._data]
            run = ReportedRun(
                name=self._log.workdir.resolve().name,
                step=self._step,
                config=self._config.to_dict(),
                rows=read_metrics(self._log.workdir),
                data=data,
                times=self._times,
            )
            if self._sets:
                write_report(self._log.workdir, run, self._sets)
                print_line(f"the report is {self._log.workdir / REPORT_FILE}")

    @contextlib.contextmanager
    def _no_harm(self, what: str):
        try:
            yield
        except Exception:
            logging.exception("report.html cannot be %s, and the run goes on without it", what)
