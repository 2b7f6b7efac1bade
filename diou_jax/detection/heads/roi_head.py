"""The interface of a RoI head to `FasterRCNN`."""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax

from diou_jax.detection.loss import Loss
from diou_jax.detection.rules import PoolingRules, Thresholds
from diou_jax.structures import Batch, Detections, Proposals, RoiSamples

# A function from RoIs (B, R, 4), pixels of the network's input, to the head's outputs.
Run = Callable[[jax.Array], Any]


class RoiHead(Protocol):
    """A RoI head: a frozen, hashable dataclass of plain values.

    Attributes:
      name: name of its parameters in the network.
      pooling: how its RoIs are pooled.
    """

    name: str
    pooling: PoolingRules

    def module(self) -> nn.Module:
        """The Flax module that turns pooled RoIs (B, R, H, W, C) into the head's outputs."""

    def losses(self, run: Run, samples: RoiSamples, batch: Batch) -> dict[str, Loss]:
        """The losses and metrics by name.

        Args:
          run: pools RoIs in pixels of the network's input and applies the head's module.
          samples: the RoIs to learn from.
          batch: B images with ground truth.
        """

    def detect(self, run: Run, found: Proposals | Detections, batch: Batch, *, thresholds: Thresholds) -> Detections:
        """Detections: the first head makes them from proposals, a later head adds to those of the head before it."""
