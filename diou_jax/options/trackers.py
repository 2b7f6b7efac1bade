"""The experiment trackers that a config names."""

import functools
import os
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from diou_jax.nested_config import flatten
from diou_jax.reporting.mlflow_tracker import MlflowTracker
from diou_jax.reporting.tracking import Background, TrackedRun, Tracker, require
from diou_jax.reporting.wandb_tracker import WandbTracker

TRACKERS: dict[str, Callable[[str, TrackedRun], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def require_trackers(config: ConfigDict) -> None:
    """Raises UserError if the config names a tracker whose package is not installed."""
    for name in TRACKERS:
        if config.log[name]:
            require(name, f"log.{name}")


def make_trackers(config: ConfigDict, workdir: str | os.PathLike) -> list[Callable[[], Background]]:
    """Functions that begin the config's trackers of the run in `workdir`, each in a thread of its own."""
    run = TrackedRun(pathlib.Path(workdir).absolute(), flatten(config.to_dict()))
    wanted = {name: kind for name, kind in TRACKERS.items() if config.log[name]}
    return [
        functools.partial(Background, f"log.{name}", functools.partial(kind, config.log[name], run))
        for name, kind in wanted.items()
    ]
