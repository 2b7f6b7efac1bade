"""Checks the data sets of a config before training."""

import functools

from ml_collections import ConfigDict

from diou_jax.configs import base
from diou_jax.data.check import check_datasets
from diou_jax.data.dataset import Dataset
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.reporting.run_log import print_line


def check_data(config: ConfigDict) -> bool:
    """Reads all annotations, proposals and images of a config's training and test sets and reports their faults.

    Returns:
      Whether there are no problems.

    Raises:
      UserError: if an option has an invalid value.
    """
    config = settle(config)
    base.check(config)
    datasets = {name: functools.partial(_test_set, config, name) for name in config.test.datasets}
    datasets = {" + ".join(config.train.datasets): functools.partial(_training_set, config)} | datasets
    report = check_datasets(datasets, max_boxes=config.data.max_boxes, max_vertices=config.data.max_vertices)
    print_line(report.text())
    return report.clean


def _training_set(config) -> Dataset:
    return build.with_train_proposals(config, build.dataset(config, config.train.datasets))


def _test_set(config, name) -> Dataset:
    return build.with_test_proposals(config, build.dataset(config, (name,)), name)
