"""Checks the data sets of a config before training."""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from diou_jax.command.input_pictures import write_pictures
from diou_jax.configs import base
from diou_jax.data.check import REFUSED, DatasetSection, check_datasets
from diou_jax.data.dataset import Dataset
from diou_jax.errors import UserError
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.reporting.run_log import print_line


def check_data(config: ConfigDict, *, pictures: str | None = None) -> bool:
    """Reads all annotations, proposals and images of a config's training and test sets and reports their faults.

    It is a problem as well if training or evaluation would refuse the data for its options, such as buckets that are
    too small for an image.

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
    training = functools.cache(functools.partial(_training_set, config))
    tests = {name: functools.cache(functools.partial(_test_set, config, name)) for name in config.test.datasets}
    trained_on = " + ".join(config.train.datasets)
    rules = {"max_boxes": config.data.max_boxes, "max_vertices": config.data.max_vertices}
    report = check_datasets({trained_on: training} | tests, evaluated=tests.keys() - {trained_on}, **rules)
    sections = {section.name: section for section in report.sections}
    _try_reader(sections[trained_on], training, functools.partial(_train_reader, config), "training")
    for name, load in tests.items():
        _try_reader(sections[name], load, functools.partial(build.eval_reader, config), "an evaluation")
        _note_shared(sections[name], load, training)
    print_line(report.text())
    if pictures is not None:
        print_line(f"pictures of the training's input: {_write_pictures(config, pictures)}")
    return report.clean


def _try_reader(section: DatasetSection, load: Callable[[], Dataset], read: Callable, who: str) -> None:
    """Adds a problem if `who`, such as "training", refuses the data set; one that cannot be loaded has it already."""
    if REFUSED in section.problems.counts:
        return
    try:
        read(load())
    except UserError as error:
        section.problems.add(f"data sets that {who} refuses", str(error))


def _note_shared(section: DatasetSection, load: Callable[[], Dataset], training: Callable[[], Dataset]) -> None:
    """Adds the images of a test set whose files are trained on to the notes."""
    try:
        trained, tested = training(), load()
    except UserError:
        return  # it has been reported
    files = {trained.image_name(index) for index in range(len(trained))}
    names = map(tested.image_name, range(len(tested)))
    section.notes.add("images that are trained on, too", *(name for name in names if name in files))


def _train_reader(config, data):
    return build.train_reader(config, data, build.rule(config).batch)


def _write_pictures(config, folder):
    """The page of the first images that a training sees; raises UserError if the folder cannot be written."""
    data = _training_set(config)
    reader = _train_reader(config, data)
    try:
        return write_pictures(reader, folder, class_names=data.class_names, means=tuple(config.pixel_means))
    except OSError as error:
        raise UserError(f"--pictures {folder} cannot be written: {error.strerror or error}") from error


def _training_set(config) -> Dataset:
    return build.with_train_proposals(config, build.dataset(config, config.train.datasets))


def _test_set(config, name) -> Dataset:
    return build.with_test_proposals(config, build.dataset(config, (name,)), name)
