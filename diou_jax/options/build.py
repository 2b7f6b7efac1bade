"""Builds the objects that a config describes; network, data and training get options as plain values from here."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from diou_jax.data import catalog, coco_classes, layouts, make_reader, proposals_file, shapes
from diou_jax.data.augmentation import Augmentation, Mirror, ScaleChoice
from diou_jax.data.augmented_reader import AugmentedReader, augmented_reader
from diou_jax.data.dataset import BACKGROUND, Dataset
from diou_jax.data.iou_crop import IoUCrop
from diou_jax.data.passes import Pass, Passes, arrange
from diou_jax.data.photometric import PhotometricJitter
from diou_jax.data.reader import BatchRules, Reader
from diou_jax.data.scale_jitter import ScaleJitter
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.detection.staged import Function, Selection, StagedDetection
from diou_jax.errors import UserError
from diou_jax.models.resnet import frozen_stage
from diou_jax.optimization import batch_rule, optimizer
from diou_jax.optimization.batch_rule import BatchRule, BatchSize, Schedule
from diou_jax.optimization.optimizer import OptimizerRules
from diou_jax.optimization.schedules import Annealed, MultiStep, WarmUp
from diou_jax.options.model import detector as detector
from diou_jax.options.model import heads as heads
from diou_jax.options.model import network as network
from diou_jax.options.model import rules_of
from diou_jax.programs import Programs
from diou_jax.weights.sources import WeightSource


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


def class_table(config: ConfigDict, source: WeightSource) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids of a detector's K classes, background first.

    They are those that the weight file names, else COCO's if there are 81, else those of the training set.

    Args:
      config: the config, which names the training set.
      source: the weight file.

    Raises:
      UserError: if the training set has another number of classes, or is needed and missing.
    """
    num_classes, record = source.num_classes, source.record
    if record.class_names:
        return record.class_names, record.category_ids
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
      scale_rate: whether the learning rate follows the batch size; None: if the optimiser is SGD.

    Raises:
      UserError: if the devices cannot share the batch.
    """
    solver, devices, per_device = config.solver, jax.device_count(), config.train.ims_per_batch
    images = batch_size or config.train.batch_size or devices * per_device
    batch = batch_rule.divide(images, devices, resumed=batch_size is not None)
    # Other policies do not read the steps, so that the rule has none to adapt.
    steps = tuple(solver.steps) if solver.lr_policy == "steps_with_decay" else ()
    written = Schedule(solver.base_lr, steps, solver.max_iter, config.fpn.rpn_collect_scale)
    if not solver.scale_with_devices:
        return BatchRule(batch, written)
    return batch_rule.adapt(
        written,
        batch,
        written_for=BatchSize(config.num_gpus * per_device, config.num_gpus),
        iter_size=solver.iter_size,
        scale_rate=solver.type == "SGD" if scale_rate is None else scale_rate,
        explicit=explicit,
    )


def train_reader(config: ConfigDict, data: Dataset, batch: BatchSize) -> Reader:
    """The reader that makes training batches of a data set."""
    rules = _batch_rules(config, config.train.proposal_limit)
    if config.train.jitter:
        rules = dataclasses.replace(rules, shapes=())  # the square is the only input
    return make_reader.train_reader(
        data,
        train_augmentations(config),
        batch_size=batch.images * config.solver.iter_size,
        seed=config.rng_seed,
        epoch=make_reader.EpochRules(
            use_flipped=config.train.use_flipped,
            drop_empty=config.train.drop_empty,
            repeat_threshold=config.data.repeat_threshold,
        ),
        rules=rules,
    )


def eval_reader(config: ConfigDict, data: Dataset) -> Reader | AugmentedReader:
    """The reader of batches that hold every image of a data set once, in all passes if there are several."""
    batch_size, rules = config.test.ims_per_batch * jax.device_count(), _batch_rules(config, config.test.proposal_limit)
    if (several := passes(config)) is not None:
        return augmented_reader(data, several.distinct, batch_size=batch_size, rules=rules)
    return make_reader.eval_reader(data, usual_pass(config).augmentations, batch_size=batch_size, rules=rules)


def validation_reader(config: ConfigDict, data: Dataset) -> Reader:
    """The reader of the images of a test set on which losses are computed, one for each device and batch."""
    return make_reader.validation_reader(
        data,
        usual_pass(config).augmentations,
        images=config.test.losses,
        batch_size=jax.device_count(),
        rules=_batch_rules(config, config.test.proposal_limit),
    )


def train_augmentations(config: ConfigDict) -> tuple[Augmentation, ...]:
    """The changes of an image in training, in their order."""
    train = config.train
    found: list[Augmentation] = [PhotometricJitter(train.photometric)] if train.photometric else []
    found += [IoUCrop(train.iou_crop)] if train.iou_crop else []
    sizing = (
        ScaleJitter(train.jitter[0], train.jitter[1], side=train.jitter_size)
        if train.jitter
        else ScaleChoice(tuple(train.scales), train.max_size)
    )
    return *found, Mirror(), sizing


def usual_pass(config: ConfigDict) -> Pass:
    """The way in which evaluation and prediction look at an image."""
    return Pass(config.test.scale, config.test.max_size)


def passes(config: ConfigDict) -> Passes | None:
    """The passes of augmented testing, None without it."""
    return _passes(config) if config.test.bbox_aug.enabled or config.test.mask_aug.enabled else None


def _passes(config) -> Passes:
    """The passes of a test; without augmented testing the usual one alone."""
    test, usual = config.test, usual_pass(config)
    # The order is the original's; it decides between equal scores.
    boxes = *_more_passes(usual, test.bbox_aug), usual
    masks = usual, *_more_passes(usual, test.mask_aug)
    return arrange(usual, boxes=boxes, masks=masks if config.model.mask_on else ())


def staged_detection(
    config: ConfigDict,
    detector: FasterRCNN,
    compiled: Callable[[str, Function], Programs],
    *,
    selections: Sequence[Selection] = (),
) -> StagedDetection:
    """Detection by the config's passes, several in augmented testing, and by `selections`.

    The arguments `compiled` and `selections` are those of `StagedDetection`.
    """
    several = _passes(config)
    return StagedDetection(
        detector,
        boxes=several.boxes,
        masks=several.masks,
        heuristic=config.test.mask_aug.heur if config.test.mask_aug.enabled else "SOFT_AVG",
        compiled=compiled,
        selections=selections,
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
    return BatchRules(
        proposal_limit=proposal_limit,
        shapes=tuple(config.data.buckets),
        stride=config.fpn.coarsest_stride,
        max_boxes=config.data.max_boxes,
        max_vertices=config.data.max_vertices,
        min_visible=config.train.min_visible,
        on_bad_image=config.data.on_bad_image,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def learning_rate(config: ConfigDict, schedule: Schedule) -> MultiStep | Annealed:
    """The learning rate as a function of the step."""
    solver = config.solver
    warm_up = WarmUp(solver.warm_up_iters, solver.warm_up_factor, solver.warm_up_method)
    if solver.lr_policy == "steps_with_decay":
        return MultiStep(schedule.base_lr, schedule.steps, solver.gamma, warm_up)
    return Annealed(schedule.base_lr, solver.lr_policy, last=schedule.max_iter, warm_up=warm_up)


def make_optimizer(config: ConfigDict, schedule: Schedule) -> optax.GradientTransformation:
    """The optimiser of the network's parameters."""
    return optimizer.make_optimizer(
        learning_rate(config, schedule),
        frozen=functools.partial(frozen_stage, freeze_at=config.resnets.freeze_at),
        rules=rules_of(OptimizerRules, config.solver),
    )
