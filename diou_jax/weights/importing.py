"""Imports a weight file as a checkpoint, and exports a checkpoint as a file of the original."""

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
from diou_jax.data import coco_classes
from diou_jax.data.dataset import BACKGROUND
from diou_jax.errors import UserError
from diou_jax.files import writable_file
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.reporting.run_log import say
from diou_jax.training.step import create_state
from diou_jax.weights import momentum
from diou_jax.weights.original import export_original
from diou_jax.weights.sources import account, import_tensors
from diou_jax.workdir.run_config import keep_config
from diou_jax.workdir.run_lock import run_lock

ACCOUNT = "import.txt"


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
    config = settle(config, workdir)
    base.check(config)
    source = build.weight_source(config, path)
    class_names, category_ids = class_table(config, source.num_classes)
    detector = build.detector(config, len(class_names))
    network = detector.network
    variables, report = import_tensors(source, network.init_variables(jax.random.key(config.rng_seed)), allow=allow)
    state = create_state(variables, build.make_optimizer(config, build.rule(config)), detector.loss_names)
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
        (pathlib.Path(workdir) / ACCOUNT).write_text(account(source, variables))
        kept = {"config": json.loads(json.dumps(config.to_dict()))}
        checkpoints.save(state, step, {"class_names": class_names, "category_ids": category_ids} | kept)
    for line in [*report, f"written to {workdir} as step {step}; {ACCOUNT} there lists every tensor"]:
        say(line)


def class_table(config: ConfigDict, num_classes: int | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids of a detector's classes: COCO's if there are 81, else those of the training set.

    Args:
      config: the config, which names the training set.
      num_classes: K of the weights, background included, or None if unknown.

    Raises:
      UserError: if the training set has another number of classes, or is needed and missing.
    """
    if num_classes == len(coco_classes.NAMES):
        return coco_classes.NAMES, coco_classes.IDS
    try:
        data = build.dataset(config, config.train.datasets)
    except UserError:
        if num_classes is None:
            raise
        return (BACKGROUND, *(f"class {label}" for label in range(1, num_classes))), (-1, *range(1, num_classes))
    if num_classes not in (None, len(data.class_names)):
        raise UserError(
            f"the weights are for {num_classes} classes with the background, {data.name} has {len(data.class_names)}; "
            "set train.datasets to the data that they were trained on"
        )
    return data.class_names, data.category_ids


def export_torch(config: ConfigDict, workdir: str | os.PathLike, output: str | os.PathLike) -> None:
    """Writes the newest checkpoint of `workdir` as the original's ``model_step*.pth``.

    Raises:
      UserError: if there is no checkpoint, torch is not installed, or `output` cannot be written.
    """
    try:
        import torch
    except ImportError:
        raise UserError("writing torch's files needs torch: pip install -e '.[torch]'") from None
    writable_file(output, "--output")
    config = settle(config, workdir)
    with Checkpoints(workdir, create=False) as checkpoints:
        num_classes = len(checkpoints.metadata()["class_names"])
        variables = checkpoints.restore_variables(build.network(config, num_classes).variable_shapes())
        step = checkpoints.latest()
    tensors = {name: torch.from_numpy(value.copy()) for name, value in export_original(variables).items()}
    # The original counts steps from 0 and continues with the step after the stored one.
    content = {"step": max(step - 1, 0), "train_size": 0, "batch_size": 0, "model": tensors, "optimizer": {}}
    try:
        torch.save(content, output)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{output} cannot be written: {error}") from None
    say(f"{len(tensors)} tensors written to {output}")
