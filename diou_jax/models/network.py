"""All the parameters of the detector in one module."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.models.folding import fold
from diou_jax.models.fpn import FPN
from diou_jax.models.heads import BoxHead
from diou_jax.models.resnet import ResNet
from diou_jax.models.rpn import RPNHead


class Network(nn.Module):
    """Body, pyramid, RPN and box head; `apply` takes the name of one of its methods.

    Its variables are ``{"params": ...}`` and, where the body has frozen affine layers, ``"affine"``.
    """

    body: ResNet
    fpn: FPN
    rpn: RPNHead
    box_head: BoxHead
    resolution: int = 7  # of the pooled RoIs, for `init_variables`

    def pyramid(self, images: jax.Array, extent: jax.Array | None = None) -> list[jax.Array]:
        """Normalised images (B, H, W, 3), H and W multiples of 32, to [p2, ..., p6]."""
        return self.fpn(self.body(images, extent), extent)

    def propose(
        self, pyramid: Sequence[jax.Array], sampled: jax.Array | None = None
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Logits and deltas of every anchor; see `RPNHead`."""
        return self.rpn(pyramid, sampled)

    def classify(self, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and deltas of every RoI; see `BoxHead`."""
        return self.box_head(pooled)

    def __call__(self, images: jax.Array) -> None:
        """Touches every parameter; for initialisation."""
        pyramid = self.pyramid(images)
        self.propose(pyramid)
        self.classify(jnp.zeros((1, self.resolution, self.resolution, pyramid[0].shape[-1])))

    def init_variables(self, key: jax.Array) -> dict:
        """Random variables, float32."""
        # Code that runs once is not worth optimising: this compiles in a third of the time.
        init = jax.jit(self.init, compiler_options={"xla_backend_optimization_level": 0})
        return init(key, jnp.zeros((1, 64, 64, 3)))

    def folded(self, variables: dict) -> dict:
        """Variables for inference alone; see `folding.fold`."""
        return fold(variables, self.body.dtype)

    def variable_shapes(self) -> dict:
        """The structure, shapes and dtypes of the variables, without their values."""
        return jax.eval_shape(self.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
