"""The box head: a class and a refined box for each RoI."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diou_jax.boxes import clip, decode, encode, to_original, width_height
from diou_jax.detection.detections import suppress
from diou_jax.detection.heads.roi_head import Run
from diou_jax.detection.loss import Loss
from diou_jax.detection.rules import DetectionRules, PoolingRules, Thresholds
from diou_jax.losses import BOX_LOSSES, box_loss, softmax_cross_entropy
from diou_jax.models.box_head import BoxHead
from diou_jax.models.norms import Norm
from diou_jax.structures import Batch, Candidates, Detections, GroundTruth, Proposals, RoiSamples

LEAST_SIDE = 1e-2  # pixels of the image; torchvision leaves out detections with a shorter side


@dataclasses.dataclass(frozen=True)
class BoxRoiHead:
    """The original's Fast R-CNN head, with any loss of the IoU family.

    Attributes:
      num_classes: K, background included.
      hidden: FAST_RCNN.MLP_HEAD_DIM.
      class_agnostic: MODEL.CLS_AGNOSTIC_BBOX_REG.
      num_convs: convolutions before a single fully connected layer, FAST_RCNN.NUM_STACKED_CONVS; 0: two layers.
      conv_features: channels of the convolutions, FAST_RCNN.CONV_HEAD_DIM.
      norm: norm of the convolutions, part of the name FAST_RCNN.ROI_BOX_HEAD.
      dtype: dtype of the module's arithmetic.
      box_loss: MODEL.LOSS_TYPE, a name in `diou_jax.losses.BOX_LOSSES`.
      box_weight: weight of the box loss, MODEL.LOSS_BBOX_WEIGHT.
      reg_weights: weights of the deltas, MODEL.BBOX_REG_WEIGHTS.
      pooling: how RoIs are pooled.
      detection: how outputs become detections.
      edges: how RoIs are mapped back and boxes clipped, see `boxes.to_original` and `boxes.clip`.
      name: name of the parameters.
    """

    num_classes: int
    hidden: int
    class_agnostic: bool
    num_convs: int
    conv_features: int
    norm: Norm
    dtype: Any
    box_loss: str
    box_weight: float
    reg_weights: tuple[float, ...]
    pooling: PoolingRules
    detection: DetectionRules
    edges: bool = False
    name: str = "box_head"

    def module(self) -> BoxHead:
        """Hidden layers and the outputs, float32 logits (B, R, K) and deltas (B, R, K or 1, 4)."""
        return BoxHead(
            self.num_classes,
            hidden=self.hidden,
            num_convs=self.num_convs,
            conv_features=self.conv_features,
            norm=self.norm,
            class_agnostic=self.class_agnostic,
            dtype=self.dtype,
        )

    def losses(self, run: Run, samples: RoiSamples, batch: Batch) -> dict[str, Loss]:
        """The losses and metrics of sampled RoIs, see `compare`."""
        return self.compare(run(samples.input_rois, valid=samples.valid), samples, self.targets(samples, batch.gt))

    def targets(self, samples: RoiSamples, gt: GroundTruth) -> jax.Array:
        """The deltas (B, S, 4) from each RoI to the box of its object, 0 for background; no gradient passes."""
        boxes = jnp.take_along_axis(gt.boxes, samples.gt_index[..., None], 1)
        deltas = encode(samples.rois, boxes, weights=self.reg_weights)
        return jax.lax.stop_gradient(jnp.where((samples.labels > 0)[..., None], deltas, 0.0))

    @jax.named_scope("losses")
    def compare(self, outputs: tuple[jax.Array, jax.Array], samples: RoiSamples, targets: jax.Array) -> dict[str, Loss]:
        """The two losses and the original's metrics, all divided by the number of RoIs of the minibatch.

        Args:
          outputs: logits (B, S, K) and deltas (B, S, K or 1, 4).
          samples: the sampled RoIs.
          targets: the target deltas, (B, S, 4).

        Returns:
          The losses ``loss_cls`` and ``loss_bbox``; the metrics ``accuracy_cls``, ``bbox_sl1``, ``bbox_iou`` and
          ``bbox_giou``, the last two as losses, one minus the overlap.
        """
        logits, deltas = outputs
        labels = jnp.where(samples.valid, samples.labels, 0)
        foreground = samples.valid & (labels > 0)
        count = jnp.maximum(samples.valid.sum(), 1)
        column = labels if deltas.shape[2] > 1 else jnp.zeros_like(labels)
        predicted = jnp.take_along_axis(deltas, column[..., None, None], 2).reshape(-1, 4)
        wanted = targets.reshape(-1, 4)

        def mean(values, where):
            return jnp.where(where, values.reshape(where.shape), 0.0).sum() / count

        def over_objects(loss):
            return mean(loss(predicted, wanted, reg_weights=self.reg_weights), foreground)

        return {
            "loss_cls": Loss(mean(softmax_cross_entropy(logits, labels), samples.valid)),
            "loss_bbox": Loss(over_objects(box_loss(self.box_loss)), self.box_weight),
            "accuracy_cls": Loss(mean((logits.argmax(-1) == labels).astype(jnp.float32), samples.valid), None),
            "bbox_sl1": Loss(over_objects(BOX_LOSSES["smooth_l1"]), None),
            "bbox_iou": Loss(over_objects(BOX_LOSSES["iou"]), None),
            "bbox_giou": Loss(over_objects(BOX_LOSSES["giou"]), None),
        }

    def detect(self, run: Run, found: Proposals, batch: Batch, *, thresholds: Thresholds) -> Detections:
        """The best boxes of all classes after suppression within each class."""
        logits, deltas = run(found.boxes)
        return self.select((jax.nn.softmax(logits), deltas), found, batch, thresholds=thresholds)

    @jax.named_scope("detections")
    def select(
        self, outputs: tuple[jax.Array, jax.Array], found: Proposals, batch: Batch, *, thresholds: Thresholds
    ) -> Detections:
        """The detections of probabilities (B, R, K) and deltas (B, R, K or 1, 4) of proposals."""
        return self.suppress(self.refine(outputs, found, batch), thresholds=thresholds)

    def candidates(self, run: Run, found: Proposals, batch: Batch) -> Candidates:
        """The boxes and scores of all proposals and classes."""
        logits, deltas = run(found.boxes)
        return self.refine((jax.nn.softmax(logits), deltas), found, batch)

    def refine(self, outputs: tuple[jax.Array, jax.Array], found: Proposals, batch: Batch) -> Candidates:
        """The boxes, clipped to the image, and scores of probabilities (B, R, K) and deltas (B, R, K or 1, 4)."""
        scores, deltas = outputs
        rois = to_original(found.boxes, batch.placement, edges=self.edges)
        boxes = decode(rois[:, None], deltas.swapaxes(1, 2), weights=self.reg_weights)
        if boxes.shape[1] > 1:
            boxes = boxes[:, 1:]
        scores = scores.swapaxes(1, 2)[:, 1:]
        boxes = jnp.broadcast_to(boxes, (*scores.shape, 4))
        size = batch.original_size.astype(jnp.float32)[:, :, None, None]
        boxes = clip(boxes, *(jnp.broadcast_to(size[:, axis], scores.shape) for axis in (0, 1)), edges=self.edges)
        if self.edges:
            scores = jnp.where((width_height(boxes) >= LEAST_SIDE).all(-1), scores, 0.0)
        return Candidates(boxes, scores, (found.valid & batch.present[:, None])[:, None])

    def suppress(self, candidates: Candidates, *, thresholds: Thresholds) -> Detections:
        """The best boxes of all classes after suppression within each class."""
        return suppress(
            candidates.boxes, candidates.scores, candidates.valid, thresholds=thresholds, rules=self.detection
        )
