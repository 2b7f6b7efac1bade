"""Makes the `AugmentedBatch` of a step: the images of a test, each decoded once and packed for every pass."""

import dataclasses

import numpy as np
from absl import logging

from diou_jax.data.augmentation import longest_sides
from diou_jax.data.buckets import Bucket, default_shapes, make_buckets
from diou_jax.data.dataset import BadImageError, Dataset
from diou_jax.data.decoding import decode
from diou_jax.data.packing import blank, example
from diou_jax.data.passes import Pass, pack_passes
from diou_jax.data.reader import BatchRules
from diou_jax.data.schedule import EvalSchedule
from diou_jax.structures import AugmentedBatch


@dataclasses.dataclass(frozen=True)
class AugmentedReader:
    """Makes this process' part of any step's batch; augmented testing uses it in place of `reader.Reader`.

    Attributes:
      dataset: the images.
      passes: V passes, the usual one first.
      groups: for each group of images the buckets of its V batches. Images whose buckets agree in all passes are a
        group.
      schedule: the images of each step, all of one group.
      part: this process' slice of the global batch.
      rules: how images become batches; ground truth is left out.
    """

    dataset: Dataset
    passes: tuple[Pass, ...]
    groups: tuple[tuple[Bucket, ...], ...]
    schedule: EvalSchedule
    part: slice
    rules: BatchRules

    @property
    def steps(self) -> int:
        """Number of steps in all."""
        return len(self.schedule)

    @property
    def image_bytes(self) -> int:
        """As `Reader.image_bytes`."""
        return max(sum(bucket.canvas_bytes for bucket in buckets) for buckets in self.groups)

    def __call__(self, step: int) -> tuple[AugmentedBatch, tuple[str, ...]]:
        """As `Reader.__call__`."""
        entries = self.schedule.entries(step)
        buckets = self.groups[entries.bucket]
        images: list[list[dict]] = []
        skipped: list[str] = []
        for slot in range(*self.part.indices(len(entries.index))):
            index = int(entries.index[slot])
            images.append(self._read(index, buckets, skipped) if entries.present[slot] else self._blank(index, buckets))
        return pack_passes(images, self.passes, buckets), tuple(skipped)

    def blanks(self, start: int, stop: int) -> list[AugmentedBatch]:
        """As `Reader.blanks`, for each group."""
        met = sorted({self.schedule.entries(step).bucket for step in range(start, stop)})
        size = len(range(*self.part.indices(len(self.schedule.entries(start).index)))) if met else 0
        return [
            pack_passes([self._blank(0, buckets)] * size, self.passes, buckets)
            for buckets in (self.groups[number] for number in met)
        ]

    def _read(self, index, buckets, skipped):
        """The examples of an image for all passes; a blank for one that cannot be read, if the rules skip it."""
        records = self.dataset.records
        height, width = int(records.heights[index]), int(records.widths[index])
        try:
            image = decode(self.dataset.read(index), self.dataset.image_name(index), height=height, width=width)
        except BadImageError as error:
            if self.rules.on_bad_image == "error":
                raise
            skipped.append(str(error))
            return self._blank(index, buckets)
        return [
            example(one.resize(image), one.view((height, width)), bucket, stride=self.rules.stride, index=index)
            for one, bucket in zip(self.passes, buckets, strict=True)
        ]

    def _blank(self, index, buckets):
        return [blank(bucket, stride=self.rules.stride, index=index) for bucket in buckets]


def augmented_reader(
    dataset: Dataset, passes: tuple[Pass, ...], *, batch_size: int, rules: BatchRules
) -> AugmentedReader:
    """A reader of evaluation batches: every image once, in all passes.

    Args:
      dataset: the images.
      passes: V passes, the usual one first.
      batch_size: images of one step, over all processes.
      rules: how images become batches; its shapes are those of the usual pass.

    Raises:
      UserError: if the processes cannot share a batch, or no shape holds an image.
    """
    files, number = np.unique(
        np.stack([dataset.records.heights, dataset.records.widths], 1), axis=0, return_inverse=True
    )
    choices = [_buckets(files, one, shapes=rules.shapes if one == passes[0] else (), rules=rules) for one in passes]
    columns, group = np.unique(np.stack([choice for _, choice in choices], 1), axis=0, return_inverse=True)
    groups = tuple(
        tuple(buckets[column] for (buckets, _), column in zip(choices, row, strict=True)) for row in columns.tolist()
    )
    schedule = EvalSchedule(group.reshape(-1)[number.reshape(-1)], batch_size=batch_size)
    for one, (buckets, _) in zip(passes, choices, strict=True):
        logging.info("%s: %s, inputs %s", dataset.name, one, ", ".join(str(bucket.shape) for bucket in buckets))
    logging.info("%s: %d passes over %d images in %d groups", dataset.name, len(passes), len(dataset), len(groups))
    return AugmentedReader(dataset, passes, groups, schedule, part=rules.part(batch_size), rules=rules)


def _buckets(files, one: Pass, *, shapes, rules):
    """The buckets of a pass for files (N, 2), heights and widths, and the bucket of each, (N,)."""
    sizes = files.tolist()
    return make_buckets(
        np.array([one.resized_size(size) for size in sizes]),
        np.array([one.view(size).size for size in sizes]),
        shapes=shapes or default_shapes(*longest_sides(one.augmentations), stride=rules.stride),
        fit=not shapes,
        stride=rules.stride,
    )
