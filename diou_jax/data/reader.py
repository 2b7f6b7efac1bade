"""Makes the `Batch` of a step: everything between the schedule and the device, in one process.

A reader is a function of the step that can be pickled, so that every worker makes the same batch of a step.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from diou_jax.data import proposals
from diou_jax.data.augmentation import Augmentation, Key, augment, largest_size, longest_sides
from diou_jax.data.buckets import Bucket, default_shapes, make_buckets
from diou_jax.data.dataset import BadImageError, Dataset
from diou_jax.data.decoding import decode
from diou_jax.data.packing import Annotations, blank, example, pack, visible
from diou_jax.data.repeat_factors import repeat_factors
from diou_jax.data.schedule import Entries, EvalSchedule, TrainSchedule
from diou_jax.errors import UserError
from diou_jax.structures import Batch

# Number of unreadable images in a row that ends the run. The second half of these attempts draws from all buckets,
# since all images of a rare bucket may be unreadable.
MAX_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class BatchRules:
    """How images become batches.

    Attributes:
      shapes: shapes of the network's input; (): the default ones, fitted to the images (`buckets.make_buckets`).
      stride: FPN.COARSEST_STRIDE; padded sizes are multiples of it.
      max_boxes: G, ground-truth boxes per image.
      max_vertices: P, vertices of an object's outline, where the data set has outlines; 0: see `Outlines.limit`.
      min_visible: share of an object's box that an augmentation must leave; objects with less are left out.
      proposal_limit: R, proposals per image, where the data set has proposals.
      on_bad_image: "error" stops the run at an unreadable image. "skip" takes another image of the same bucket in
        training, the same one in every run, and after several failures one of any bucket; in evaluation the image is
        not present.
      process_index: index of this process; each process gets an equal part of every batch.
      process_count: number of processes.
    """

    shapes: tuple[tuple[int, int], ...] = ()
    stride: int = 32
    max_boxes: int = 128
    max_vertices: int = 0
    min_visible: float = 0.0
    proposal_limit: int = 2000
    on_bad_image: str = "error"
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        if self.on_bad_image not in ("error", "skip"):
            raise UserError(f"data.on_bad_image={self.on_bad_image!r}: it is 'error' or 'skip'")

    def part(self, batch_size: int) -> slice:
        """The part of a global batch that this process reads; raises UserError if the processes cannot share it."""
        if batch_size % self.process_count:
            raise UserError(f"a batch of {batch_size} images cannot be divided among {self.process_count} processes")
        size = batch_size // self.process_count
        return slice(self.process_index * size, (self.process_index + 1) * size)


@dataclasses.dataclass(frozen=True)
class EpochRules:
    """Which images an epoch of the training has, and how often.

    Attributes:
      use_flipped: TRAIN.USE_FLIPPED, whether an epoch has every image twice, the second time mirrored by `Mirror`.
      drop_empty: whether to leave out images that have no box, or crowds only.
      repeat_threshold: the share of images below which a class is rare and its images are repeated; 0 repeats none.
    """

    use_flipped: bool = True
    drop_empty: bool = True
    repeat_threshold: float = 0.0


@dataclasses.dataclass(frozen=True)
class Reader:
    """Makes this process' part of any step's batch.

    Attributes:
      dataset: the images.
      augmentations: changes of each image, in this order.
      buckets: shapes of the batches.
      schedule: the images of each step.
      steps: number of steps in an epoch (training) or in all (evaluation).
      part: this process' slice of the global batch.
      rules: how images become batches.
    """

    dataset: Dataset
    augmentations: tuple[Augmentation, ...]
    buckets: tuple[Bucket, ...]
    schedule: TrainSchedule | EvalSchedule
    steps: int
    part: slice
    rules: BatchRules

    @property
    def image_bytes(self) -> int:
        """Bytes of the largest image on its canvas."""
        return max(bucket.canvas_bytes for bucket in self.buckets)

    def __call__(self, step: int) -> tuple[Batch, tuple[str, ...]]:
        """The batch of a step, as numpy arrays, and a message for each image that was skipped.

        Raises:
          BadImageError: if an image cannot be read and the rules do not skip it.
        """
        entries = self.schedule.entries(step)
        bucket = self.buckets[entries.bucket]
        images = []
        skipped: list[str] = []
        for slot in range(*self.part.indices(len(entries.index))):
            images.append(self._read_slot(step, slot, entries, skipped))
        return pack(images, bucket), tuple(skipped)

    def blanks(self, start: int, stop: int) -> list[Batch]:
        """A batch of black images for each bucket that occurs in the steps from `start` to `stop`, as numpy arrays."""
        # As many steps as two epochs have contain one whole epoch, in which every bucket occurs.
        steps = range(start, min(stop, start + 2 * self.steps))
        met = sorted({self.schedule.entries(step).bucket for step in steps})
        size = len(range(*self.part.indices(len(self.schedule.entries(start).index)))) if met else 0
        return [pack([self._blank(0, self.buckets[number])] * size, self.buckets[number]) for number in met]

    def _read_slot(self, step, slot, entries: Entries, skipped: list[str]):
        index, bucket = int(entries.index[slot]), self.buckets[entries.bucket]
        key = Key(int(entries.bits[slot]), bool(entries.mirrored[slot]))
        if not entries.present[slot]:
            return self._blank(index, bucket)
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self._read(index, key, bucket)
            except BadImageError as error:
                if self.rules.on_bad_image == "error":
                    raise
                skipped.append(str(error))
            except Exception as error:
                error.add_note(f"while reading {self.dataset.image_name(index)}")
                raise
            if isinstance(self.schedule, EvalSchedule):
                return self._blank(index, bucket)
            any_bucket = attempt >= MAX_ATTEMPTS // 2
            index, mirrored = self.schedule.substitute(step, slot, attempt, any_bucket=any_bucket)
            key = key._replace(mirrored=mirrored)
        raise UserError(f"{MAX_ATTEMPTS} images in a row cannot be read, the last: {skipped[-1]}")

    def _read(self, index: int, key: Key, bucket: Bucket):
        """One image with its ground truth."""
        records = self.dataset.records
        height, width = int(records.heights[index]), int(records.widths[index])
        image = decode(self.dataset.read(index), self.dataset.image_name(index), height=height, width=width)
        objects = Annotations(*records.annotations(index), self._masks(index))
        # Crowd regions are no objects that a crop should keep.
        key = key._replace(boxes=(objects.boxes + np.array([0.0, 0.0, 1.0, 1.0]))[~objects.crowd])
        view = augment(self.augmentations, key, (height, width)).within(bucket.shape)
        fields = example(
            image,
            view,
            bucket,
            stride=self.rules.stride,
            annotations=visible(objects, view, least=self.rules.min_visible),
            max_boxes=self.rules.max_boxes,
            index=index,
        )
        if (table := self.dataset.proposals) is not None:
            fields["proposals"] = proposals.in_view(table, index, view, limit=self.rules.proposal_limit)
        return fields

    def _masks(self, index: int):
        outlines = self.dataset.records.outlines_of(index)
        return None if outlines is None else outlines.padded(self.rules.max_vertices)

    def _blank(self, index: int, bucket: Bucket):
        fields = blank(
            bucket,
            stride=self.rules.stride,
            max_boxes=self.rules.max_boxes,
            max_vertices=None if self.dataset.records.outlines is None else self.rules.max_vertices,
            index=index,
        )
        if self.dataset.proposals is not None:
            fields["proposals"] = proposals.pad(*proposals.NONE, limit=self.rules.proposal_limit)
        return fields


def train_reader(
    dataset: Dataset,
    augmentations: Sequence[Augmentation],
    *,
    batch_size: int,
    seed: int,
    epoch: EpochRules = EpochRules(),
    rules: BatchRules = BatchRules(),
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
    _report(reader, image_bucket, keep)
    return reader


def eval_reader(
    dataset: Dataset, augmentations: Sequence[Augmentation], *, batch_size: int, rules: BatchRules = BatchRules()
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
    _report(reader, image_bucket, keep)
    return reader


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


def validation_reader(
    dataset: Dataset,
    augmentations: Sequence[Augmentation],
    *,
    images: int,
    batch_size: int,
    rules: BatchRules = BatchRules(),
) -> Reader:
    """A reader of some images with their ground truth, outlines among it, each once, for losses.

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


def _simplified(dataset, rules):
    """The data set with outlines that fit, and the rules with their limit; raises UserError without any outline."""
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


def _report(reader, image_bucket, keep):
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
