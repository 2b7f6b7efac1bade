"""The mask head: the shape of each object inside its box (He et al., Mask R-CNN, ICCV 2017)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diou_jax.boxes import to_input
from diou_jax.detection.heads.roi_head import Run
from diou_jax.detection.loss import Loss
from diou_jax.detection.mask_targets import MaskTargets, mask_targets, visible_windows
from diou_jax.detection.rules import PoolingRules, Thresholds
from diou_jax.losses import sigmoid_cross_entropy
from diou_jax.models.mask_head import MaskHead
from diou_jax.models.norms import Norm
from diou_jax.structures import Batch, Detections, RoiSamples


@dataclasses.dataclass(frozen=True)
class MaskRoiHead:
    """The original's Mask R-CNN head.

    Attributes:
      num_masks: K, background included, or 1 for masks of any class: MRCNN.CLS_SPECIFIC_MASK.
      num_convs: number of 3x3 convolutions, part of the name MRCNN.ROI_MASK_HEAD.
      features: MRCNN.DIM_REDUCED.
      norm: norm of the convolutions, part of the name MRCNN.ROI_MASK_HEAD.
      dtype: dtype of the module's arithmetic.
      resolution: M, MRCNN.RESOLUTION, twice that of `pooling`.
      weight: MRCNN.WEIGHT_LOSS_MASK.
      most: the largest number of an image's sampled RoIs with an object; only these are pooled.
      pooling: how RoIs are pooled.
      edges: how boxes are mapped, see `boxes.to_input`.
      name: name of the parameters.
    """

    num_masks: int
    num_convs: int
    features: int
    norm: Norm
    dtype: Any
    resolution: int
    weight: float
    most: int
    pooling: PoolingRules
    edges: bool = False
    name: str = "mask_head"

    def module(self) -> MaskHead:
        """Convolutions, upsampling and masks, float32 logits (B, R, M, M)."""
        return MaskHead(
            self.num_masks,
            num_convs=self.num_convs,
            features=self.features,
            norm=self.norm,
            dtype=self.dtype,
        )

    def losses(self, run: Run, samples: RoiSamples, batch: Batch) -> dict[str, Loss]:
        """The mask loss of the sampled RoIs with an object, see `compare`."""
        objects = jax.tree.map(lambda rows: rows[:, : self.most], samples)  # samples with an object come first
        targets = mask_targets(objects, batch.gt, resolution=self.resolution, windows=visible_windows(batch))
        return self.compare(run(objects.input_rois, self._masks_of(objects.labels), valid=targets.exists), targets)

    @jax.named_scope("losses")
    def compare(self, logits: jax.Array, targets: MaskTargets) -> dict[str, Loss]:
        """The mean cross-entropy over the cells of all RoIs with a target, 0 without one (Mask R-CNN, section 3).

        Args:
          logits: (B, S, M, M), for the class of each RoI.
          targets: masks of S RoIs.

        Returns:
          The loss ``loss_mask`` and the metric ``accuracy_mask``, the share of cells on the right side of 0.5.
        """
        exists = jnp.broadcast_to(targets.exists[..., None, None], logits.shape)
        cells = jnp.maximum(exists.sum(), 1)

        def mean(values):
            return jnp.where(exists, values, 0.0).sum() / cells

        right = (logits > 0) == targets.masks
        return {
            "loss_mask": Loss(mean(sigmoid_cross_entropy(logits, targets.masks)), self.weight),
            "accuracy_mask": Loss(mean(right.astype(jnp.float32)), None),
        }

    @jax.named_scope("masks")
    def detect(self, run: Run, found: Detections, batch: Batch, *, thresholds: Thresholds) -> Detections:
        """Adds the probabilities of each detection's mask."""
        rois = to_input(found.boxes, batch.placement, edges=self.edges)
        masks = jax.nn.sigmoid(run(rois, self._masks_of(found.classes)))
        return dataclasses.replace(found, masks=jnp.where(found.valid[..., None, None], masks, 0.0))

    def _masks_of(self, labels):
        """The index of each RoI's mask."""
        return labels if self.num_masks > 1 else jnp.zeros_like(labels)
