"""Takes over step and momentum of a training run of the original."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diou_jax.errors import UserError
from diou_jax.weights.original import original_tensors
from diou_jax.weights.sources import BODY, WeightSource


def resume(opt_state: optax.OptState, source: WeightSource, variables: Mapping) -> optax.OptState:
    """The state of an optimiser that continues the original's run.

    Args:
      opt_state: state of `diou_jax.optimization.optimizer` before the first update.
      source: a checkpoint of the original, with step and optimiser.
      variables: the network's variables; shapes are enough.

    Raises:
      UserError: if the file has no optimiser, or that of another network, or the optimiser here is not SGD.
    """
    if any(map(_is_adam, jax.tree.leaves(opt_state, is_leaf=_is_adam))):
        raise UserError(
            f"solver.type: the momentum in {source.kind} is that of SGD, for which Adam and AdamW have no place; set "
            "solver.type=SGD, or leave --resume_optimizer out"
        )
    step = source.step
    if step is None or not source.optimizer:
        raise UserError(f"{source.kind} holds no step and optimiser to resume; leave --resume_optimizer out")
    momentum = _momentum(source)
    buffers = {
        path.removeprefix("params/"): tensor.to_ours(momentum[tensor.name])
        for path, tensor in original_tensors(variables).items()
        if tensor.name in momentum
    }
    missing = []

    def replace(keys, leaf):
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in keys]
        if names[-1] == "count":
            return jnp.full_like(leaf, step)
        if "momentum" not in names:
            return leaf
        name = "/".join(names[names.index("momentum") + 1 :])
        if name not in buffers or buffers[name].shape != leaf.shape:
            missing.append(name)
            return leaf
        return jnp.asarray(np.ascontiguousarray(buffers[name], leaf.dtype))

    resumed = jax.tree_util.tree_map_with_path(replace, opt_state)
    if missing:
        raise UserError(
            f"{source.kind} has no momentum of {', '.join(missing[:5])}; is resnets.freeze_at that of its run?"
        )
    return resumed


def _is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def _momentum(source):
    """The momentum buffers by the original's names.

    torch numbers parameters by groups: weights, biases, GroupNorm's weights, each in the order of the model.
    """
    states = source.optimizer.get("state", {})
    numbers = [number for group in source.optimizer.get("param_groups", []) for number in group["params"]]
    # Frozen affine layers are not parameters of the original. Other frozen tensors are the first ones of its backbone.
    affine = any(".bn" in name for name in source.tensors)  # with GroupNorm instead a shortcut's norm is trained
    names = [name for name in source.tensors if not (".bn" in name or (affine and ".downsample.1." in name))]
    frozen = [name for name in names if name.startswith(BODY)][: max(len(names) - len(numbers), 0)]
    names = [name for name in names if name not in set(frozen)]

    def group(name):
        return 1 if name.endswith("bias") else 2 if source.tensors[name].ndim == 1 else 0

    names.sort(key=group)
    if len(names) != len(numbers) or any(number not in states for number in numbers):
        raise UserError(f"{source.kind}: its optimiser has {len(numbers)} parameters, its model {len(names)}")
    buffers = {name: states[number].get("momentum_buffer") for name, number in zip(names, numbers, strict=True)}
    for name, buffer in buffers.items():
        if buffer is None or buffer.shape != source.tensors[name].shape:
            raise UserError(f"{source.kind}: its momentum does not match {name}; leave --resume_optimizer out")
    return buffers
