"""Augmentations: functions from a key and the size of an image to a view of it (`diou_jax.data.view`).

The original has two, in this order: it mirrors every image once, and draws a scale. `scale_jitter`, `iou_crop` and
`photometric` have more. `diou_jax.options.build` lists those of a run.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from diou_jax.data.schedule import random_bits
from diou_jax.data.view import Size, View, image_scale, mirrored, scaled, whole

NO_BOXES = np.zeros((0, 4))


class Key(NamedTuple):
    """All that an augmentation may depend on, besides the size: the same in every run, on any number of devices.

    Attributes:
      bits: 64 random bits of the image's place in the epoch.
      mirrored: True for the second one of an image's two entries in the epoch (TRAIN.USE_FLIPPED).
      boxes: float (n, 4), edges of the image's objects in pixels of the augmentation's input: mirrored, scaled and cut
        off by the augmentations before it.
    """

    bits: int
    mirrored: bool = False
    boxes: np.ndarray = NO_BOXES

    def uniform(self, stream: str, count: int) -> np.ndarray:
        """(count,) float64 in [0, 1), a function of the key and of `stream`, the augmentation's name."""
        return (random_bits(count, self.bits, *stream.encode()) >> np.uint64(11)) * 2.0**-53


class Augmentation(Protocol):
    """One way to change an image; it can be pickled."""

    def __call__(self, key: Key, size: Size) -> View:
        """The view of an image of a height and width in pixels; earlier augmentations have been applied to it."""

    def largest(self, size: Size) -> Size:
        """The largest height and width of its views, which decide the bucket; a larger view is scaled down to it."""


@dataclasses.dataclass(frozen=True)
class Mirror:
    """Exchanges left and right in the second entry of an image."""

    def __call__(self, key: Key, size: Size) -> View:
        return mirrored(size) if key.mirrored else whole(size)

    def largest(self, size: Size) -> Size:
        return size


@dataclasses.dataclass(frozen=True)
class ScaleChoice:
    """Scales the shorter side to one of several lengths.

    Attributes:
      scales: TRAIN.SCALES, or the test scale alone, pixels.
      max_size: TRAIN.MAX_SIZE, limit of the longer side, pixels.
    """

    scales: tuple[int, ...]
    max_size: int

    def __call__(self, key: Key, size: Size) -> View:
        return self._view(size, self.scales[key.bits % len(self.scales)])

    def largest(self, size: Size) -> Size:
        sizes = [self._view(size, target).size for target in self.scales]
        return max(height for height, _ in sizes), max(width for _, width in sizes)

    def _view(self, size, target):
        return scaled(size, image_scale(*size, target=target, max_size=self.max_size))


def augment(augmentations: Sequence[Augmentation], key: Key, size: Size) -> View:
    """The view that augmentations make of an image, one after the other; `key.boxes` are in pixels of the image."""
    return functools.reduce(
        lambda view, change: view.then(change(key._replace(boxes=view.edges(key.boxes)), view.size)),
        augmentations,
        whole(size),
    )


def largest_size(augmentations: Sequence[Augmentation], size: Size) -> Size:
    """The largest height and width of an image's views."""
    return functools.reduce(lambda size, change: change.largest(size), augmentations, size)


def longest_sides(augmentations: Sequence[Augmentation]) -> Size:
    """Limits of the shorter and of the longer side of any image's view: the sides for a large square and a strip."""
    large = 10**6
    return min(largest_size(augmentations, (large, large))), max(largest_size(augmentations, (1, large)))
