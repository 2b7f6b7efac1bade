"""Diagnosis of a run whose updates are not finite: names the tensor and keeps batch and weights to reproduce it."""

import os
import pathlib

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.data.reader import Reader
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.errors import UserError
from diou_jax.optimization.state import TrainState
from diou_jax.structures import Batch, Polygons, Proposals, blank_batch


class Diverged(Exception):  # noqa: N818
    """`train.max_bad_steps` updates in a row were not finite; holds the last step, their count and the state."""

    def __init__(self, step: int, count: int, state: TrainState):
        super().__init__(f"{count} updates in a row were not finite, up to step {step}")
        self.step, self.count, self.state = step, count, state


def give_up(error: Diverged, detector: FasterRCNN, reader: Reader, *, workdir: str | os.PathLike, seed: int) -> None:
    """Ends a run whose updates are skipped; the state still has the weights from before the first of them.

    It writes `workdir`/bad/batch_N.npz with the fields of this process' `Batch` of the first skipped update, and a
    checkpoint of the state beside it.

    Raises:
      UserError: always; the message names the first tensor that is not finite.
    """
    state = error.state
    first = error.step - int(state.guard.in_a_row)
    batch, _ = reader(first)
    names = not_finite(detector, jax.device_get(state.variables), batch, step=first, seed=seed)
    folder = pathlib.Path(workdir) / "bad"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"batch_{first}.npz"
    fields = traverse_util.flatten_dict(flax.serialization.to_state_dict(batch), sep=".")
    np.savez_compressed(file, **{name: value for name, value in fields.items() if value is not None})
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, error.step, {})
    what = names[0] if names else "a tensor that this process' images do not show"
    raise UserError(
        f"training does not get past step {first}: {what} is not finite; {file} holds the batch and "
        f"{folder / 'checkpoints'} the weights; a lower solver.base_lr or a solver.clip_norm may help"
    )


def load_batch(file: str | os.PathLike) -> Batch:
    """The numpy batch that `give_up` wrote."""
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


def not_finite(detector: FasterRCNN, variables: dict, batch: Batch, *, step: int, seed: int) -> list[str]:
    """Names of the tensors that are not finite in a step: weights, else losses, else gradients."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(jnp.arange(len(batch.image)))
    bad = _bad(variables)
    if not bad:

        def loss(params, variables, batch, keys):
            return detector.losses(dict(variables) | {"params": params}, batch, keys)

        examine = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, metrics), gradient = examine(variables["params"], variables, batch, keys)
        # The total is left out: it is not finite because one of its parts is not.
        bad = _bad({name: value for name, value in metrics.items() if name != "loss"}) or _bad(gradient)
    return bad


def _bad(tree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ["/".join(str(key.key) for key in path) for path, leaf in leaves if not np.isfinite(leaf).all()]
