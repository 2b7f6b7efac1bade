"""Builds the network, its RoI heads and the detector that a config describes."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from diou_jax.detection.anchors import AnchorGenerator
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.detection.heads.box import BoxRoiHead
from diou_jax.detection.heads.mask import MaskRoiHead
from diou_jax.detection.heads.roi_head import AddedHead, FirstHead
from diou_jax.detection.rules import (
    AnchorRules,
    BoxRules,
    BoxVoteRules,
    DetectionRules,
    PoolingRules,
    ProposalRules,
    RoiRules,
    RpnLossRules,
    SoftNmsRules,
    Thresholds,
)
from diou_jax.devices import AXIS
from diou_jax.models.fpn import FPN
from diou_jax.models.network import HeadModule, Network
from diou_jax.models.norms import Norm, UseAffine, UseBatchNorm, UseBias, UseGroupNorm
from diou_jax.models.resnet import ResNet
from diou_jax.models.rpn import RPNHead

BOX_RULES = {
    "detectron": BoxRules(edges=False, clip_to_padding=True, anchors="detectron"),
    "torchvision": BoxRules(edges=True, clip_to_padding=False, anchors="torchvision"),
}
NO_NORM = UseBias()
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def network(config: ConfigDict, num_classes: int) -> Network:
    """The Flax modules for `num_classes` classes, background included."""
    dtype, resnets, fpn = DTYPES[config.dtype], config.resnets, config.fpn
    return Network(
        backbone=ResNet(
            blocks=tuple(resnets.blocks),
            num_groups=resnets.num_groups,
            width_per_group=resnets.width_per_group,
            stem_width=resnets.stem_width,
            stride_1x1=resnets.stride_1x1,
            freeze_at=resnets.freeze_at,
            norm=_norm(config, group=resnets.use_gn, batch=resnets.use_bn, neither=UseAffine()),
            dtype=dtype,
        ),
        neck=FPN(features=fpn.dim, norm=_norm(config, group=fpn.use_gn, batch=fpn.use_bn), dtype=dtype),
        rpn=_rpn(config) if config.model.faster_rcnn else None,
        heads=tuple(
            HeadModule(head.name, head.module(), head.pooling.resolution) for head in heads(config, num_classes)
        ),
        epsilon=config.batch_norm.epsilon,
    )


def _rpn(config) -> RPNHead:
    fpn, dtype = config.fpn, DTYPES[config.dtype]
    anchors = len(fpn.rpn_aspect_ratios)
    return RPNHead(anchors_per_cell=anchors, features=fpn.dim, num_convs=fpn.rpn_num_convs, dtype=dtype)


def _norm(config, *, group, batch, neither: Norm = NO_NORM) -> Norm:
    """The norm of a part of the network that has GroupNorm, batch norm, or neither."""
    if group:
        options = config.group_norm
        return UseGroupNorm(options.num_groups, dim_per_group=options.dim_per_gp, epsilon=options.epsilon)
    if batch:
        return UseBatchNorm(config.batch_norm.momentum, epsilon=config.batch_norm.epsilon, axis=AXIS)
    return neither


def heads(config: ConfigDict, num_classes: int) -> tuple[()] | tuple[FirstHead, *tuple[AddedHead, ...]]:
    """The RoI heads for `num_classes` classes, background included, in the order in which they detect."""
    if config.model.rpn_only:
        return ()
    box = _box_head(config, num_classes)
    return (box, _mask_head(config, num_classes)) if config.model.mask_on else (box,)


def _box_head(config, num_classes) -> BoxRoiHead:
    model, test, options = config.model, config.test, config.fast_rcnn
    return BoxRoiHead(
        num_classes=num_classes,
        hidden=options.mlp_head_dim,
        num_convs=0 if options.roi_box_head == "roi_2mlp_head" else options.num_stacked_convs,
        conv_features=options.conv_head_dim,
        norm=_norm(config, group="_gn_" in options.roi_box_head, batch="_bn_" in options.roi_box_head),
        class_agnostic=model.cls_agnostic_bbox_reg,
        dtype=DTYPES[config.dtype],
        box_loss=model.loss_type,
        box_weight=model.loss_bbox_weight,
        reg_weights=tuple(model.bbox_reg_weights),
        pooling=_pooling_rules(config, options),
        detection=DetectionRules(
            thresholds=Thresholds(score=test.score_thresh, nms=test.nms),
            diou_nms=test.diou_nms.enabled,
            beta1=test.diou_nms.beta1,
            detections_per_im=test.detections_per_im,
            soft_nms=rules_of(SoftNmsRules, test.soft_nms) if test.soft_nms.enabled else None,
            bbox_vote=rules_of(BoxVoteRules, test.bbox_vote) if test.bbox_vote.enabled else None,
        ),
        edges=BOX_RULES[model.box_convention].edges,
    )


def _mask_head(config, num_classes) -> MaskRoiHead:
    mrcnn, train = config.mrcnn, config.train
    return MaskRoiHead(
        num_masks=num_classes if mrcnn.cls_specific_mask else 1,
        num_convs=mrcnn.num_convs,
        features=mrcnn.dim_reduced,
        norm=_norm(config, group=mrcnn.use_gn, batch=mrcnn.use_bn),
        dtype=DTYPES[config.dtype],
        resolution=mrcnn.resolution,
        weight=mrcnn.weight_loss_mask,
        most=round(train.batch_size_per_im * train.fg_fraction),
        pooling=_pooling_rules(config, mrcnn),
        edges=BOX_RULES[config.model.box_convention].edges,
    )


def _pooling_rules(config, head):
    """How RoIs are pooled for the head with the options `head`."""
    return PoolingRules(
        resolution=head.roi_xform_resolution,
        sampling_ratio=head.roi_xform_sampling_ratio,
        canonical_scale=config.fpn.roi_canonical_scale,
        canonical_level=config.fpn.roi_canonical_level,
    )


def detector(config: ConfigDict, num_classes: int, *, collect_scale: float = 1.0) -> FasterRCNN:
    """The network and its rules; `collect_scale`, for training, is that of `Schedule`."""
    model, train, test = config.model, config.train, config.test
    box_rules = BOX_RULES[model.box_convention]
    return FasterRCNN(
        network=network(config, num_classes),
        heads=heads(config, num_classes),
        anchor_generator=AnchorGenerator(
            start_size=config.fpn.rpn_anchor_start_size,
            aspect_ratios=tuple(config.fpn.rpn_aspect_ratios),
            layout=box_rules.anchors,
        ),
        train_proposals=_proposal_rules(train, collect_scale),
        test_proposals=_proposal_rules(test, 1.0),
        anchor_rules=AnchorRules(
            batch_size_per_im=train.rpn_batch_size_per_im,
            fg_fraction=train.rpn_fg_fraction,
            positive_overlap=train.rpn_positive_overlap,
            negative_overlap=train.rpn_negative_overlap,
            straddle_thresh=train.rpn_straddle_thresh,
        ),
        rpn_loss_rules=RpnLossRules(
            box=model.rpn_loss_type,
            box_weight=model.rpn_loss_bbox_weight,
            batch_size_per_im=train.rpn_batch_size_per_im,
        ),
        roi_rules=rules_of(RoiRules, train),
        box_rules=box_rules,
        pixel_means=tuple(config.pixel_means),
        mask_padding=config.fpn.mask_padding,
        mask_padding_train=config.fpn.mask_padding_train,
    )


def _proposal_rules(options, collect_scale):
    return ProposalRules(
        pre_nms_top_n=options.rpn_pre_nms_top_n,
        post_nms_top_n=options.rpn_post_nms_top_n,
        nms_thresh=options.rpn_nms_thresh,
        min_size=options.rpn_min_size,
        collect_top_n=int(options.rpn_post_nms_top_n * collect_scale + 0.5),
    )


def rules_of(kind: Any, options: ConfigDict) -> Any:
    """The rules of a kind whose fields have the names of options."""
    return kind(**{field.name: options[field.name] for field in dataclasses.fields(kind)})
