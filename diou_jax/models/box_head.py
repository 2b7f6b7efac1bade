"""The box head: fully connected layers, or convolutions and one such layer, then a class and boxes for each RoI."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32

from diou_jax.models.conv_stack import conv_stack
from diou_jax.models.initializers import normal, xavier_fill
from diou_jax.models.norms import Norm, UseBias


class BoxHead(nn.Module):
    """The original's ``roi_2mlp_head`` or ``roi_Xconv1fc_head``, and ``fast_rcnn_outputs``.

    Attributes:
      num_classes: K, background included.
      hidden: FAST_RCNN.MLP_HEAD_DIM.
      num_convs: 3x3 convolutions before a single fully connected layer, FAST_RCNN.NUM_STACKED_CONVS; 0: none, but two
        layers.
      conv_features: channels of each convolution, FAST_RCNN.CONV_HEAD_DIM.
      norm: norm of each convolution.
      class_agnostic: MODEL.CLS_AGNOSTIC_BBOX_REG, one box per RoI instead of K.
      dtype: dtype of the arithmetic.
    """

    num_classes: int
    hidden: int = 1024
    num_convs: int = 0
    conv_features: int = 256
    norm: Norm = UseBias()
    class_agnostic: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pooled: Float[jax.Array, "*batch H W C"], *, valid: Bool[jax.Array, "*batch"] | None = None
    ) -> tuple[Float32[jax.Array, "*batch {self.num_classes}"], Float32[jax.Array, "*batch _K 4"]]:
        """Pooled RoIs (..., H, W, C) to float32 logits (..., K) and deltas (..., K or 1, 4).

        Args:
          pooled: the RoIs' features.
          valid: bool (...), the RoIs that exist, for the statistics of batch norm; None: all exist.
        """

        def dense(features, init, name):
            return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

        x = conv_stack(
            pooled.reshape(-1, *pooled.shape[-3:]),
            count=self.num_convs,
            features=self.conv_features,
            norm=self.norm,
            dtype=self.dtype,
            valid=valid,
        )
        x = x.reshape(*pooled.shape[:-3], -1)
        for name in ("fc",) if self.num_convs else ("fc1", "fc2"):
            x = nn.relu(dense(self.hidden, xavier_fill, name)(x))
        boxes = 1 if self.class_agnostic else self.num_classes
        logits = dense(self.num_classes, normal(0.01), "logits")(x)
        deltas = dense(4 * boxes, normal(0.001), "deltas")(x)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32).reshape(*deltas.shape[:-1], boxes, 4)
