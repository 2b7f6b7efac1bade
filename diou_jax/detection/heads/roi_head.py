"""What a RoI head is to `FasterRCNN`."""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax

from diou_jax.detection.loss import Loss
from diou_jax.detection.rules import PoolingRules, Thresholds
from diou_jax.structures import Batch, Detections, Proposals, RoiSamples

# The head's outputs for RoIs (B, R, 4) in pixels of the network's input.
Run = Callable[[jax.Array], Any]


class RoiHead(Protocol):
    """One head. It is a frozen dataclass of plain values, hashable.

    Attributes:
      name: of its parameters in the network.
      pooling: how its RoIs are pooled.
    """

    name: str
    pooling: PoolingRules

    def module(self) -> nn.Module:
        """The Flax module: pooled RoIs (B, R, H, W, C) to the head's outputs."""

    def losses(self, run: Run, samples: RoiSamples, batch: Batch) -> dict[str, Loss]:
        """The losses and metrics by name.

        Args:
          run: the head's module on RoIs, in pixels of the network's input.
          samples: the RoIs to learn from.
          batch: of B images with ground truth.
        """

    def detect(self, run: Run, found: Proposals | Detections, batch: Batch, *, thresholds: Thresholds) -> Detections:
        """Makes detections of proposals, as the first head does, or adds to the detections of the head before it."""
