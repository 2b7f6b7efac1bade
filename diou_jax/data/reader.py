"""Makes the `Batch` of a step: everything between the schedule and the device, in one process.

A reader is a function of the step that can be pickled, so that every worker makes the same batch of a step.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from diou_jax.data import transforms
from diou_jax.data.buckets import Bucket, make_buckets
from diou_jax.data.dataset import BadImageError, Dataset
from diou_jax.data.packing import blank, example, pack
from diou_jax.data.schedule import Entries, EvalSchedule, TrainSchedule
from diou_jax.errors import UserError
from diou_jax.structures import Batch

# Number of unreadable images in a row that ends the run. The second half of these attempts draws from all buckets,
# since all images of a rare bucket may be unreadable.
MAX_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class Reader:
    """Makes this process' part of any step's batch.

    Attributes:
      dataset: the images.
      buckets: shapes of the batches.
      schedule: the images of each step.
      steps: number of steps in an epoch (training) or in all (evaluation).
      scales: the scales that entries refer to.
      max_size: limit of the longer side.
      stride: extents are multiples of this.
      max_boxes: G, ground-truth boxes per image.
      part: this process' slice of the global batch.
      skip_bad_images: whether an unreadable image is replaced (training) or marked as not present (evaluation).
    """

    dataset: Dataset
    buckets: tuple[Bucket, ...]
    schedule: TrainSchedule | EvalSchedule
    steps: int
    scales: tuple[int, ...]
    max_size: int
    stride: int
    max_boxes: int
    part: slice
    skip_bad_images: bool

    def __call__(self, step: int) -> tuple[Batch, tuple[str, ...]]:
        """The batch of a step, as numpy arrays, and a message for each image that was skipped.

        Raises:
          BadImageError: if an image cannot be read and `skip_bad_images` is False.
        """
        entries = self.schedule.entries(step)
        bucket = self.buckets[entries.bucket]
        images = []
        skipped: list[str] = []
        for slot in range(*self.part.indices(len(entries.index))):
            images.append(self._read_slot(step, slot, entries, bucket, skipped))
        return pack(images, bucket), tuple(skipped)

    def blanks(self, start: int, stop: int) -> list[Batch]:
        """A batch of black images for each bucket that occurs in the steps from `start` to `stop`, as numpy arrays."""
        # As many steps as two epochs have contain one whole epoch, in which every bucket occurs.
        steps = range(start, min(stop, start + 2 * self.steps))
        met = sorted({self.schedule.entries(step).bucket for step in steps})
        size = len(range(*self.part.indices(len(self.schedule.entries(start).index)))) if met else 0
        return [pack([self._blank(0, self.buckets[number])] * size, self.buckets[number]) for number in met]

    def _read_slot(self, step, slot, entries: Entries, bucket: Bucket, skipped: list[str]):
        index, flip = int(entries.index[slot]), bool(entries.flip[slot])
        if not entries.present[slot]:
            return self._blank(index, bucket)
        target, max_size = self.scales[entries.scale[slot]], self.max_size
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self._read(index, flip, target, max_size, bucket)
            except BadImageError as error:
                if not self.skip_bad_images:
                    raise
                skipped.append(str(error))
            except Exception as error:
                error.add_note(f"while reading {self.dataset.image_name(index)}")
                raise
            if isinstance(self.schedule, EvalSchedule):
                return self._blank(index, bucket)
            any_bucket = attempt >= MAX_ATTEMPTS // 2
            index, flip = self.schedule.substitute(step, slot, attempt, any_bucket=any_bucket)
            if any_bucket:
                max_size = min(self.max_size, *bucket.shape)  # so that landscape and portrait images fit
        raise UserError(f"{MAX_ATTEMPTS} images in a row cannot be read, the last: {skipped[-1]}")

    def _read(self, index: int, flip: bool, target: int, max_size: int, bucket: Bucket):
        """One image with its ground truth."""
        records = self.dataset.records
        height, width = int(records.heights[index]), int(records.widths[index])
        image = transforms.decode(self.dataset.read(index), self.dataset.image_name(index), height=height, width=width)
        return example(
            image,
            bucket,
            target=target,
            max_size=max_size,
            flip=flip,
            stride=self.stride,
            annotations=records.annotations(index),
            max_boxes=self.max_boxes,
            index=index,
        )

    def _blank(self, index: int, bucket: Bucket):
        return blank(bucket, stride=self.stride, max_boxes=self.max_boxes, index=index)


def train_reader(
    dataset: Dataset,
    *,
    scales: Sequence[int],
    max_size: int,
    batch_size: int,
    seed: int,
    use_flipped: bool = True,
    drop_empty: bool = True,
    max_boxes: int = 128,
    shapes: Sequence[tuple[int, int]] = (),
    stride: int = 32,
    process_index: int = 0,
    process_count: int = 1,
    on_bad_image: str = "error",
) -> Reader:
    """A reader of training batches.

    Args:
      dataset: the images.
      scales: TRAIN.SCALES.
      max_size: TRAIN.MAX_SIZE.
      batch_size: images of one step, over all processes and accumulated minibatches.
      seed: seed of the order, the mirroring and the scales.
      use_flipped: TRAIN.USE_FLIPPED.
      drop_empty: whether to leave out images that have no box, or crowds only.
      max_boxes: G.
      shapes: shapes of the network's input, see `buckets.make_buckets`.
      stride: FPN.COARSEST_STRIDE.
      process_index: index of this process; each process gets an equal part of every batch.
      process_count: number of processes.
      on_bad_image: "error" stops the run; "skip" takes another image of the same bucket, the same one in every run,
        and after several failures one of any bucket.

    Raises:
      UserError: if there is nothing to train on, or an option has an invalid value.
    """
    records = dataset.records
    keep = np.ones(len(records), bool)
    if drop_empty:
        image = np.repeat(np.arange(len(records)), np.diff(records.offsets))
        keep = np.bincount(image[~records.crowd], minlength=len(records)) > 0
    if not dataset.annotated:
        raise UserError(
            f"{dataset.name}: {', '.join(dataset.annotation_files)} has no list of 'annotations' to learn from"
        )
    if not keep.any():
        raise UserError(f"{dataset.name}: none of its {len(keep)} images has a box (train.drop_empty leaves these out)")
    if not keep.all():
        logging.info("%s: %d images without a box left out", dataset.name, (~keep).sum())
    # Dropped images do not influence the shapes.
    buckets, kept_bucket = make_buckets(
        records.heights[keep], records.widths[keep], scales=scales, max_size=max_size, shapes=shapes, stride=stride
    )
    image_bucket = np.zeros(len(records), np.int32)
    image_bucket[keep] = kept_bucket
    schedule = TrainSchedule(
        image_bucket,
        batch_size=batch_size,
        seed=seed,
        use_flipped=use_flipped,
        num_scales=len(scales),
        keep=keep,
    )
    reader = Reader(
        dataset=dataset,
        buckets=buckets,
        schedule=schedule,
        steps=schedule.steps_per_epoch,
        scales=tuple(scales),
        max_size=max_size,
        stride=stride,
        max_boxes=max_boxes,
        part=_part(batch_size, process_index, process_count),
        skip_bad_images=_skips(on_bad_image),
    )
    _report(reader, image_bucket, keep)
    return reader


def eval_reader(
    dataset: Dataset,
    *,
    scale: int,
    max_size: int,
    batch_size: int,
    max_boxes: int = 128,
    shapes: Sequence[tuple[int, int]] = (),
    stride: int = 32,
    process_index: int = 0,
    process_count: int = 1,
    on_bad_image: str = "error",
) -> Reader:
    """A reader of evaluation batches: every image once, not mirrored; ``steps`` is the number of batches.

    The arguments are those of `train_reader`. With ``on_bad_image="skip"`` an unreadable image is not present.
    """
    records = dataset.records
    buckets, image_bucket = make_buckets(
        records.heights, records.widths, scales=(scale,), max_size=max_size, shapes=shapes, stride=stride
    )
    schedule = EvalSchedule(image_bucket, batch_size=batch_size)
    reader = Reader(
        dataset=dataset,
        buckets=buckets,
        schedule=schedule,
        steps=len(schedule),
        scales=(scale,),
        max_size=max_size,
        stride=stride,
        max_boxes=max_boxes,
        part=_part(batch_size, process_index, process_count),
        skip_bad_images=_skips(on_bad_image),
    )
    _report(reader, image_bucket, np.ones(len(records), bool))
    return reader


def _part(batch_size, process_index, process_count):
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} images cannot be divided among {process_count} processes")
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _skips(on_bad_image):
    if on_bad_image not in ("error", "skip"):
        raise UserError(f"data.on_bad_image={on_bad_image!r}: it is 'error' or 'skip'")
    return on_bad_image == "skip"


def _report(reader, image_bucket, keep):
    """Logs the images of each bucket, and those with more pixels or boxes than the static shapes hold."""
    records, name = reader.dataset.records, reader.dataset.name
    counts = np.bincount(image_bucket[keep], minlength=len(reader.buckets))
    for bucket, count in zip(reader.buckets, counts):
        logging.info("%s: %d images in input %s, canvas %s", name, count, bucket.shape, bucket.canvas)
    canvas = np.array([bucket.canvas for bucket in reader.buckets])[image_bucket]
    reduced = keep & ((records.heights > canvas[:, 0]) | (records.widths > canvas[:, 1]))
    if reduced.any():
        logging.warning(
            "%s: %d images exceed their canvas and are resized on the host, the first: %s",
            name,
            reduced.sum(),
            reader.dataset.image_name(int(reduced.argmax())),
        )
    crowded = keep & (np.diff(records.offsets) > reader.max_boxes)
    if crowded.any():
        logging.warning(
            "%s: %d images have more than data.max_boxes=%d boxes and keep the largest, the first: %s",
            name,
            crowded.sum(),
            reader.max_boxes,
            reader.dataset.image_name(int(crowded.argmax())),
        )
