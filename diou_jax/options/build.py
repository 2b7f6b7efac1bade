"""Builds the objects that a config describes; network, data and training get options as plain values from here."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from diou_jax.data import catalog, coco_classes, layouts, proposals_file, reader, shapes
from diou_jax.data.augmentation import Augmentation, Mirror, ScaleChoice
from diou_jax.data.augmented_reader import AugmentedReader, augmented_reader
from diou_jax.data.dataset import BACKGROUND, Dataset
from diou_jax.data.passes import Pass, Passes, arrange
from diou_jax.detection.anchors import AnchorGenerator
from diou_jax.detection.augmented import AugmentedDetection, Function
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
from diou_jax.errors import UserError
from diou_jax.models.fpn import FPN
from diou_jax.models.network import HeadModule, Network
from diou_jax.models.resnet import ResNet, frozen_stage
from diou_jax.models.rpn import RPNHead
from diou_jax.optimization import batch_rule, optimizer
from diou_jax.optimization.batch_rule import BatchRule, BatchSize, Schedule
from diou_jax.optimization.optimizer import OptimizerRules
from diou_jax.optimization.schedules import MultiStep, WarmUp
from diou_jax.programs import Programs

BOX_RULES = {
    "detectron": BoxRules(edges=False, clip_to_padding=True, anchors="detectron"),
    "torchvision": BoxRules(edges=True, clip_to_padding=False, anchors="torchvision"),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def dataset(config: ConfigDict, names: Sequence[str], *, masks: bool | None = None) -> Dataset:
    """The data sets `names` of the config's source, joined; `shapes` is drawn if it does not exist yet.

    Args:
      config: the config.
      names: names of data sets.
      masks: whether to read the objects' outlines; None: if model.mask_on.

    Raises:
      UserError: if files are missing or damaged.
    """
    data = config.data
    masks = config.model.mask_on if masks is None else masks
    if data.source == "own":
        return catalog.load(
            tuple(names),
            data.root,
            min_area=config.train.gt_min_area,
            masks=masks,
            layout=layout(config),
            val_share=data.val_share,
            split_seed=data.split_seed,
        )
    if data.source == "tfds":
        if masks:
            raise UserError(
                "data.source=tfds has no masks: set data.source=coco, or model.mask_on=False for boxes only"
            )
        from diou_jax.data import tfds  # an extra, which only this source needs

        return tfds.load(names, data.root, min_area=config.train.gt_min_area, annotations=data.val_annotations)
    if data.source == "shapes":
        shapes.ensure(data.root, masks=masks)
    return catalog.load(tuple(names), data.root, min_area=config.train.gt_min_area, masks=masks)


def with_train_proposals(config: ConfigDict, data: Dataset) -> Dataset:
    """The training set with the proposals of its files, if Fast R-CNN is trained; else unchanged.

    Raises:
      UserError: if there is no file, or a file cannot be read or belongs to other images.
    """
    return _with_proposals(config, data, "train.proposal_files", config.train.proposal_files)


def with_test_proposals(config: ConfigDict, data: Dataset, name: str) -> Dataset:
    """As `with_train_proposals`, for the test set of a name."""
    files = dict(zip(config.test.datasets, config.test.proposal_files))
    return _with_proposals(config, data, "test.proposal_files", [files[name]] if name in files else [])


def _with_proposals(config, data, option, files):
    if config.model.faster_rcnn:
        return data
    if not files:
        raise UserError(
            f"{option}=(): with model.faster_rcnn=False it must name a file of proposals for each data set; an "
            "evaluation of a run with model.rpn_only=True writes them"
        )
    return proposals_file.attach(data, files)


def layout(config: ConfigDict) -> layouts.Layout:
    """The files of own data; raises UserError if they cannot be found."""
    data = config.data
    return layouts.find(
        data.root,
        train=(data.train_annotations, data.train_images),
        val=(data.val_annotations, data.val_images),
    )


def class_table(config: ConfigDict, num_classes: int | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids of a detector's classes: COCO's if there are 81, else those of the training set.

    Args:
      config: the config, which names the training set.
      num_classes: K of the weights, background included, or None if unknown.

    Raises:
      UserError: if the training set has another number of classes, or is needed and missing.
    """
    if num_classes == len(coco_classes.NAMES):
        return coco_classes.NAMES, coco_classes.IDS
    try:
        data = dataset(config, config.train.datasets, masks=False)
    except UserError:
        if num_classes is None:
            raise
        return (BACKGROUND, *(f"class {label}" for label in range(1, num_classes))), (-1, *range(1, num_classes))
    if num_classes not in (None, len(data.class_names)):
        raise UserError(
            f"the weights are for {num_classes} classes with the background, {data.name} has {len(data.class_names)}; "
            "set train.datasets to the data that they were trained on"
        )
    return data.class_names, data.category_ids


