"""Diagnosis of a run whose updates are not finite: names the tensor and keeps batch and weights to reproduce it."""

import functools
import math
import os
import pathlib
import shutil

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.data.reader import Reader
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.devices import AXIS
from diou_jax.errors import UserError
from diou_jax.optimization.state import TrainState
from diou_jax.structures import Batch, Polygons, Proposals, blank_batch


class Diverged(Exception):  # noqa: N818
    """`train.max_bad_steps` updates in a row were not finite; holds the last step, their count and the state."""

    def __init__(self, step: int, count: int, state: TrainState):
        super().__init__(f"{count} updates in a row were not finite, up to step {step}")
        self.step, self.count, self.state = step, count, state


def give_up(
    error: Diverged,
    detector: FasterRCNN,
    reader: Reader,
    *,
    workdir: str | os.PathLike,
    seed: int,
    minibatch: int | None = None,
) -> None:
    """Ends a run whose updates are skipped; the state still has the weights from before the first skipped update.

    It writes `workdir`/bad/batch_N.npz with the fields of the `Batch` of the first skipped update, and a checkpoint of
    the state beside it. With several processes each writes its own part, batch_N_processP.npz.

    Args:
      error: the exception raised at the last skipped update.
      detector, reader: the detector and the reader of the run.
      workdir: the run's folder.
      seed: the run's seed.
      minibatch: number of images of a minibatch on one device; None: all images of the process.

    Raises:
      UserError: always; the message names the first tensor that is not finite.
    """
    first = error.step - int(error.state.guard.in_a_row)
    batch, _ = reader(first)
    # The evidence comes first: the search needs the memory of a training step, and may fail.
    kept = _keep(error, batch, first, pathlib.Path(workdir) / "bad")
    variables, slot = jax.device_get(error.state.variables), jax.process_index() * len(batch.image)
    try:
        names = not_finite(detector, variables, batch, step=first, seed=seed, minibatch=minibatch, first_slot=slot)
        what = names[0] if names else "a tensor that this process' images do not show"
    except Exception as failure:
        what = f"a tensor that could not be searched for ({_in_words(failure)})"
    raise UserError(
        f"training does not get past step {first}: {what} is not finite; {kept}; a lower solver.base_lr or a "
        "solver.clip_norm may help"
    )


def _keep(error, batch, first, folder) -> str:
    """Writes the batch and the weights; returns where they are, or why not, as a failure must not end the diagnosis."""
    said = []
    file, weights = batch_file(folder, first), folder / "checkpoints"
    for what, place, write in (
        ("the batch", file, lambda: _write_batch(batch, file)),
        ("the weights", weights, lambda: _write_weights(error, folder)),
    ):
        try:
            write()
            said.append(f"{place} holds {what}")
        except Exception as failure:
            said.append(f"{what} could not be kept ({_in_words(failure)})")
    return ", ".join(said)


def batch_file(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The file of a step's batch; with several processes that of this process' part."""
    part = f"_process{jax.process_index()}" if jax.process_count() > 1 else ""
    return folder / f"batch_{step}{part}.npz"


def _write_batch(batch, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    fields = traverse_util.flatten_dict(flax.serialization.to_state_dict(batch), sep=".")
    np.savez_compressed(file, **{name: value for name, value in fields.items() if value is not None})


def _write_weights(error, folder):
    if jax.process_index() == 0:
        # A run that is started again diverges at the same step again; the new weights replace the older ones.
        for old in folder.glob("checkpoints*"):
            shutil.rmtree(old, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("older weights are removed")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(error.state, error.step, {})


def _in_words(failure) -> str:
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"


def load_batch(file: str | os.PathLike) -> Batch:
    """The numpy batch, or the part of it, that `give_up` wrote to a file."""
    with np.load(file) as content:
        fields = traverse_util.unflatten_dict(dict(content), sep=".")
    masks, proposals = fields["gt"].pop("masks", None), fields.pop("proposals", None)
    blank = blank_batch(1, 32, 32)
    # Fields that are None have not been written.
    fields = flax.serialization.to_state_dict(blank) | fields
    fields["gt"] = flax.serialization.to_state_dict(blank.gt) | fields["gt"]
    batch = flax.serialization.from_state_dict(blank, fields)
    return batch.replace(
        gt=batch.gt.replace(masks=masks and Polygons(**masks)), proposals=proposals and Proposals(**proposals)
    )


def not_finite(
    detector: FasterRCNN,
    variables: dict,
    batch: Batch,
    *,
    step: int,
    seed: int,
    minibatch: int | None = None,
    first_slot: int = 0,
) -> list[str]:
    """Names of the tensors that are not finite in a step: weights, else losses, else gradients of a minibatch.

    The local devices repeat the step's minibatches, with the step's random draws, one on each device at a time. With
    several processes one thing differs from the step: batch norm takes its statistics over this process' devices only.

    Args:
      detector: network and rules.
      variables: the network's variables from before the step.
      batch: this process' images.
      step: number of the update, from 0.
      seed: the run's seed.
      minibatch: number of images of a minibatch on one device; None: all.
      first_slot: place of the first image in the batch of all processes.
    """
    if bad := _bad(variables):
        return bad
    images = len(batch.image)
    minibatch = minibatch or images
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(first_slot + jnp.arange(images))
    # A device has consecutive minibatches. A batch from another machine may have none for some devices here.
    count = math.gcd(images // minibatch, jax.local_device_count())
    parts = jax.tree.map(lambda x: x.reshape(count, -1, minibatch, *x.shape[1:]), (batch, keys))

    def loss(params, variables, batch, keys):
        total, (metrics, _) = detector.training_losses(dict(variables) | {"params": params}, batch, keys)
        return total, metrics

    examine = jax.pmap(
        jax.value_and_grad(loss, has_aux=True), AXIS, in_axes=(None, None, 0, 0), devices=jax.local_devices()[:count]
    )
    for number in range(parts[1].shape[1]):
        part = jax.tree.map(lambda x: x[:, number], parts)  # noqa: B023
        (_, metrics), gradient = examine(variables["params"], variables, *part)
        # The total is left out: it is not finite because one of its parts is not.
        bad = _bad({name: value for name, value in metrics.items() if name != "loss"}) or _bad(gradient)
        if bad:
            return bad
    return []


def _bad(tree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ["/".join(str(key.key) for key in path) for path, leaf in leaves if not np.isfinite(leaf).all()]
