"""Imports a weight file as a checkpoint."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.configs import base
from diou_jax.errors import UserError
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.options.initial_weights import weight_source
from diou_jax.options.open_options import settle
from diou_jax.reporting.run_log import print_line
from diou_jax.weights import momentum
from diou_jax.weights.sources import import_tensors, inventory
from diou_jax.workdir.run_config import keep_config
from diou_jax.workdir.run_lock import run_lock

INVENTORY = "import.txt"


def import_file(
    config: ConfigDict,
    path: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    resume_optimizer: bool = False,
    allow: Sequence[str] = (),
) -> None:
    """Writes a file's weights as a checkpoint in `workdir`, from which evaluation, prediction and training can start.

    Its step is 0; with `resume_optimizer`, step and momentum are those of the file.

    Raises:
      UserError: if the file does not fit, or `workdir` holds a run already.
    """
    config = settle(config, workdir, source=path)
    base.check(config)
    source = weight_source(config, path)
    class_names, category_ids = build.class_table(config, source)
    detector = build.detector(config, len(class_names))
    network = detector.network
    variables, report = import_tensors(source, network.init_variables(jax.random.key(config.rng_seed)), allow=allow)
    optimizer = build.make_optimizer(config, build.rule(config).schedule)
    state = create_state(variables, optimizer, detector.loss_names, ema_decay=config.solver.ema_decay)
    if resume_optimizer:
        state = dataclasses.replace(state, opt_state=momentum.resume(state.opt_state, source, variables))
        state = dataclasses.replace(state, step=jnp.int32(source.step))
        report.append(f"momentum and step {source.step} taken over")
    step = int(state.step)
    with (
        run_lock(workdir, active=config.checkpoint.lock),
        Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints,
    ):
        if checkpoints.latest() is not None:
            raise UserError(f"{workdir} holds a run at step {checkpoints.latest()} already; name another --workdir")
        keep_config(workdir, config.to_dict(), resuming=False)
        (pathlib.Path(workdir) / INVENTORY).write_text(inventory(source, variables))
        kept = {"config": json.loads(json.dumps(config.to_dict()))}
        checkpoints.save(state, step, {"class_names": class_names, "category_ids": category_ids} | kept)
    for line in [*report, f"written to {workdir} as step {step}; {INVENTORY} there lists every tensor"]:
        print_line(line)
