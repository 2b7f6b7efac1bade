"""Several settings of test options, evaluated from one run of the network over the test sets."""

import math
import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
from ml_collections import ConfigDict

from diou_jax.analysis.comparison import Comparison, Side, compare
from diou_jax.checkpoint.checkpoints import LAST, Checkpoints
from diou_jax.compilation import prepare
from diou_jax.configs import base
from diou_jax.data.dataset import Dataset
from diou_jax.data.loader import batches
from diou_jax.detection.staged import Selection
from diou_jax.devices import replicate
from diou_jax.errors import UserError
from diou_jax.evaluation import coco_results
from diou_jax.evaluation.datasets import open_datasets
from diou_jax.evaluation.detect_all import detect_each, missing_programs, on_devices
from diou_jax.evaluation.evaluate import RESULTS_PREFIX, as_results, score
from diou_jax.evaluation.found import NOTHING, Found
from diou_jax.evaluation.report import DatasetAlbum
from diou_jax.evaluation.unwritten import Unwritten
from diou_jax.files import shortened, writable_folder
from diou_jax.nested_config import flatten
from diou_jax.option_groups import AFTER_NETWORK
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.programs import compile_ahead
from diou_jax.reporting.comparison_page import SWEEP_FILE, write_comparison
from diou_jax.reporting.comparison_table import comparison_lines
from diou_jax.reporting.progress import images_progress
from diou_jax.reporting.run_log import METRICS_FILE, RunLog, print_line
from diou_jax.reporting.run_page import is_training, write_index
from diou_jax.workdir.metrics_file import append_row
from diou_jax.workdir.run_config import CONFIG_FILE, keep_config

# The folder below a run's in which each setting has a folder of its own.
FOLDER = "sweep"


def sweep(
    config: ConfigDict, workdir: str, settings: Mapping[str, ConfigDict], *, checkpoint: str = LAST
) -> list[Comparison]:
    """Evaluates a checkpoint in `workdir` with several settings, and compares them with the first.

    Each setting gets the results of an evaluation with its options alone, bit for bit: `workdir`/sweep/SETTING holds
    its results files, its config and its numbers, so that it can be compared with other runs as a run's folder can. The
    name of a folder that would be too long for a file system ends in a checksum. The log of the run itself, with its
    curves, stays as it is.

    Args:
      config: the run's config.
      workdir: the run's folder.
      settings: configs by name. Options of `AFTER_NETWORK` are taken from them, all others from `config`.
      checkpoint: the last one, the best one, or that of a step; see `Checkpoints`.

    Returns:
      A comparison for each test set with ground truth and each kind of result, boxes and masks; in processes other than
      the first an empty list.

    Raises:
      UserError: if there is no checkpoint, data are missing, their classes differ from the checkpoint's, or a folder
        cannot be written; at the end, if a file could not be.
    """
    config = settle(config, workdir)
    configs = {name: _with_setting(config, setting) for name, setting in settings.items()}
    for one in (config, *configs.values()):
        base.check(one)
    if config.model.rpn_only:
        raise UserError("--sweep: with model.rpn_only=True there are no detections, and no option of them to vary")
    prepare(config.log.compilation_cache)
    with Checkpoints(workdir, which=checkpoint, create=False) as checkpoints:
        class_names = checkpoints.metadata()["class_names"]
        sets = open_datasets(config, class_names)
        swept = _Sweep(config, configs, class_names)
        shapes = swept.detector.network.variable_shapes()
        variables = checkpoints.restore_variables(shapes, averaged=config.test.ema)
        step = checkpoints.chosen()
    folders = {name: pathlib.Path(workdir) / FOLDER / shortened(name) for name in configs}
    if jax.process_index() == 0:
        for folder in folders.values():  # before the detection, which takes long
            writable_folder(folder, "--sweep")
    unwritten = Unwritten()
    comparisons = swept(sets, variables, step, folders=folders, unwritten=unwritten)
    if comparisons:
        page = pathlib.Path(workdir) / SWEEP_FILE
        written: list[pathlib.Path] = []
        with unwritten.noting(page, written):
            albums = {dataset.name: DatasetAlbum(dataset, {}, masks=True) for dataset in sets}
            write_comparison(page, comparisons, albums=albums)
        if written:
            print_line(f"the page is {page}")
            if config.log.report:  # the page of the run links to this one
                write_index(RunLog(workdir, active=False), training=is_training(workdir))
    unwritten.check()
    return comparisons


