"""The training run: set up or resume, step, log, save."""

import time

import jax
import ml_collections
from absl import logging

from diou_jax import build
from diou_jax.checkpoint import Checkpoints, check_config
from diou_jax.data import loader
from diou_jax.logging import RunLog
from diou_jax.train_step import create_state, make_train_step, to_devices


def train(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains to `solver.max_iter`, from the newest checkpoint in `workdir` or from the start.

    Raises:
      UserError: the config, the data or the work folder does not allow it; nothing has been overwritten then.
    """
    rule = build.batch_rule(config)
    loss_names = build.check_names(config)
    dataset = build.dataset(config, config.train.datasets)
    check_config(workdir, config.to_dict())
