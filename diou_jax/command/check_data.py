"""Checks the data sets of a config before training."""

import functools

from ml_collections import ConfigDict

from diou_jax.command.input_pictures import write_pictures
from diou_jax.configs import base
from diou_jax.data.check import check_datasets
from diou_jax.data.dataset import Dataset
from diou_jax.errors import UserError
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.reporting.run_log import print_line


def check_data(config: ConfigDict, *, pictures: str | None = None) -> bool:
    """Reads all annotations, proposals and images of a config's training and test sets and reports their faults.

    Args:
      config: the config.
      pictures: folder for a page with pictures of the training's input, or None.

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
    if pictures is not None:
        print_line(f"pictures of the training's input: {_write_pictures(config, pictures)}")
    return report.clean


def _write_pictures(config, folder):
    """The page of the first images that a training sees; raises UserError if the folder cannot be written."""
    data = _training_set(config)
    reader = build.train_reader(config, data, build.rule(config).batch)
    try:
        return write_pictures(reader, folder, class_names=data.class_names, means=tuple(config.pixel_means))
    except OSError as error:
        raise UserError(f"--pictures {folder} cannot be written: {error.strerror or error}") from error


def _training_set(config) -> Dataset:
    return build.with_train_proposals(config, build.dataset(config, config.train.datasets))


def _test_set(config, name) -> Dataset:
    return build.with_test_proposals(config, build.dataset(config, (name,)), name)