class _Sweep:
    """Detection with several settings at once."""

    def __init__(self, config: ConfigDict, configs: Mapping[str, ConfigDict], class_names: Sequence[str]):
        self._config, self._configs = config, configs
        self.detector = build.detector(config, len(class_names))
        selections = [Selection(build.detector(one, len(class_names)).detection_rules) for one in configs.values()]
        self._detect = build.staged_detection(config, self.detector, on_devices, selections=selections)

    def __call__(self, sets, variables, step, *, folders, unwritten) -> list[Comparison]:
        readers = [build.eval_reader(self._config, dataset) for dataset in sets]
        variables = replicate(self.detector.network.folded(variables))
        compile_ahead(missing_programs(self._detect, readers, lambda: variables))
        found = []
        for dataset, reader in zip(sets, readers, strict=True):
            results = self._results(dataset, reader, variables, step)
            if jax.process_index() == 0:
                found += self._judge(dataset, results, step, folders=folders, unwritten=unwritten)
        return found

    def _results(self, dataset: Dataset, reader, variables, step) -> list[dict[str, list[dict]]]:
        """The COCO results of each setting by kind."""
        began, first = time.perf_counter(), jax.process_index() == 0
        stream = batches(reader, 0, reader.steps, **build.loading(self._config))
        with images_progress(len(dataset), title=f"{dataset.name}, step {step}", active=first) as progress:
            found = detect_each(
                self._detect.several,
                variables,
                stream,
                progress=progress.update,
                mask_thresholds=[one.mrcnn.thresh_binarize for one in self._configs.values()],
            )
        if not found[0]:
            raise UserError(f"{dataset.name}: none of its {len(dataset)} images could be read")
        if first:
            seconds = time.perf_counter() - began
            print_line(
                f"step {step}: {len(dataset)} images of {dataset.name} with {len(found)} settings in {seconds:.1f} s"
            )
        return [as_results(dataset, _every_image(dataset, one)) for one in found]

    def _judge(self, dataset, results, step, *, folders, unwritten) -> list[Comparison]:
        """Writes each setting's folder; compares the settings if there is ground truth."""
        sides: dict[str, list[Side]] = {}
        for (name, config), of_setting in zip(self._configs.items(), results, strict=True):
            place = folders[name]
            metrics: dict[str, float] = {}
            with unwritten.noting(place / CONFIG_FILE):
                keep_config(place, config.to_dict(), resuming=False)
            for kind, rows in of_setting.items():
                file = place / f"{RESULTS_PREFIX[kind]}_{dataset.name}_results.json"
                with unwritten.noting(file):
                    coco_results.write_results(file, rows)
                if dataset.annotated:
                    summary = score(dataset, kind, rows, max_dets=config.test.max_dets, with_matches=True)
                    assert summary.matches is not None
                    metrics |= summary.metrics()
                    side = Side(
                        name=name,
                        folder=str(place),
                        step=step,
                        statistics=summary.statistics,
                        matches=summary.matches,
                        options=flatten(config),
                    )
                    sides.setdefault(kind, []).append(side)
            if metrics:
                numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
                with unwritten.noting(place / METRICS_FILE):
                    append_row(place / METRICS_FILE, {"step": step, "dataset": dataset.name, **numbers})
        comparisons = [compare(of_kind, dataset=dataset.name) for of_kind in sides.values()]
        for comparison in comparisons:
            print_line("\n".join(comparison_lines(comparison)))
        return comparisons


def _with_setting(config: ConfigDict, setting: ConfigDict) -> ConfigDict:
    """A copy of `config` with the options of `setting` that act after the network."""
    config = config.copy_and_resolve_references()
    values = flatten(setting)
    for name in AFTER_NETWORK:
        *groups, option = name.split(".")
        group = config
        for key in groups:
            group = group[key]
        if values[name] is not None:  # an open option has been chosen in `config`
            group[option] = values[name]
    return config


def _every_image(dataset: Dataset, found: Mapping[int, Found]) -> dict[int, Found]:
    """Found objects of every image, none in those that could not be read."""
    return {index: found.get(index, NOTHING) for index in range(len(dataset))}
