"""Faster R-CNN told in order: `FasterRCNN.losses` for training, `FasterRCNN.detect` for testing.

Everything that happens between a `Batch` and its losses or detections is called from here, on one device, with static
shapes. `diou_jax.options.build` makes a `FasterRCNN` from a config.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.boxes import to_edges, to_input, to_original
from diou_jax.detection import preprocess
from diou_jax.detection.anchor_targets import AnchorTargets, anchor_targets
from diou_jax.detection.anchors import cell_anchors, grid_anchors, torchvision_cell_anchors, torchvision_grid_anchors
from diou_jax.detection.detections import Detections, detect
from diou_jax.detection.losses import head_losses, rpn_losses
from diou_jax.detection.proposals import Proposals, propose
from diou_jax.detection.roi_targets import SampledRois, sample_rois
from diou_jax.detection.rules import (
    AnchorRules,
    BoxRules,
    DetectionRules,
    LossRules,
    PoolingRules,
    ProposalRules,
    RoiRules,
)
from diou_jax.kernels.roi_align import roi_align, roi_levels
from diou_jax.losses import box_loss
from diou_jax.models.network import Network
from diou_jax.structures import Batch

STRIDES = (4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class FasterRCNN:
    """A network and the rules around it; hashable, holds no arrays.

    The parts of the story have named scopes, by which profilers and benchmarks/ahead_of_time.py tell them apart.

    Attributes:
      network: the Flax modules.
      anchor_start_size: size in pixels of P2's anchors, doubled at each level.
      aspect_ratios: height over width of the anchors.
      reg_weights: scale of the box head's deltas.
      pixel_means: of blue, green and red, subtracted from images of 0 to 255.
      mask_padding, mask_padding_train: whether activations beyond an image's extent are held at zero.
    """

    network: Network
    loss_rules: LossRules
    train_proposals: ProposalRules
    test_proposals: ProposalRules
    anchor_rules: AnchorRules
    roi_rules: RoiRules
    pooling_rules: PoolingRules
    detection_rules: DetectionRules
    box_rules: BoxRules
    anchor_start_size: float = 32
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    reg_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    pixel_means: tuple[float, ...] = preprocess.PIXEL_MEANS
    mask_padding: bool = True
    mask_padding_train: bool = False

    def losses(self, variables, batch: Batch, keys: jax.Array):
        """The losses of one device's minibatch.

        Args:
          variables: the network's, ``{"params": ..., "affine": ...}``.
          batch: B images with ground truth.
          keys: (B,) random keys, one per image, so that an image's samples do not depend on its neighbours.

        Returns:
          The total loss, a float32 scalar, and a dict of scalars: each loss under the original's name, and metrics.
        """
        extent = batch.extent if self.mask_padding_train else None
        pyramid = self.pyramid(variables, batch, extent)
        anchors, exists = self.anchors(pyramid, batch.extent)
        targets = self.label_anchors(anchors, exists, batch, keys)
        outputs = self.network.apply(variables, pyramid, targets.sampled, method="propose")
        proposals = propose(
            *outputs, anchors, exists, batch.size, batch.scale, **dataclasses.asdict(self.train_proposals)
        )
        sampled = self.sample(proposals, batch, keys)
        rois = to_input(sampled.rois, batch.scale[:, None, None], edges=self.box_rules.edges)
        head_outputs = self.network.apply(variables, self.pool(pyramid, rois, extent), method="classify")
        return self.compare(outputs, targets, head_outputs, sampled)

    def detect(self, variables, batch: Batch) -> Detections:
        """The detections in B images, in pixels of the original images, best first.

        An image's detections depend on that image alone: not on the bucket it lies in (with `mask_padding`), nor on
        the other images of the batch.
        """
        extent = batch.extent if self.mask_padding else None
        pyramid = self.pyramid(variables, batch, extent)
        outputs = self.network.apply(variables, pyramid, method="propose")
        anchors, exists = self.anchors(pyramid, batch.extent)
        proposals = propose(
            *outputs,
            anchors,
            exists,
            batch.extent if self.box_rules.clip_to_padding else batch.size,
            batch.scale,
            per_image=True,
            **dataclasses.asdict(self.test_proposals),
        )
        pooled = self.pool(pyramid, proposals.boxes, extent)
        logits, deltas = self.network.apply(variables, pooled, method="classify")
        return detect(
            proposals.boxes,
            proposals.valid & batch.present[:, None],
            jax.nn.softmax(logits),
            deltas,
            batch.scale,
            batch.original_size,
            reg_weights=self.reg_weights,
            edges=self.box_rules.edges,
            **vars(self.detection_rules),
        )

    def pyramid(self, variables, batch: Batch, extent: jax.Array | None) -> list[jax.Array]:
        """Feature maps [p2, ..., p6], (B, Hl, Wl, C), held at zero beyond `extent`, int (B, 2), unless it is None."""
        images = preprocess.normalise(batch, self.pixel_means)
        return self.network.apply(variables, images, extent, method="pyramid")

    def anchors(self, pyramid, extent: jax.Array) -> tuple[list[np.ndarray | jax.Array], list[jax.Array]]:
        """Each level's anchors, (N, 4) or (B, N, 4), and which of them lie on feature cells that exist, (B, N)."""
        anchors, exists = [], []
        for level, (features, stride) in enumerate(zip(pyramid, STRIDES, strict=True)):
            height, width = features.shape[1:3]
            shape = {"size": self.anchor_start_size * 2**level, "aspect_ratios": self.aspect_ratios}
            if self.box_rules.anchors == "torchvision":
                cell = torchvision_cell_anchors(**shape)
                anchors.append(torchvision_grid_anchors(extent, height, width, stride=stride, cell=cell))
            else:
                cell = cell_anchors(stride=stride, **shape)
                anchors.append(grid_anchors(height, width, stride=stride, cell=cell))
            inside_y = jnp.arange(height) * stride < extent[:, :1]
            inside_x = jnp.arange(width) * stride < extent[:, 1:]
            inside = inside_y[:, :, None, None] & inside_x[:, None, :, None]
            exists.append(jnp.broadcast_to(inside, (*inside.shape[:3], len(cell))).reshape(len(extent), -1))
        return anchors, exists

    @jax.named_scope("anchor_targets")
    def label_anchors(self, anchors, exists, batch: Batch, keys: jax.Array) -> AnchorTargets:
        """What the RPN is to learn; `anchors` and `exists` as from `anchors`."""
        shared = anchors[0].ndim == 2
        return anchor_targets(
            np.concatenate(anchors) if shared else jnp.concatenate(anchors, 1),
            jnp.concatenate(exists, 1),
            to_input(batch.boxes, batch.scale[:, None, None], edges=self.box_rules.edges),
            batch.valid & ~batch.crowd,
            batch.size,
            jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys),
            **dataclasses.asdict(self.anchor_rules),
        )

    @jax.named_scope("roi_sampling")
    def sample(self, proposals: Proposals, batch: Batch, keys: jax.Array) -> SampledRois:
        """The RoIs that the box head is to learn from, in pixels of the original images."""
        rules = dataclasses.asdict(self.roi_rules)
        return jax.vmap(lambda *image: sample_rois(*image, reg_weights=self.reg_weights, **rules))(
            to_original(proposals.boxes, batch.scale[:, None, None], edges=self.box_rules.edges),
            proposals.valid,
            batch.boxes,
            batch.classes,
            batch.crowd,
            batch.valid,
            jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys),
        )

    @jax.named_scope("roi_align")
    def pool(self, pyramid, rois: jax.Array, extent: jax.Array | None) -> jax.Array:
        """Features (B, R, resolution, resolution, C) of RoIs (B, R, 4) in pixels of the network's input."""
        rules = self.pooling_rules
        # By the size of the box, wherever its edges are.
        levels = roi_levels(
            rois, strides=STRIDES[:4], canonical_scale=rules.canonical_scale, canonical_level=rules.canonical_level
        )
        return roi_align(
            pyramid[:4],
            to_edges(rois) if self.box_rules.edges else rois,
            resolution=rules.resolution,
            sampling_ratio=rules.sampling_ratio,
            strides=STRIDES[:4],
            extent=extent,
            levels=levels,
        )

    @jax.named_scope("losses")
    def compare(self, outputs, targets: AnchorTargets, head_outputs, sampled: SampledRois):
        """What `losses` returns, from the outputs of RPN and box head and what they were to be."""
        rules = self.loss_rules
        rpn_options = {"beta": 1 / 9} if rules.rpn_box in ("smooth_l1", "sl1") else {}
        rpn = rpn_losses(
            *outputs,
            targets,
            box_loss=functools.partial(box_loss(rules.rpn_box), reg_weights=(1.0, 1.0, 1.0, 1.0), **rpn_options),
            batch_size_per_im=self.anchor_rules.batch_size_per_im,
        )
        head = head_losses(*head_outputs, sampled, box_loss=box_loss(rules.box), reg_weights=self.reg_weights)
        total = (
            rpn["loss_rpn_cls"]
            + rules.rpn_box_weight * rpn["loss_rpn_bbox"]
            + head["loss_cls"]
            + rules.box_weight * head["loss_bbox"]
        )
        return total, {"loss": total, **rpn, **head}
