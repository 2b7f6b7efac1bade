"""Divides a data set without splits into a training and a validation part."""

import dataclasses
import hashlib
import os

import numpy as np

from diou_jax.data.dataset import Dataset, Source
from diou_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SubsetSource:
    """The images `rows` of another source."""

    source: Source
    rows: np.ndarray

    def read(self, index: int) -> bytes:
        """As `dataset.Source.read`."""
        return self.source.read(int(self.rows[index]))

    def name(self, index: int) -> str:
        """As `dataset.Source.name`."""
        return self.source.name(int(self.rows[index]))


def divide(dataset: Dataset, *, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """The training and the validation part.

    The part of an image follows from its file name and the seed. So neither the order in the json nor the folder
    matters, and images that are added later move few others to the other part.

    Args:
      dataset: a data set of at least two images.
      share: share of validation images, between 0 and 1; each part gets at least one image.
      seed: seed of the division.

    Raises:
      UserError: if there are fewer than two images, or `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UserError(f"data.val_share={share!r}: it goes from 0 to 1, both excluded")
    if len(dataset) < 2:
        raise UserError(f"{dataset.name} has one image, and two are the least to train and to validate on")
    keys = [
        hashlib.sha256(f"{seed} {os.path.basename(dataset.image_name(row))}".encode()).digest()
        for row in range(len(dataset))
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    count = min(max(1, round(share * len(keys))), len(keys) - 1)
    train, val = np.sort(order[count:]), np.sort(order[:count])
    return subset(dataset, train), subset(dataset, val)


def subset(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """The images `rows` (n,) of a data set, in that order."""
    return dataclasses.replace(dataset, records=dataset.records.take(rows), source=SubsetSource(dataset.source, rows))
