"""Exports a checkpoint as a file of the original."""

import os
from typing import Any

from ml_collections import ConfigDict

from diou_jax.checkpoint.checkpoints import LAST, Checkpoints
from diou_jax.errors import UserError
from diou_jax.files import replacing, writable_file
from diou_jax.nested_config import flatten
from diou_jax.option_groups import NETWORK
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.reporting.run_log import print_line
from diou_jax.weights.original import export_original
from diou_jax.weights.record import KEY, Record


def export_torch(
    config: ConfigDict, workdir: str | os.PathLike, output: str | os.PathLike, *, checkpoint: str = LAST
) -> None:
    """Writes a checkpoint of `workdir`, "last", "best" or that of a step, as the original's ``model_step*.pth``.

    Raises:
      UserError: if there is no checkpoint, torch is not installed, or `output` cannot be written.
    """
    try:
        import torch
    except ImportError:
        raise UserError("writing torch's files needs torch: pip install -e '.[torch]'") from None
    writable_file(output, "--output")
    content = original_checkpoint(config, workdir, checkpoint=checkpoint)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in content["model"].items()}
    try:
        with replacing(output) as draft:
            torch.save(content | {"model": tensors}, draft)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{output} cannot be written: {error}") from None
    print_line(f"{len(tensors)} tensors written to {output}")


def original_checkpoint(config: ConfigDict, workdir: str | os.PathLike, *, checkpoint: str = LAST) -> dict[str, Any]:
    """A checkpoint of `workdir` as the original's ``torch.load`` returns it, with arrays in place of torch's tensors.

    The entry `KEY`, which the original does not read, has the network's options and classes for an import.

    Raises:
      UserError: if there is no checkpoint.
    """
    config = settle(config, workdir)
    with Checkpoints(workdir, which=checkpoint, create=False) as checkpoints:
        metadata = checkpoints.metadata()
        like = build.network(config, len(metadata["class_names"])).variable_shapes()
        variables = checkpoints.restore_variables(like, averaged=config.test.ema)
        step = checkpoints.chosen()
    options = {name: value for name, value in flatten(config).items() if name in NETWORK}
    record = Record(options, tuple(metadata["class_names"]), tuple(metadata["category_ids"]))
    return {
        # The original counts steps from 0 and continues with the step after the stored one.
        "step": max(step - 1, 0),
        "train_size": 0,
        "batch_size": 0,
        "model": export_original(variables),
        "optimizer": {},
        KEY: record.content(),
    }
