"""What a RoI head is to `FasterRCNN`."""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn

from diou_jax.detection.loss import Loss
from diou_jax.detection.rules import DetectionRules, PoolingRules, Thresholds
from diou_jax.structures import Array, Batch, Detections, Proposals, RoiSamples

# The head's outputs for RoIs (B, R, 4) in pixels of the network's input.
Run = Callable[[Array], Any]


class RoiHead(Protocol):
    """One head. It is a frozen dataclass of plain values, hashable.

    Attributes:
      name: of its parameters in the network.
      pooling: how its RoIs are pooled.
    """

    @property
    def name(self) -> str: ...

    @property
    def pooling(self) -> PoolingRules: ...

    def module(self) -> nn.Module:
        """The Flax module: pooled RoIs (B, R, H, W, C) to the head's outputs."""

    def losses(self, run: Run, samples: RoiSamples, batch: Batch) -> dict[str, Loss]:
        """The losses and metrics by name.

        Args:
          run: the head's module on RoIs, in pixels of the network's input.
          samples: the RoIs to learn from.
          batch: of B images with ground truth.
        """


class FirstHead(RoiHead, Protocol):
    """The head that finds objects.

    Attributes:
      detection: how its outputs become detections.
    """

    @property
    def detection(self) -> DetectionRules: ...

    def detect(self, run: Run, found: Proposals, batch: Batch, *, thresholds: Thresholds) -> Detections:
        """Makes detections of proposals."""


class AddedHead(RoiHead, Protocol):
    """A head that says more about the objects that are found."""

    def detect(self, run: Run, found: Detections, batch: Batch, *, thresholds: Thresholds) -> Detections:
        """Adds to the detections of the heads before it."""
