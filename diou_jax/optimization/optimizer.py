"""The original's SGD, Adam and AdamW, with groups of parameters."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from diou_jax.errors import UserError


def momentum_correction(step: jax.Array, rate: Callable, *, threshold: float) -> jax.Array:
    """The factor of the momentum buffers before the update with number `step`: float32 scalar.

    It is the ratio of the new learning rate to the old if one of them is more than `threshold` times the other
    (SOLVER.SCALE_MOMENTUM; Goyal et al., 2017, eq. 10), else 1.
    """
    new, old = rate(step), rate(jnp.maximum(step - 1, 0))
    safe = jnp.where(old > 0, old, 1.0)
    ratio = jnp.maximum(new / safe, old / jnp.where(new > 0, new, 1.0))
    # As in the original, a learning rate up to 1e-7 counts as switched off.
    return jnp.where((step > 0) & (ratio > threshold) & (old > 1e-7), new / safe, 1.0)


class _MomentumState(NamedTuple):
    count: jax.Array  # type: ignore[assignment]  # the name in checkpoints; it hides tuple.count
    momentum: optax.Updates


def _corrected_momentum(momentum: float, correction: Callable) -> optax.GradientTransformation:
    """Torch's momentum, ``v = momentum * v + g`` without dampening; the buffers are corrected first."""

    def init(params):
        return _MomentumState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(gradient, state, params=None):
        del params
        factor = momentum * correction(state.count)
        buffers = jax.tree.map(lambda v, g: factor * v + g, state.momentum, gradient)
        return buffers, _MomentumState(state.count + 1, buffers)

    return optax.GradientTransformation(init, update)


def parameter_group(path: str, frozen: Callable[[str], bool]) -> str:
    """The group of a parameter named by its "/"-joined path: weight, bias, norm or frozen."""
    if frozen(path):
        return "frozen"
    leaf = path.split("/")[-1]
    if leaf == "bias":
        return "bias"  # also the biases of GroupNorm, as in the original
    return "norm" if leaf == "scale" else "weight"  # the scale of any of Flax's norms, whatever the layer's name


@dataclasses.dataclass(frozen=True)
class OptimizerRules:
    """The optimiser's options: the original's SOLVER.*, in lower case.

    Attributes:
      type: "SGD", "Adam", whose decay is a part of the gradient, or "AdamW", whose decay is not (Loshchilov and Hutter,
        2019): weights shrink by the learning rate times the decay.
      momentum: momentum of SGD.
      weight_decay: weight decay of weights.
      weight_decay_gn: weight decay of GroupNorm's scales.
      bias_double_lr: whether biases have twice the learning rate.
      bias_weight_decay: whether biases decay as weights do.
      scale_momentum: whether momentum buffers are scaled when the learning rate jumps.
      scale_momentum_threshold: ratio of learning rates above which a change is a jump.
      clip_norm: norm to which larger gradients are scaled down; 0 switches this off.
      backbone_lr: factor of the backbone's learning rate.
      layer_decay: factor of the learning rate of a stage of the backbone to that of the stage above it; res5, the
        uppermost, has `backbone_lr` alone.
    """

    type: str
    momentum: float
    weight_decay: float
    weight_decay_gn: float
    bias_double_lr: bool
    bias_weight_decay: bool
    scale_momentum: bool
    scale_momentum_threshold: float
    clip_norm: float = 0.0
    backbone_lr: float = 1.0
    layer_decay: float = 1.0


def make_optimizer(
    rate: Callable[[jax.Array], jax.Array], *, frozen: Callable[[str], bool], rules: OptimizerRules
) -> optax.GradientTransformation:
    """The optimiser of all parameters.

    Args:
      rate: learning rate of the weights as a function of the number of updates done; see `schedules`.
      frozen: whether the parameter of a path is frozen; it then takes no optimiser memory.
      rules: SOLVER's options.

    Raises:
      UserError: if `rules.type` is unknown.
    """

    def correction(step):
        return (
            momentum_correction(step, rate, threshold=rules.scale_momentum_threshold) if rules.scale_momentum else 1.0
        )

    def group(factor, decay):
        if rules.type == "SGD":
            direction = (optax.add_decayed_weights(decay), _corrected_momentum(rules.momentum, correction))
        elif rules.type == "Adam":
            direction = (optax.add_decayed_weights(decay), optax.scale_by_adam())
        elif rules.type == "AdamW":
            direction = (optax.scale_by_adam(), optax.add_decayed_weights(decay))
        else:
            raise UserError(f"solver.type {rules.type!r}: there are SGD, Adam, AdamW")
        return optax.chain(*direction, optax.scale_by_learning_rate(lambda step: factor * rate(step)))

    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: parameter_group(_joined(path), frozen), params)

    groups = {
        "weight": group(1.0, rules.weight_decay),
        "bias": group(2.0 if rules.bias_double_lr else 1.0, rules.weight_decay if rules.bias_weight_decay else 0.0),
        "norm": group(1.0, rules.weight_decay_gn),
        "frozen": optax.set_to_zero(),
    }
    parts = [optax.multi_transform(groups, labels)]
    if rules.clip_norm > 0:
        parts.insert(0, optax.clip_by_global_norm(rules.clip_norm))
    if (rules.backbone_lr, rules.layer_decay) != (1, 1):
        parts.append(_layer_wise(functools.partial(rate_factor, rules=rules)))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def rate_factor(path: str, *, rules: OptimizerRules) -> float:
    """The factor of the learning rate of a parameter named by its "/"-joined path; 1 outside the backbone."""
    if not path.startswith("backbone/"):
        return 1.0
    stage = re.match(r"backbone/res(\d)_", path)
    return rules.backbone_lr * rules.layer_decay ** (5 - (int(stage[1]) if stage else 1))


def _layer_wise(factor: Callable[[str], float]) -> optax.GradientTransformation:
    """Multiplies the finished update of each parameter, and so its learning rate, by a factor of its path."""
    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(
            lambda path, update: factor(_joined(path)) * update, updates
        )
    )


def _joined(path) -> str:
    return "/".join(key.key for key in path)
