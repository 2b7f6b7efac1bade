"""Makes the `Batch` of a step: everything between the schedule and the device, in one process.

A reader is a function of the step that can be pickled, so that every worker makes the same batch of a step.
"""

import dataclasses

import numpy as np

from diou_jax.data import proposals
from diou_jax.data.augmentation import Augmentation, Key, augment
from diou_jax.data.buckets import Bucket
from diou_jax.data.dataset import BadImageError, Dataset
from diou_jax.data.decoding import decode
from diou_jax.data.packing import Annotations, blank, example, pack, visible
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
        # Two epochs of steps contain a whole epoch, wherever they start, and every bucket occurs in it.
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
