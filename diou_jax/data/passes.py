"""The passes of augmented testing: the ways in which a test looks at an image, besides the usual one.

Each pass mirrors the image, scales it to another size or changes its aspect ratio. The detections of all passes are
combined in `diou_jax.detection.augmented`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from diou_jax.data.augmentation import Augmentation, Key, Mirror, ScaleChoice, augment
from diou_jax.data.buckets import Bucket
from diou_jax.data.packing import pack
from diou_jax.data.view import Size, View
from diou_jax.structures import AugmentedBatch


@dataclasses.dataclass(frozen=True)
class Pass:
    """One way to look at an image.

    Attributes:
      scale: length of the shorter side in the network's input, pixels.
      max_size: limit of the longer side, pixels.
      mirrored: whether left and right are exchanged.
      aspect_ratio: factor of the width alone by which the image is resized first, as an image of its own.
    """

    scale: int
    max_size: int
    mirrored: bool = False
    aspect_ratio: float = 1.0

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """The changes that make the view of a resized image."""
        return Mirror(), ScaleChoice((self.scale,), self.max_size)

    def resized_size(self, size: Size) -> Size:
        """Height and width of an image of this size after its aspect ratio was changed; half pixels become even."""
        return size[0], max(round(self.aspect_ratio * size[1]), 1)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image (H, W, 3) uint8 with the pass' aspect ratio, in whole grey levels, as the original resizes it."""
        height, width = self.resized_size((image.shape[0], image.shape[1]))
        return image if self.aspect_ratio == 1 else cv2.resize(image, (width, height))

    def view(self, size: Size) -> View:
        """The network's view of an image that had this size before its aspect ratio was changed."""
        return augment(self.augmentations, Key(bits=0, mirrored=self.mirrored), self.resized_size(size))


@dataclasses.dataclass(frozen=True)
class Passes:
    """All passes of a test.

    Attributes:
      distinct: V passes, the usual one first; an image goes through each once.
      boxes: numbers of the passes whose boxes are united, in the order of their rows.
      masks: numbers of the passes whose masks are combined; empty without masks.
    """

    distinct: tuple[Pass, ...]
    boxes: tuple[int, ...]
    masks: tuple[int, ...]


def arrange(usual: Pass, *, boxes: Sequence[Pass], masks: Sequence[Pass]) -> Passes:
    """The passes for boxes and for masks, with those that are equal only once."""
    distinct = tuple(dict.fromkeys((usual, *boxes, *masks)))
    return Passes(distinct, tuple(map(distinct.index, boxes)), tuple(map(distinct.index, masks)))


def pack_passes(
    examples: Sequence[Sequence[dict[str, Any]]], passes: Sequence[Pass], buckets: Sequence[Bucket]
) -> AugmentedBatch:
    """Packs the examples of B images, V for each, into batches of V buckets."""
    views = [
        dataclasses.replace(pack(column, bucket), aspect_ratio=np.full(len(column), one.aspect_ratio, np.float32))
        for column, one, bucket in zip(zip(*examples, strict=True), passes, buckets, strict=True)
    ]
    return AugmentedBatch(tuple(views))
