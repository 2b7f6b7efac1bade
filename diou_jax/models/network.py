"""The Flax module that holds all parameters of the detector."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models.folding import fold
from diou_jax.models.fpn import FPN
from diou_jax.models.norms import UseBatchNorm
from diou_jax.models.resnet import ResNet
from diou_jax.models.rpn import RPNHead


@dataclasses.dataclass(frozen=True)
class HeadModule:
    """The module of a RoI head.

    Attributes:
      name: name of the head's parameters.
      module: the Flax module, which belongs to no other module.
      resolution: cells along each side of a pooled RoI.
    """

    name: str
    module: nn.Module
    resolution: int


class Network(nn.Module):
    """Backbone, neck, RPN and RoI heads; `apply` takes the name of one of its methods.

    A backbone turns images into maps by stride, ``{stride: map}``, and a neck turns these into the pyramid. Variables
    are ``{"params": ...}`` and, where the backbone has frozen affine layers, ``"affine"``, and with batch norm
    ``"batch_stats"``, its running statistics.

    Attributes:
      backbone: images to maps.
      neck: maps to the pyramid.
      rpn: the region proposal head, shared by all maps; None in Fast R-CNN, whose proposals are given.
      heads: the RoI heads' modules.
      epsilon: batch norm's, for `folded`.
    """

    backbone: ResNet
    neck: FPN
    rpn: RPNHead | None
    heads: tuple[HeadModule, ...]
    epsilon: float = UseBatchNorm.epsilon

    def setup(self):
        """Takes a copy of each head's module under the head's name."""
        for head in self.heads:
            setattr(self, head.name, head.module.copy())

    def pyramid(self, images: jax.Array, padded_size: jax.Array | None = None) -> dict[int, jax.Array]:
        """Normalised images (B, H, W, 3), H and W multiples of 32, to p2 to p6 by stride."""
        return self.neck(self.backbone(images, padded_size), padded_size)

    def propose(
        self,
        pyramid: Mapping[int, jax.Array],
        sampled: jax.Array | None = None,
        padded_size: jax.Array | None = None,
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Logits and deltas of every anchor; see `RPNHead`."""
        assert self.rpn is not None, "the batch must bring its proposals"
        return self.rpn(pyramid, sampled, padded_size)

    def head(self, pooled: jax.Array, name: str, *more: jax.Array, **named: jax.Array) -> Any:
        """The outputs of a RoI head for pooled RoIs (B, R, H, W, C) and the other arguments of its module."""
        return getattr(self, name)(pooled, *more, **named)

    def __call__(self, images: jax.Array) -> None:
        """Calls every module once, for initialisation."""
        pyramid = self.pyramid(images)
        if self.rpn is not None:
            self.propose(pyramid)
        channels = next(iter(pyramid.values())).shape[-1]
        for head in self.heads:
            self.head(jnp.zeros((1, 1, head.resolution, head.resolution, channels)), head.name)

    def init_variables(self, key: jax.Array) -> dict:
        """Random variables, float32."""
        return _draw(self, key)

    def folded(self, variables: dict) -> dict:
        """Variables for inference alone; see `folding.fold`."""
        return fold(variables, self.backbone.dtype, epsilon=self.epsilon)

    def variable_shapes(self) -> dict:
        """The structure, shapes and dtypes of the variables, without their values."""
        return jax.eval_shape(functools.partial(_initial, self), jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def _initial(network: Network, key: jax.Array) -> dict:
    return dict(network.init(key, jnp.zeros((1, 64, 64, 3))))


# The program runs once. Without optimisation it compiles in a third of the time.
_draw = jax.jit(_initial, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