def rule(
    config: ConfigDict,
    *,
    batch_size: int | None = None,
    explicit: Collection[str] = (),
    scale_rate: bool | None = None,
) -> BatchRule:
    """Batch size, learning rate and schedule on the devices of all processes.

    Args:
      config: the run's config.
      batch_size: images of an iteration of a resumed run, which keeps this number on any devices.
      explicit: dotted names of options that keep their values.
      scale_rate: whether the learning rate follows the batch size; None: unless the optimiser is Adam.

    Raises:
      UserError: if the devices cannot share the batch.
    """
    solver, devices, per_device = config.solver, jax.device_count(), config.train.ims_per_batch
    images = batch_size or config.train.batch_size or devices * per_device
    batch = batch_rule.divide(images, devices, resumed=batch_size is not None)
    written = Schedule(solver.base_lr, tuple(solver.steps), solver.max_iter, config.fpn.rpn_collect_scale)
    if not solver.scale_with_devices:
        return BatchRule(batch, written)
    return batch_rule.adapt(
        written,
        batch,
        written_for=BatchSize(config.num_gpus * per_device, config.num_gpus),
        iter_size=solver.iter_size,
        scale_rate=solver.type != "Adam" if scale_rate is None else scale_rate,
        explicit=explicit,
    )


def train_reader(config: ConfigDict, data: Dataset, batch: BatchSize) -> reader.Reader:
    """The reader that makes training batches of a data set."""
    return reader.train_reader(
        data,
        train_augmentations(config),
        batch_size=batch.images * config.solver.iter_size,
        seed=config.rng_seed,
        use_flipped=config.train.use_flipped,
        drop_empty=config.train.drop_empty,
        rules=_batch_rules(config, config.train.proposal_limit),
    )


def eval_reader(config: ConfigDict, data: Dataset) -> reader.Reader | AugmentedReader:
    """The reader of batches that hold every image of a data set once, in all passes if there are several."""
    batch_size, rules = config.test.ims_per_batch * jax.device_count(), _batch_rules(config, config.test.proposal_limit)
    if (several := passes(config)) is not None:
        return augmented_reader(data, several.distinct, batch_size=batch_size, rules=rules)
    return reader.eval_reader(data, usual_pass(config).augmentations, batch_size=batch_size, rules=rules)


def train_augmentations(config: ConfigDict) -> tuple[Augmentation, ...]:
    """The changes of an image in training, in their order."""
    return Mirror(), ScaleChoice(tuple(config.train.scales), config.train.max_size)


def usual_pass(config: ConfigDict) -> Pass:
    """The way in which evaluation and prediction look at an image."""
    return Pass(config.test.scale, config.test.max_size)


def passes(config: ConfigDict) -> Passes | None:
    """The passes of augmented testing, None without it."""
    test = config.test
    if not test.bbox_aug.enabled and not test.mask_aug.enabled:
        return None
    usual = usual_pass(config)
    # The order is the original's; it decides between equal scores.
    boxes = *_more_passes(usual, test.bbox_aug), usual
    masks = usual, *_more_passes(usual, test.mask_aug)
    return arrange(usual, boxes=boxes, masks=masks if config.model.mask_on else ())


def augmented_detection(
    config: ConfigDict, detector: FasterRCNN, compiled: Callable[[str, Function], Programs]
) -> AugmentedDetection:
    """The config's augmented testing; `compiled` is that of `AugmentedDetection`."""
    several = passes(config)
    assert several is not None, "augmented testing is off"
    return AugmentedDetection(
        detector,
        boxes=several.boxes,
        masks=several.masks,
        heuristic=config.test.mask_aug.heur,
        compiled=compiled,
    )


