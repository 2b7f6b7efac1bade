"""Faster R-CNN step by step: `FasterRCNN.losses` for training, `FasterRCNN.detect` for testing.

Every step from a `Batch` to its losses or detections is called from here, on one device, with static shapes.
`diou_jax.options.build` makes a `FasterRCNN` from a config.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diou_jax.boxes import mirror, to_edges, to_input
from diou_jax.detection import loss, preprocess
from diou_jax.detection.anchor_targets import AnchorTargets, anchor_targets
from diou_jax.detection.anchors import AnchorGenerator
from diou_jax.detection.heads.roi_head import AddedHead, FirstHead, RoiHead
from diou_jax.detection.proposals import as_detections, propose
from diou_jax.detection.roi_sampling import sample_rois
from diou_jax.detection.rpn_losses import rpn_losses
from diou_jax.detection.rules import (
    AnchorRules,
    BoxRules,
    DetectionRules,
    PoolingRules,
    ProposalRules,
    RoiRules,
    RpnLossRules,
    Thresholds,
)
from diou_jax.kernels.roi_align import roi_align, roi_levels
from diou_jax.models.network import Network
from diou_jax.models.norms import STATISTICS
from diou_jax.structures import Anchors, Array, Batch, Candidates, Detections, Proposals, RoiSamples, blank_batch


@dataclasses.dataclass(frozen=True)
class FasterRCNN:
    """A network with its rules; a hashable group of plain values.

    The steps have named scopes, by which profilers and benchmarks/ahead_of_time.py tell them apart.

    Attributes:
      network: the Flax modules.
      heads: the RoI heads, in the order in which they detect; the network holds their modules. Without any, the RPN is
        trained alone (MODEL.RPN_ONLY), and its proposals are the detections.
      anchor_generator: makes the anchors of every map.
      train_proposals: how RPN outputs become proposals in training.
      test_proposals: likewise in a test.
      anchor_rules: which anchors the RPN learns from.
      rpn_loss_rules: the RPN's losses.
      roi_rules: which RoIs the heads learn from.
      box_rules: the differences between Detectron's boxes and torchvision's.
      pixel_means: means of blue, green and red that are subtracted from images with values 0 to 255.
      mask_padding: whether activations beyond an image's padded size are held at zero in a test.
      mask_padding_train: likewise in training.
    """

    network: Network
    heads: tuple[()] | tuple[FirstHead, *tuple[AddedHead, ...]]
    anchor_generator: AnchorGenerator
    train_proposals: ProposalRules
    test_proposals: ProposalRules
    anchor_rules: AnchorRules
    rpn_loss_rules: RpnLossRules
    roi_rules: RoiRules
    box_rules: BoxRules
    pixel_means: tuple[float, ...] = preprocess.PIXEL_MEANS
    mask_padding: bool = True
    mask_padding_train: bool = False

    def losses(self, variables: dict, batch: Batch, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The losses of one device's minibatch, with the running statistics of batch norm.

        Args:
          variables: the network's variables, ``{"params": ..., "affine": ...}``.
          batch: B images with ground truth.
          keys: (B,) random keys, one per image, so that an image's samples do not depend on the other images.

        Returns:
          The total loss, a float32 scalar, and a dict of the total, each loss and each metric by name, unweighted.
        """
        return self._losses(self.network.bind(variables), batch, keys)

    def training_losses(
        self, variables: dict, batch: Batch, keys: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict | None]]:
        """The losses with batch norm's statistics of the minibatch; otherwise as `losses`.

        Batch norm over several devices must be called within the map over their axis.

        Returns:
          The total loss, and a pair: the dict of `losses`, and the running statistics after the minibatch, None without
          batch norm.
        """
        losses = nn.apply(lambda network: self._losses(network, batch, keys), self.network, mutable=[STATISTICS])
        (total, values), changed = losses(variables)
        return total, (values, changed.get(STATISTICS))

    def _losses(self, network: Network, batch, keys):
        """`losses` of a network with its variables."""
        padded_size = batch.padded_size if self.mask_padding_train else None
        pyramid = self._pyramid(network, batch, padded_size)
        parts: dict[str, loss.Loss] = {}
        proposals = self.precomputed(batch)
        if proposals is None:
            anchors = self.anchor_generator(pyramid, batch.padded_size)
            targets = self.label_anchors(anchors, batch, keys)
            sampled = jnp.asarray(targets.sampled)
            outputs = network.propose(pyramid, sampled, padded_size)
            limit = batch.image_size
            # Without heads nothing uses them, and the compiler leaves them out.
            edges = self.box_rules.edges
            proposals = propose(
                outputs, anchors, limit, placement=batch.placement, rules=self.train_proposals, edges=edges
            )
            parts |= self.rpn_losses(outputs, targets)
        if self.heads:
            samples = self.sample(proposals, batch, keys)
            for head in self.heads:
                parts |= head.losses(self._runner(head, network, pyramid, padded_size=padded_size), samples, batch)
        total = loss.total(parts)
        return total, {"loss": total, **loss.values(parts)}

    def detect(self, variables: dict, batch: Batch, thresholds: Thresholds | None = None) -> Detections:
        """The detections in B images, in pixels of the original images, best first; proposals if there is no head.

        The detections of an image depend neither on its bucket (with `mask_padding`) nor on the other images of the
        batch.

        Args:
          variables: the network's variables.
          batch: B images; their ground truth is ignored.
          thresholds: replace those of the first head.
        """
        pyramid = self.test_pyramid(variables, batch)
        proposals = self.proposals(variables, pyramid, batch)
        if self.heads:
            thresholds = thresholds or self.thresholds
            first = self.heads[0]
            run = self.runner(first, variables, pyramid, padded_size=self._test_padding(batch))
            found = first.detect(run, proposals, batch, thresholds=thresholds)
            found = self._with_other_heads(variables, pyramid, batch, found, thresholds)
        else:
            found = as_detections(proposals, batch, edges=self.box_rules.edges)
        return dataclasses.replace(found, boxes=_unmirrored(found.boxes, batch, found.valid))

    def candidates(self, variables: dict, pyramid: Mapping[int, jax.Array], batch: Batch) -> Candidates:
        """The first part of `detect`: boxes and scores before suppression, in pixels of the images in their files.

        Args:
          variables: the network's variables.
          pyramid: result of `test_pyramid`.
          batch: B images, which may have another aspect ratio than their files.
        """
        assert self.heads, "proposals are no candidates"
        proposals = self.proposals(variables, pyramid, batch)
        first = self.heads[0]
        run = self.runner(first, variables, pyramid, padded_size=self._test_padding(batch))
        found = first.candidates(run, proposals, batch)
        boxes = _unmirrored(found.boxes, batch, jnp.ones(found.scores.shape, bool))
        return dataclasses.replace(found, boxes=boxes / _stretch(batch, boxes.ndim))

    def describe(
        self,
        variables: dict,
        pyramid: Mapping[int, jax.Array],
        batch: Batch,
        *,
        found: Detections,
        thresholds: Thresholds | None = None,
    ) -> Detections:
        """The last part of `detect`: the heads after the first add their outputs to detections.

        Args:
          variables: the network's variables.
          pyramid: result of `test_pyramid`.
          batch: B images, which may have another aspect ratio than their files.
          found: detections in pixels of the images in their files.
          thresholds: replace those of the first head.
        """
        boxes = found.boxes * _stretch(batch, found.boxes.ndim)
        seen = dataclasses.replace(found, boxes=_unmirrored(boxes, batch, found.valid))  # mirroring is its own inverse
        more = self._with_other_heads(variables, pyramid, batch, seen, thresholds or self.thresholds)
        return dataclasses.replace(more, boxes=found.boxes)

    def _with_other_heads(self, variables, pyramid, batch, found, thresholds) -> Detections:
        """Detections with boxes as the network sees them, and the other heads' outputs for them, mirrored back."""
        for head in self.heads[1:]:
            run = self.runner(head, variables, pyramid, padded_size=self._test_padding(batch))
            found = head.detect(run, found, batch, thresholds=thresholds)
        if found.masks is None:
            return found
        mirrored = (found.valid & batch.placement.mirrored[:, None])[..., None, None]
        return dataclasses.replace(found, masks=jnp.where(mirrored, found.masks[..., ::-1], found.masks))

    @property
    def thresholds(self) -> Thresholds:
        """The default thresholds of `detect`, those of the first head."""
        return self.detection_rules.thresholds

    @property
    def detection_rules(self) -> DetectionRules:
        """How the first head makes detections."""
        assert self.heads, "proposals are no detections of a head"
        return self.heads[0].detection

    def with_rules(self, rules: DetectionRules) -> "FasterRCNN":
        """The same network whose first head makes detections by other rules."""
        assert self.heads, "proposals are no detections of a head"
        first: Any = self.heads[0]  # a dataclass, which a protocol cannot say
        return dataclasses.replace(self, heads=(dataclasses.replace(first, detection=rules), *self.heads[1:]))

    @functools.cached_property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the scalars that `losses` returns, the total first."""
        batch = jax.eval_shape(lambda: blank_batch(1, 64, 64))
        if self.network.rpn is None:
            given = jax.eval_shape(lambda: Proposals(jnp.zeros((1, 1, 4)), jnp.zeros((1, 1)), jnp.zeros((1, 1), bool)))
            batch = dataclasses.replace(batch, proposals=given)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        _, values = jax.eval_shape(functools.partial(_losses_of, self), self.network.variable_shapes(), batch, keys)
        return tuple(name for name, value in values.items() if value.ndim == 0)

    def pyramid(self, variables: dict, batch: Batch, padded_size: Array | None) -> dict[int, jax.Array]:
        """The neck's maps by stride, (B, Hl, Wl, C), zero beyond `padded_size`, int (B, 2); None masks nothing."""
        return self._pyramid(self.network.bind(variables), batch, padded_size)

    def _pyramid(self, network, batch, padded_size):
        return network.pyramid(preprocess.normalise(batch, self.pixel_means), padded_size)

    def test_pyramid(self, variables: dict, batch: Batch) -> dict[int, jax.Array]:
        """The neck's maps by stride in a test, (B, Hl, Wl, C)."""
        return self.pyramid(variables, batch, self._test_padding(batch))

    def _test_padding(self, batch):
        return batch.padded_size if self.mask_padding else None

    def precomputed(self, batch: Batch) -> Proposals | None:
        """The proposals that the batch brings, in pixels of the network's input, or None if it brings none."""
        given = batch.proposals
        if given is None:
            return None
        boxes = to_input(given.boxes, batch.placement, edges=self.box_rules.edges)
        return dataclasses.replace(given, boxes=jnp.where(given.valid[..., None], boxes, 0.0))

    def proposals(self, variables: dict, pyramid: Mapping[int, jax.Array], batch: Batch) -> Proposals:
        """The proposals in which the heads detect: the batch's, or else the RPN's."""
        given = self.precomputed(batch)
        if given is not None:
            return given
        outputs = self.network.bind(variables).propose(pyramid, padded_size=self._test_padding(batch))
        anchors = self.anchor_generator(pyramid, batch.padded_size)
        limit = batch.padded_size if self.box_rules.clip_to_padding else batch.image_size
        return propose(
            outputs,
            anchors,
            limit,
            placement=batch.placement,
            rules=self.test_proposals,
            per_image=True,
            edges=self.box_rules.edges,
        )

    def label_anchors(self, anchors: Anchors, batch: Batch, keys: jax.Array) -> AnchorTargets:
        """The RPN's targets."""
        boxes = to_input(batch.gt.boxes, batch.placement, edges=self.box_rules.edges)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
        return anchor_targets(
            anchors, dataclasses.replace(batch.gt, boxes=boxes), keys, size=batch.image_size, rules=self.anchor_rules
        )

    def sample(self, proposals: Proposals, batch: Batch, keys: jax.Array) -> RoiSamples:
        """The RoIs that the heads learn from."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        return sample_rois(
            proposals, batch.gt, keys, placement=batch.placement, rules=self.roi_rules, edges=self.box_rules.edges
        )

    @jax.named_scope("losses")
    def rpn_losses(self, outputs, targets: AnchorTargets) -> dict[str, loss.Loss]:
        """The RPN's losses and metrics."""
        return rpn_losses(outputs, targets, rules=self.rpn_loss_rules)

    def runner(self, head: RoiHead, variables: dict, pyramid: Mapping[int, jax.Array], *, padded_size: Array | None):
        """The function from RoIs (B, R, 4), pixels of the network's input, to a head's outputs; see `roi_head.Run`."""
        return self._runner(head, self.network.bind(variables), pyramid, padded_size=padded_size)

    def _runner(self, head, network, pyramid, *, padded_size):
        def run(rois, *more, **named):
            pooled = self.pool(pyramid, rois, rules=head.pooling, padded_size=padded_size)
            return network.head(pooled, head.name, *more, **named)

        return run

    @jax.named_scope("roi_align")
    def pool(
        self, pyramid: Mapping[int, jax.Array], rois: jax.Array, *, rules: PoolingRules, padded_size: Array | None
    ) -> jax.Array:
        """Features (B, R, resolution, resolution, C) of RoIs (B, R, 4) in pixels of the network's input."""
        strides = self.network.backbone.strides  # the coarser maps are the RPN's only
        # The level follows the boxes before `to_edges` moves their corners.
        levels = roi_levels(
            rois, strides=strides, canonical_scale=rules.canonical_scale, canonical_level=rules.canonical_level
        )
        return roi_align(
            [pyramid[stride] for stride in strides],
            to_edges(rois) if self.box_rules.edges else rois,
            resolution=rules.resolution,
            sampling_ratio=rules.sampling_ratio,
            strides=strides,
            padded_size=padded_size,
            levels=levels,
        )


# Equal detectors of one process share the trace, which takes seconds.
_losses_of = jax.jit(FasterRCNN.losses, static_argnums=0)


def _unmirrored(boxes, batch: Batch, valid):
    """Boxes (B, ..., 4) of the images as the network sees them, in pixels of the images that are not mirrored."""
    mirrored = batch.placement.mirrored.reshape(-1, *[1] * (valid.ndim - 1))
    return mirror(boxes, batch.original_size[:, 1], valid & mirrored)


def _stretch(batch: Batch, rank):
    """The factors of x1, y1, x2, y2 from the images' files to the images, (B, 1, ..., 4) of `rank` axes."""
    if batch.aspect_ratio is None:
        return jnp.ones((1,) * rank)
    factors = jnp.where(jnp.array([True, False, True, False]), batch.aspect_ratio[:, None], 1.0)
    return factors.reshape(-1, *[1] * (rank - 2), 4)
