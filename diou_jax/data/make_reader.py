"""Makes the readers of training, evaluation and validation losses: their buckets, their schedule and their images."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from diou_jax.data.augmentation import Augmentation, largest_size, longest_sides
from diou_jax.data.buckets import default_shapes, make_buckets
from diou_jax.data.dataset import Dataset
from diou_jax.data.reader import BatchRules, Reader
from diou_jax.data.repeat_factors import repeat_factors
from diou_jax.data.schedule import EvalSchedule, TrainSchedule
from diou_jax.errors import UserError

DEFAULT_RULES = BatchRules()


@dataclasses.dataclass(frozen=True)
class EpochRules:
    """The images of an epoch of training, and how often each one occurs.

    Attributes:
      use_flipped: TRAIN.USE_FLIPPED, whether an epoch has every image twice, the second time mirrored by `Mirror`.
      drop_empty: whether to leave out images that have no box, or crowds only.
      repeat_threshold: the share of images below which a class is rare and its images are repeated; 0 repeats none.
    """

    use_flipped: bool = True
    drop_empty: bool = True
    repeat_threshold: float = 0.0


def train_reader(
    dataset: Dataset,
    augmentations: Sequence[Augmentation],
    *,
    batch_size: int,
    seed: int,
    epoch: EpochRules = EpochRules(),
    rules: BatchRules = DEFAULT_RULES,
) -> Reader:
    """A reader of training batches.

    Args:
      dataset: the images.
      augmentations: changes of each image, in this order.
      batch_size: images of one step, over all processes and accumulated minibatches.
      seed: seed of the order and of the augmentations.
      epoch: which images an epoch has, and how often.
      rules: how images become batches.

    Raises:
      UserError: if there is nothing to train on, or the processes cannot share a batch.
    """
    records = dataset.records
    keep = has_objects(dataset) if epoch.drop_empty else np.ones(len(records), bool)
    if not dataset.annotated:
        raise UserError(
            f"{dataset.name}: {', '.join(dataset.annotation_files)} has no list of 'annotations' to learn from"
        )
    if not keep.any():
        raise UserError(f"{dataset.name}: none of its {len(keep)} images has a box (train.drop_empty leaves these out)")
    if not keep.all():
        logging.info("%s: %d images without a box left out", dataset.name, (~keep).sum())
    if dataset.records.outlines is not None:
        dataset, rules = _simplified(dataset, rules)
    # Dropped images do not influence the shapes.
    buckets, image_bucket = _buckets(dataset, augmentations, rules, keep=keep)
    schedule = TrainSchedule(
        image_bucket,
        batch_size=batch_size,
        seed=seed,
        use_flipped=epoch.use_flipped,
        keep=keep,
        repeats=_repeats(dataset, keep, threshold=epoch.repeat_threshold),
    )
    part = rules.part(batch_size)
    steps = schedule.steps_per_epoch
    reader = Reader(dataset, tuple(augmentations), buckets, schedule, steps=steps, part=part, rules=rules)
    _log_buckets(reader, image_bucket, keep)
    return reader


def eval_reader(
    dataset: Dataset, augmentations: Sequence[Augmentation], *, batch_size: int, rules: BatchRules = DEFAULT_RULES
) -> Reader:
    """A reader of evaluation batches: every image once; ``steps`` is the number of batches.

    The arguments are those of `train_reader`. The batches have no outlines, since evaluation reads masks from the
    annotation file.
    """
    dataset = dataclasses.replace(dataset, records=dataclasses.replace(dataset.records, outlines=None))
    keep = np.ones(len(dataset.records), bool)
    buckets, image_bucket = _buckets(dataset, augmentations, rules, keep=keep)
    schedule = EvalSchedule(image_bucket, batch_size=batch_size)
    part = rules.part(batch_size)
    reader = Reader(dataset, tuple(augmentations), buckets, schedule, steps=len(schedule), part=part, rules=rules)
    _log_buckets(reader, image_bucket, keep)
    return reader


def validation_reader(
    dataset: Dataset,
    augmentations: Sequence[Augmentation],
    *,
    images: int,
    batch_size: int,
    rules: BatchRules = DEFAULT_RULES,
) -> Reader:
    """A reader of batches for validation losses: some images, each once, with all of their ground truth.

    Args:
      dataset: the images.
      augmentations: changes of each image, in this order.
      images: number of images, which are spread evenly over those with an object; all if there are fewer.
      batch_size: images of one step, over all processes.
      rules: how images become batches.

    Raises:
      UserError: if no image has an object, or the processes cannot share a batch.
    """
    rows = np.flatnonzero(has_objects(dataset))
    if not len(rows):
        raise UserError(f"{dataset.name}: none of its {len(dataset)} images has a box to compute test.losses by")
    keep = np.zeros(len(dataset), bool)
    keep[rows[np.linspace(0, len(rows) - 1, min(images, len(rows))).round().astype(int)]] = True
    if dataset.records.outlines is not None:
        dataset, rules = _simplified(dataset, rules)
    buckets, image_bucket = _buckets(dataset, augmentations, rules, keep=keep)
    schedule = EvalSchedule(image_bucket, batch_size=batch_size, keep=keep)
    part = rules.part(batch_size)
    return Reader(dataset, tuple(augmentations), buckets, schedule, steps=len(schedule), part=part, rules=rules)


def has_objects(dataset: Dataset) -> np.ndarray:
    """(N,) bool, whether each image has an object that is no crowd."""
    records = dataset.records
    image = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    return np.bincount(image[~records.crowd], minlength=len(records)) > 0


def _repeats(dataset, keep, *, threshold):
    """The repeat factor of each image, or None if all are 1."""
    factors = repeat_factors(dataset.records, threshold=threshold, keep=keep)
    if (factors <= 1).all():
        return None
    logging.info(
        "%s: %d images with rare classes are repeated, up to %.2f times; %d images become %.0f",
        dataset.name,
        (factors > 1).sum(),
        factors.max(),
        keep.sum(),
        factors[keep].sum(),
    )
    return factors


def _simplified(dataset, rules):
    """The data set with outlines of at most `limit` vertices, and the rules with this limit as `max_vertices`.

    Raises:
      UserError: if no object has an outline.
    """
    records = dataset.records
    sizes = records.outlines.sizes
    if not sizes.any():
        raise UserError(
            f"{dataset.name}: none of its {len(sizes)} objects has a mask to learn from; model.mask_on=False trains "
            "the box detector"
        )
    limit = records.outlines.limit(rules.max_vertices)
    large = np.flatnonzero(sizes > limit)
    if len(large):
        image = int(np.searchsorted(records.offsets, large[0], "right")) - 1
        logging.warning(
            "%s: %d objects have more than data.max_vertices=%d vertices and are simplified to it, the first: one of "
            "%d vertices in %s",
            dataset.name,
            len(large),
            limit,
            sizes[large[0]],
            dataset.image_name(image),
        )
        records = dataclasses.replace(records, outlines=records.outlines.within(limit))
    return dataclasses.replace(dataset, records=records), dataclasses.replace(rules, max_vertices=limit)


def _buckets(dataset, augmentations, rules, *, keep):
    """The buckets of the images to `keep`, and the bucket of every image, 0 for the others."""
    records = dataset.records
    files = np.stack([records.heights, records.widths], 1)[keep]
    sizes, image_size = np.unique(files, axis=0, return_inverse=True)
    largest = np.array([largest_size(augmentations, (height, width)) for height, width in sizes.tolist()])
    buckets, kept_bucket = make_buckets(
        files,
        largest[image_size.reshape(-1)],
        shapes=rules.shapes or default_shapes(*longest_sides(augmentations), stride=rules.stride),
        fit=not rules.shapes,
        stride=rules.stride,
    )
    image_bucket = np.zeros(len(records), np.int32)
    image_bucket[keep] = kept_bucket
    return buckets, image_bucket


def _log_buckets(reader, image_bucket, keep):
    """Logs the images of each bucket, and those with more pixels or boxes than the static shapes hold."""
    records, name = reader.dataset.records, reader.dataset.name
    counts = np.bincount(image_bucket[keep], minlength=len(reader.buckets))
    for bucket, count in zip(reader.buckets, counts):
        logging.info("%s: %d images in input %s, canvas %s", name, count, bucket.shape, bucket.canvas)
    canvas = np.array([bucket.canvas for bucket in reader.buckets])[image_bucket]
    reduced = keep & ((records.heights > canvas[:, 0]) | (records.widths > canvas[:, 1]))
    if reduced.any():
        logging.info(
            "%s: %d images are far larger than the network's input and are resized on the host, the first: %s",
            name,
            reduced.sum(),
            reader.dataset.image_name(int(reduced.argmax())),
        )
    crowded = keep & (np.diff(records.offsets) > reader.rules.max_boxes)
    if crowded.any():
        logging.warning(
            "%s: %d images have more than data.max_boxes=%d boxes and keep the largest, the first: %s",
            name,
            crowded.sum(),
            reader.rules.max_boxes,
            reader.dataset.image_name(int(crowded.argmax())),
        )
