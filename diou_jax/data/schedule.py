"""The images of each step: a pure function of the seed and the step, the same on every host.

Therefore resuming needs the step only, and neither the number of devices nor that of workers changes the order. All
draws come from raw random bits, whose stream numpy keeps the same in all versions.
"""

import dataclasses

import numpy as np

# Repeat factors and the draw that rounds them are multiples of this, so that their sums in float64 are exact.
GRID = 2.0**-20


@dataclasses.dataclass(frozen=True)
class Entries:
    """The images of one global batch, all of one bucket.

    Attributes:
      bucket: index of the bucket.
      index: (B,) int64, rows of the data set.
      mirrored: (B,) bool, True for the second entry of an image.
      bits: (B,) uint64, the random bits of the augmentations' keys.
      present: (B,) bool, False for entries that only fill up the batch.
    """

    bucket: int
    index: np.ndarray
    mirrored: np.ndarray
    bits: np.ndarray
    present: np.ndarray


def random_bits(count: int, *key: int) -> np.ndarray:
    """(count,) uint64, a function of `key`, non-negative integers; trailing zeros of the key have no effect."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


class TrainSchedule:
    """A schedule whose epochs contain every entry at least once; the second entry of an image is its mirror image.

    An epoch shuffles all entries, distributes them to their buckets in that order, cuts each bucket into batches and
    shuffles the batches. The last batch of a bucket is filled up from the bucket's start, so that no entry is left out.

    An entry with a repeat factor comes that often, rounded up or down at random in each epoch so that the factor is
    the mean. The entries of a bucket share one draw (systematic sampling): the number of their copies in an epoch then
    varies by one at most, and the number of batches not at all, so that a step determines its epoch.
    """

    def __init__(
        self,
        image_bucket: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        use_flipped: bool = True,
        keep: np.ndarray | None = None,
        repeats: np.ndarray | None = None,
    ):
        """Prepares the schedule.

        Args:
          image_bucket: (N,), the bucket of each image.
          batch_size: size of the global batch.
          seed: a non-negative integer.
          use_flipped: TRAIN.USE_FLIPPED, whether each image has a second entry.
          keep: (N,) bool, the images to train on; all by default.
          repeats: float (N,), the repeat factor of each image, at least 1; None: 1.
        """
        image_bucket = np.asarray(image_bucket)
        images = np.arange(len(image_bucket)) if keep is None else np.flatnonzero(keep)
        self._index = np.tile(images, 2 if use_flipped else 1)
        self._mirrored = np.arange(len(self._index)) >= len(images)
        self._bucket = image_bucket[self._index]
        self._batch_size, self._seed = batch_size, seed
        self._repeats = None if repeats is None else np.rint(np.asarray(repeats)[self._index] / GRID) * GRID
        self._counts = np.ceil(np.bincount(self._bucket, self._repeats)).astype(int)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """Number of different entries in an epoch."""
        return len(self._index)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return int((-(-self._counts // self._batch_size)).sum())

    def entries(self, step: int) -> Entries:
        """The batch of a step; steps count from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        rows, bits = (table[position] for table in self._epoch(epoch))
        return Entries(
            bucket=int(self._bucket[rows[0]]),
            index=self._index[rows],
            mirrored=self._mirrored[rows],
            bits=bits,
            present=np.ones(len(rows), bool),
        )

    def substitute(self, step: int, slot: int, attempt: int, *, any_bucket: bool = False) -> tuple[int, bool]:
        """An image, and whether it is its second entry, for a slot whose own image cannot be read.

        It is drawn from the step's bucket, with `any_bucket` from all buckets.
        """
        draw = int(random_bits(1, self._seed, _SUBSTITUTE, step, slot, attempt)[0])
        rows = np.flatnonzero(any_bucket | (self._bucket == self.entries(step).bucket))
        row = rows[draw % len(rows)]
        return int(self._index[row]), bool(self._mirrored[row])

    def _epoch(self, epoch):
        """Rows of the entries and their bits, both (steps_per_epoch, batch_size)."""
        epochs = self._epochs
        if epoch not in epochs:
            # Threads that pass from one epoch to the next need both for a while.
            epochs = {k: v for k, v in epochs.items() if k == epoch - 1} | {epoch: self._make_epoch(epoch)}
            self._epochs = epochs
        return epochs[epoch]

    def _make_epoch(self, epoch):
        order = np.argsort(random_bits(len(self._index), self._seed, _ENTRIES, epoch), kind="stable")
        by_bucket = []
        for bucket in np.flatnonzero(self._counts):
            rows = order[self._bucket[order] == bucket]
            if self._repeats is not None:
                rows = self._repeated(rows, self._repeats[rows], epoch, bucket)
            full = -(-self._counts[bucket] // self._batch_size) * self._batch_size
            by_bucket.append(np.resize(rows, full).reshape(-1, self._batch_size))
        batches = np.concatenate(by_bucket)
        batches = batches[np.argsort(random_bits(len(batches), self._seed, _BATCHES, epoch), kind="stable")]
        return batches, random_bits(batches.size, self._seed, _BITS, epoch).reshape(batches.shape)

    def _repeated(self, rows, repeats, epoch, bucket):
        """The entries `rows` of a bucket, each as often as the epoch has it, shuffled; `repeats` are their factors."""
        bits = random_bits(1 + self._counts[bucket], self._seed, _REPEATS, epoch, int(bucket))
        whole = np.floor(repeats)
        # Copies beyond the whole ones are due where the sum of the fractions passes the draw plus a whole number.
        passed = np.floor(np.cumsum(repeats - whole) + (bits[0] >> np.uint64(44)) * GRID)
        copies = np.repeat(rows, (whole + np.diff(passed, prepend=0)).astype(int))
        return copies[np.argsort(bits[1 : 1 + len(copies)], kind="stable")]

    def __getstate__(self):
        return self.__dict__ | {"_epochs": {}}


_ENTRIES, _BATCHES, _BITS, _SUBSTITUTE, _REPEATS = range(5)


class EvalSchedule:
    """A schedule of every image exactly once, bucket after bucket, within a bucket in the order of the data set."""

    def __init__(self, image_bucket: np.ndarray, *, batch_size: int, keep: np.ndarray | None = None):
        """Prepares the schedule for (N,) buckets of images and a global batch of `batch_size`.

        `keep`, (N,) bool, selects images; by default all.
        """
        image_bucket = np.asarray(image_bucket)
        keep = np.ones(len(image_bucket), bool) if keep is None else keep
        self._batches = []
        for bucket in np.unique(image_bucket[keep]):
            rows = np.flatnonzero(keep & (image_bucket == bucket))
            starts = range(0, len(rows), batch_size)
            self._batches += [(int(bucket), rows[start : start + batch_size]) for start in starts]
        self._batch_size = batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def entries(self, step: int) -> Entries:
        """The batch of a step; entries that fill it up have index 0 and are not present."""
        bucket, rows = self._batches[step]
        index = np.zeros(self._batch_size, np.int64)
        index[: len(rows)] = rows
        return Entries(
            bucket=bucket,
            index=index,
            mirrored=np.zeros(self._batch_size, bool),
            bits=np.zeros(self._batch_size, np.uint64),
            present=np.arange(self._batch_size) < len(rows),
        )