def _more_passes(usual, options) -> list[Pass]:
    """The passes besides the usual one that a group of options asks for."""
    if not options.enabled:
        return []
    mirrored = functools.partial(dataclasses.replace, mirrored=True)
    found = [mirrored(usual)] if options.h_flip else []
    for one, both in [
        *((Pass(scale, options.max_size), options.scale_h_flip) for scale in options.scales),
        *(
            (dataclasses.replace(usual, aspect_ratio=ratio), options.aspect_ratio_h_flip)
            for ratio in options.aspect_ratios
        ),
    ]:
        found += [one, mirrored(one)] if both else [one]
    return found


def loading(config: ConfigDict) -> dict[str, Any]:
    """Keyword arguments of `loader.batches`: numbers of threads and processes that read, and the time limit."""
    return {"threads": config.data.threads, "workers": config.data.workers, "timeout": config.data.timeout}


def _batch_rules(config, proposal_limit):
    return reader.BatchRules(
        proposal_limit=proposal_limit,
        shapes=tuple(config.data.buckets),
        stride=config.fpn.coarsest_stride,
        max_boxes=config.data.max_boxes,
        max_vertices=config.data.max_vertices,
        on_bad_image=config.data.on_bad_image,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def network(config: ConfigDict, num_classes: int) -> Network:
    """The Flax modules for `num_classes` classes, background included."""
    dtype, group_norm, resnets = DTYPES[config.dtype], _group_norm(config), config.resnets
    return Network(
        backbone=ResNet(
            blocks=tuple(resnets.blocks),
            num_groups=resnets.num_groups,
            width_per_group=resnets.width_per_group,
            stem_width=resnets.stem_width,
            stride_1x1=resnets.stride_1x1,
            freeze_at=resnets.freeze_at,
            norm="group" if resnets.use_gn else "affine",
            group_norm=group_norm,
            dtype=dtype,
        ),
        neck=FPN(
            features=config.fpn.dim, norm="group" if config.fpn.use_gn else "bias", group_norm=group_norm, dtype=dtype
        ),
        rpn=_rpn(config) if config.model.faster_rcnn else None,
        heads=tuple(HeadModule(head.name, head.module, head.pooling.resolution) for head in heads(config, num_classes)),
    )


def _rpn(config) -> RPNHead:
    anchors = len(config.fpn.rpn_aspect_ratios)
    return RPNHead(anchors_per_cell=anchors, features=config.fpn.dim, dtype=DTYPES[config.dtype])


def _group_norm(config):
    options = config.group_norm
    return (
        ("num_groups", options.num_groups),
        ("dim_per_group", options.dim_per_gp),
        ("epsilon", options.epsilon),
    )


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
        norm_type="group" if options.roi_box_head == "roi_Xconv1fc_gn_head" else "bias",
        group_norm=_group_norm(config),
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
            soft_nms=_rules(SoftNmsRules, test.soft_nms) if test.soft_nms.enabled else None,
            bbox_vote=_rules(BoxVoteRules, test.bbox_vote) if test.bbox_vote.enabled else None,
        ),
        edges=BOX_RULES[model.box_convention].edges,
    )


def _mask_head(config, num_classes) -> MaskRoiHead:
    mrcnn, train = config.mrcnn, config.train
    return MaskRoiHead(
        num_masks=num_classes if mrcnn.cls_specific_mask else 1,
        num_convs=mrcnn.num_convs,
        features=mrcnn.dim_reduced,
        norm_type="group" if mrcnn.use_gn else "bias",
        group_norm=_group_norm(config),
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
        roi_rules=_rules(RoiRules, train),
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


def _rules(kind, options):
    """The rules of a kind whose fields have the names of options."""
    return kind(**{field.name: options[field.name] for field in dataclasses.fields(kind)})


def rate(config: ConfigDict, schedule: Schedule) -> MultiStep:
    """The learning rate as a function of the step."""
    solver = config.solver
    warm_up = WarmUp(solver.warm_up_iters, solver.warm_up_factor, solver.warm_up_method)
    return MultiStep(schedule.base_lr, schedule.steps, solver.gamma, warm_up)


def make_optimizer(config: ConfigDict, schedule: Schedule) -> optax.GradientTransformation:
    """The optimiser of the network's parameters."""
    return optimizer.make_optimizer(
        rate(config, schedule),
        frozen=functools.partial(frozen_stage, freeze_at=config.resnets.freeze_at),
        rules=_rules(OptimizerRules, config.solver),
    )
