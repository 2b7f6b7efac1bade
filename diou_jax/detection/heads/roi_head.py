"""The interface of a RoI head to `FasterRCNN`."""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn

from diou_jax.detection.loss import Loss
from diou_jax.detection.rules import DetectionRules, PoolingRules, Thresholds
from diou_jax.structures import Batch, Candidates, Detections, Proposals, RoiSamples

# A function from RoIs (B, R, 4), pixels of the network's input, and the other arguments of the head's module, also by
# name, to its outputs.
Run = Callable[..., Any]


class RoiHead(Protocol):
    """A RoI head: a frozen, hashable dataclass of plain values.

    Attributes:
      name: name of its parameters in the network.
      pooling: how its RoIs are pooled.
    """

    @property
    def name(self) -> str: ...

    @property
    def pooling(self) -> PoolingRules: ...

    def module(self) -> nn.Module:
        """The Flax module that turns pooled RoIs (B, R, H, W, C) into the head's outputs."""

    def losses(self, run: Run, samples: RoiSamples, batch: Batch) -> dict[str, Loss]:
        """The losses and metrics by name.

        Args:
          run: pools RoIs in pixels of the network's input and applies the head's module.
          samples: the RoIs to learn from.
          batch: B images with ground truth.
        """


class FirstHead(RoiHead, Protocol):
    """The head that finds objects.

    Attributes:
      detection: how its outputs become detections.
    """

    @property
    def detection(self) -> DetectionRules: ...

    def detect(self, run: Run, found: Proposals, batch: Batch, *, thresholds: Thresholds) -> Detections:
        """Makes detections of proposals: `suppress` of its `candidates`."""

    def candidates(self, run: Run, found: Proposals, batch: Batch) -> Candidates:
        """Boxes and scores before suppression; boxes are those of the mirrored image if it is one."""

    def suppress(self, candidates: Candidates, *, thresholds: Thresholds) -> Detections:
        """Makes detections of candidates, also of several passes together."""


class AddedHead(RoiHead, Protocol):
    """A head that says more about the objects that are found."""

    def detect(self, run: Run, found: Detections, batch: Batch, *, thresholds: Thresholds) -> Detections:
        """Adds to the detections of the heads before it, whose boxes are those of the mirrored image if it is one."""
