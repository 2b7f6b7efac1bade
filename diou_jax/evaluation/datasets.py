"""The data sets that are evaluated; faults in them are found before anything is computed."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from diou_jax.data.check import check_image
from diou_jax.data.dataset import Dataset, align_classes
from diou_jax.errors import UserError
from diou_jax.options import build

# Number of images of a test set that are read before anything is computed.
PROBES = 20


def open_datasets(config: ConfigDict, class_names: Sequence[str]) -> list[Dataset]:
    """The config's test sets with the trained classes, after some of their images have been read.

    Raises:
      UserError: if data are missing or damaged, or have other classes.
    """
    names = tuple(dict.fromkeys(config.test.datasets))
    datasets = [build.dataset(config, (name,), masks=False) for name in names]
    if not datasets:
        raise UserError("test.datasets=(): name one or more data sets to evaluate on")
    for dataset in datasets:
        if not dataset.annotation_files:
            raise UserError(f"{dataset.name} has no annotation file to evaluate by; set data.val_annotations")
    datasets = [build.with_test_proposals(config, dataset, name) for dataset, name in zip(datasets, names)]
    datasets = [align_classes(dataset, class_names) for dataset in datasets]
    for dataset in datasets:
        _refuse_unreadable(dataset)
    return datasets


def _refuse_unreadable(dataset: Dataset) -> None:
    """Raises UserError if none of `PROBES` images, spread over the data set, can be read."""
    problems = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, PROBES).astype(int)).tolist():
        problem, _ = check_image(dataset, index)
        if problem is None:
            return
        problems.append(problem)
    raise UserError(f"{dataset.name}: none of {len(problems)} images tried can be read, the first: {problems[0]}")
