"""Evaluated runs compared image by image, from the files in their folders; no network runs."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from diou_jax.analysis.comparison import Comparison, Side, compare
from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.data.annotations import id_key
from diou_jax.data.dataset import Dataset
from diou_jax.errors import UserError
from diou_jax.evaluation.evaluate import RESULTS_PREFIX, score
from diou_jax.evaluation.given_options import with_given_options
from diou_jax.evaluation.report import DatasetAlbum
from diou_jax.evaluation.results_file import read_results
from diou_jax.evaluation.unwritten import Unwritten
from diou_jax.files import writable_file
from diou_jax.nested_config import flatten
from diou_jax.options import build
from diou_jax.reporting.comparison_page import COMPARISON_FILE, write_comparison
from diou_jax.reporting.comparison_table import comparison_lines
from diou_jax.reporting.run_log import print_line, read_metrics
from diou_jax.workdir.run_config import restore_config


def compare_runs(
    workdirs: Sequence[str | os.PathLike], output: str | os.PathLike = COMPARISON_FILE
) -> list[Comparison]:
    """Compares evaluated runs with the first, prints tables and writes a page.

    Args:
      workdirs: two or more folders: those of runs, or of the settings of a sweep.
      output: path of the page.

    Returns:
      A comparison for each test set that all have, and each kind of result that all have for it.

    Raises:
      UserError: if a folder holds no evaluated run, two have evaluated other images or objects, or the page cannot be
        written.
    """
    if len(workdirs) < 2:
        raise UserError("--workdirs: name two or more folders of evaluated runs")
    output = writable_file(output, "--output")
    runs = [_Run(folder) for folder in workdirs]
    runs = [run.named(name) for run, name in zip(runs, _names(workdirs), strict=True)]
    comparisons, albums = [], {}
    trained = [run.trained_on() for run in runs]
    for name in _common(runs):
        datasets = [run.dataset(name) for run in runs]
        if not datasets[0].annotated:
            print_line(f"{name} has no annotations, so there is no AP to compare: left out")
            continue
        for run, dataset in zip(runs[1:], datasets[1:], strict=True):
            _check_same(name, (runs[0].folder, datasets[0]), (run.folder, dataset))
        albums[name] = DatasetAlbum(datasets[0], {}, masks=True)
        kinds = [kind for kind in RESULTS_PREFIX if all(os.path.isfile(run.results_file(name, kind)) for run in runs)]
        # One limit for all, or their numbers would not be comparable.
        max_dets = runs[0].config(name).test.max_dets
        for kind in kinds:
            sides = [run.side(name, kind, datasets[0], max_dets=max_dets) for run in runs]
            if None not in trained:  # settings of a sweep have no weights that tell
                sides = [_with_option(side, "training data", data) for side, data in zip(sides, trained, strict=True)]
            comparisons.append(compare(sides, dataset=name))
            print_line("\n".join(comparison_lines(comparisons[-1])))
    if not comparisons:
        raise UserError("--workdirs: no data set that all have evaluated has annotations, so there is no AP to compare")
    unwritten = Unwritten()
    with unwritten.noting(output):
        write_comparison(output, comparisons, albums=albums)
    unwritten.check()
    print_line(f"the page is {output}")
    return comparisons


class _Run:
    """The files of an evaluated run.

    Attributes:
      folder: its folder.
      name: its name in tables.
      evaluated: names of the data sets of which it has results.
    """

    def __init__(self, folder: str | os.PathLike):
        """Reads the config; raises UserError if there is no run or no evaluation in `folder`."""
        self.folder, self.name = pathlib.Path(folder), str(folder)
        config = restore_config(folder) if os.path.isdir(folder) else None
        if config is None:
            raise UserError(f"{folder} holds no run; --workdirs names folders of runs, or of settings of a sweep")
        self._config: ConfigDict = config
        if config.model.rpn_only:
            raise UserError(f"{folder}: with model.rpn_only=True there are proposals, which have no AP to compare")
        # The rows of the last evaluations, which may have had other options and data sets than the config.
        self._rows = {row["dataset"]: row for row in read_metrics(folder) if isinstance(row.get("dataset"), str)}
        other = [name for name, row in self._rows.items() if name in with_given_options(config, row).test.datasets]
        names = dict.fromkeys([*config.test.datasets, *other])
        self.evaluated = [name for name in names if os.path.isfile(self.results_file(name, "bbox"))]
        if not self.evaluated:
            file = self.results_file(next(iter(config.test.datasets), "SET"), "bbox")
            raise UserError(f"{file} is missing; evaluate the run first: --workdir {folder} --mode eval")

    def config(self, name: str) -> ConfigDict:
        """The config of the last evaluation on a data set."""
        return with_given_options(self._config, self._rows.get(name, {}))

    def dataset(self, name: str) -> Dataset:
        """A data set as the run has evaluated it; raises UserError if its files are missing or damaged."""
        try:
            return build.dataset(self.config(name), (name,), masks=False)
        except UserError as error:
            raise UserError(
                f"{self.folder} was evaluated on {name}, which cannot be read ({error}); start the comparison where "
                f"the run was evaluated, or evaluate it anew: --workdir {self.folder} --mode eval "
                "--config.data.root=FOLDER"
            ) from error

    def named(self, name: str) -> "_Run":
        """The run under another name."""
        self.name = name
        return self

    def results_file(self, dataset: str, kind: str) -> pathlib.Path:
        """The path of its results."""
        return self.folder / f"{RESULTS_PREFIX[kind]}_{dataset}_results.json"

    def side(self, name: str, kind: str, dataset: Dataset, *, max_dets: int) -> Side:
        """Its results on a data set, judged by the ground truth of `dataset`."""
        file, records = self.results_file(name, kind), dataset.records
        shapes = zip(records.heights.tolist(), records.widths.tolist(), strict=True)
        try:
            results = read_results(file, kind, sizes=dict(zip(records.image_ids.tolist(), shapes, strict=True)))
            summary = score(dataset, kind, results, max_dets=max_dets, with_matches=True)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        assert summary.matches is not None
        return Side(
            name=self.name,
            folder=str(self.folder),
            step=self._rows.get(name, {}).get("step"),
            statistics=summary.statistics,
            matches=summary.matches,
            options=flatten(self.config(name)),
        )

    def trained_on(self) -> str | None:
        """The training data by the newest checkpoint; None if there is none."""
        try:
            with Checkpoints(self.folder, create=False) as checkpoints:
                data = checkpoints.metadata().get("data")
        except UserError:
            return None  # results can be compared without the weights
        return None if not data else f"{data['images']} images, {data['boxes']} boxes, digest {data['digest'][:8]}"


def _with_option(side: Side, name: str, value: str | None) -> Side:
    return dataclasses.replace(side, options={**side.options, name: value})


def _names(workdirs: Sequence[str | os.PathLike]) -> list[str]:
    """Short names of folders: as many of the last parts of each path as tell all of them apart."""
    parts = [pathlib.Path(folder).absolute().parts for folder in workdirs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"--workdirs: {', '.join(map(str, workdirs))}: a folder is named twice")


def _common(runs: Sequence[_Run]) -> list[str]:
    """The names of the data sets that all runs have evaluated; the others are named in a line."""
    common = [name for name in runs[0].evaluated if all(name in run.evaluated for run in runs)]
    if not common:
        listed = "; ".join(f"{run.folder}: {', '.join(run.evaluated)}" for run in runs)
        raise UserError(f"--workdirs: there is no data set that all have evaluated: {listed}")
    for run in runs:
        if others := [name for name in run.evaluated if name not in common]:
            print_line(f"{run.folder} has evaluated {', '.join(others)}, too, which not all have: left out")
    return common


def _check_same(name: str, first: tuple[pathlib.Path, Dataset], other: tuple[pathlib.Path, Dataset]) -> None:
    """Raises UserError if the ground truth of a data set differs between two runs, given by their folders."""
    (folder, one), (other_folder, two) = first, other
    about = f"{name} in {folder} and in {other_folder}"
    if one.class_names != two.class_names:
        mine, theirs = (", ".join(map(repr, dataset.class_names[1:])) for dataset in (one, two))
        raise UserError(f"{about} has other classes: {mine} and {theirs}")
    if one.category_ids != two.category_ids:
        raise UserError(f"{about} has other category ids: {one.category_ids[1:]} and {two.category_ids[1:]}")
    ids, other_ids = ([id_key(key) for key in dataset.records.image_ids.tolist()] for dataset in (one, two))
    if set(ids) != set(other_ids):
        only = [
            (len(a - b), next(iter(sorted(a - b, key=repr)), None)) for a, b in _both_ways(set(ids), set(other_ids))
        ]
        said = " and ".join(
            f"{count} images are only in {place}, the first {example!r}"
            for (count, example), place in zip(only, (folder, other_folder), strict=True)
            if count
        )
        raise UserError(f"{about} has other images: {said}; only evaluations of the same images can be compared")
    rows = dict(zip(other_ids, range(len(other_ids)), strict=True))
    for row, image_id in enumerate(ids):
        true, other_true = one.records.annotations(row), two.records.annotations(rows[image_id])
        if not all(np.array_equal(a, b) for a, b in zip(true, other_true, strict=True)):
            raise UserError(
                f"{about} has other objects, the first in image {image_id!r}: {len(true[0])} and {len(other_true[0])} "
                "boxes, or boxes that lie elsewhere; evaluate both with the same annotations"
            )


def _both_ways(one, two):
    return (one, two), (two, one)
