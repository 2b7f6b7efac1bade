"""Exports a checkpoint as a file of the original."""

import os

from ml_collections import ConfigDict

from diou_jax.checkpoint.checkpoints import LAST, Checkpoints
from diou_jax.errors import UserError
from diou_jax.files import writable_file
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.reporting.run_log import print_line
from diou_jax.weights.original import export_original


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
    config = settle(config, workdir)
    with Checkpoints(workdir, which=checkpoint, create=False) as checkpoints:
        num_classes = len(checkpoints.metadata()["class_names"])
        like = build.network(config, num_classes).variable_shapes()
        variables = checkpoints.restore_variables(like, averaged=config.test.ema)
        step = checkpoints.chosen()
    tensors = {name: torch.from_numpy(value.copy()) for name, value in export_original(variables).items()}
    # The original counts steps from 0 and continues with the step after the stored one.
    content = {"step": max(step - 1, 0), "train_size": 0, "batch_size": 0, "model": tensors, "optimizer": {}}
    try:
        torch.save(content, output)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{output} cannot be written: {error}") from None
    print_line(f"{len(tensors)} tensors written to {output}")
