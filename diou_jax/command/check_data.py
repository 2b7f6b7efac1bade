"""Checks the data sets of a config before training."""

import functools

from ml_collections import ConfigDict

from diou_jax.configs import base
from diou_jax.data.check import check_datasets
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.reporting.run_log import print_line


def check_data(config: ConfigDict) -> bool:
    """Reads every annotation and image of a config's training and test sets and prints a report of their faults.

    Returns:
      Whether there are no problems.

    Raises:
      UserError: if an option has an invalid value.
    """
    config = settle(config)
    base.check(config)
    names = dict.fromkeys(
        tuple(datasets) for datasets in (config.train.datasets, *((name,) for name in config.test.datasets))
    )
    report = check_datasets(
        {" + ".join(some): functools.partial(build.dataset, config, some) for some in names},
        max_boxes=config.data.max_boxes,
        max_vertices=config.data.max_vertices,
    )
    print_line(report.text())
    return report.clean
