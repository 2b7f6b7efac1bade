"""Batches for the local devices from a stream of images of any sizes, in a few static shapes.

A program is compiled for each bucket and size of batch. A bucket has at most three sizes: one image on the first
device, one image on each device, and TEST.IMS_PER_BATCH images on each device.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from diou_jax.data.augmentation import longest_sides
from diou_jax.data.buckets import Bucket, default_shapes
from diou_jax.data.packing import blank, example, pack
from diou_jax.data.passes import Pass, pack_passes
from diou_jax.data.view import Size, View
from diou_jax.errors import UserError
from diou_jax.structures import AugmentedBatch, Batch

# Images that may come after one that waits for others of its bucket, before its batch is filled up with blanks.
WAITING = 32


class Group(NamedTuple):
    """Images of one batch.

    Attributes:
      rows: numbers of the images.
      batch: B images; those after the ones of `rows` are blank. On several devices the arrays have a leading axis of
        devices, (devices, B / devices, ...).
      sizes: heights and widths of the images in pixels.
      devices: number of devices that share the batch.
    """

    rows: list[int]
    batch: Batch | AugmentedBatch
    sizes: list[Size]
    devices: int


def batch_sizes(images: int, *, devices: int, per_device: int) -> Iterator[tuple[int, int]]:
    """The batches that hold a number of images, each as (devices, images per device).

    A batch takes as long as its images per device, whether some are blank or not, so that a batch of `per_device` is
    taken only where no smaller ones are faster.
    """
    while images > 0:
        each = per_device if images > devices * (per_device - 1) else 1
        used, each = (1, 1) if images == 1 else (devices, each)
        yield used, each
        images -= used * each


class Batcher:
    """Sorts images by bucket and packs them.

    Attributes:
      devices: number of local devices.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        *,
        shapes: Sequence[tuple[int, int]],
        stride: int,
        per_device: int,
        augmented: bool,
    ):
        """Chooses the buckets.

        Args:
          passes: the ways in which an image is looked at, the usual one first.
          shapes: input shapes of the usual pass; empty: those that its scale and limit of size need.
          stride: FPN.COARSEST_STRIDE.
          per_device: TEST.IMS_PER_BATCH.
          augmented: whether batches are `AugmentedBatch`.
        """
        self.devices = jax.local_device_count()
        self._passes, self._stride, self._per_device, self._augmented = tuple(passes), stride, per_device, augmented
        self._shapes = [
            sorted(given or default_shapes(*longest_sides(one.augmentations), stride=stride), key=np.prod)
            for one, given in itertools.zip_longest(self._passes, [tuple(shapes)])
        ]

    def groups(self, images: Iterable[tuple[int, np.ndarray | None]]) -> Iterator[Group]:
        """Batches of images, uint8 (H, W, 3) BGR, by ascending numbers; an image waits for few others only.

        None stands for an image that needs no batch; a group without rows comes in its place.
        """
        full = self.devices * self._per_device
        waiting: dict[tuple[Bucket, ...], list[tuple[int, np.ndarray]]] = {}
        for row, image in images:
            if image is None:
                yield Group([], cast(Any, None), [], 1)
            else:
                size = image.shape[0], image.shape[1]
                buckets = tuple(map(self._bucket, (one.view(size) for one in self._passes), self._shapes))
                waiting.setdefault(buckets, []).append((row, image))
                if len(waiting[buckets]) == full:
                    yield from self._packed(waiting.pop(buckets), buckets)
            # However many batches the others fill, the results behind an image wait for it, too.
            for overdue in [key for key, members in waiting.items() if row - members[0][0] >= max(WAITING, full)]:
                yield from self._packed(waiting.pop(overdue), overdue)
        for buckets, members in waiting.items():
            yield from self._packed(members, buckets)

    def _packed(self, members: list[tuple[int, np.ndarray]], buckets: tuple[Bucket, ...]) -> Iterator[Group]:
        for devices, each in batch_sizes(len(members), devices=self.devices, per_device=self._per_device):
            part, members = members[: devices * each], members[devices * each :]
            batch: Any = self._pack([image for _, image in part], buckets, devices * each)
            if devices > 1:
                batch = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)  # noqa: B023
            yield Group([row for row, _ in part], batch, [image.shape[:2] for _, image in part], devices)

    def _pack(self, images, buckets, size):
        examples = [
            [
                example(one.resize(image), one.view(image.shape[:2]), bucket, stride=self._stride)
                for one, bucket in zip(self._passes, buckets, strict=True)
            ]
            for image in images
        ]
        examples += [[blank(bucket, stride=self._stride) for bucket in buckets]] * (size - len(images))
        if self._augmented:
            return pack_passes(examples, self._passes, buckets)
        return pack([one for (one,) in examples], buckets[0])

    def _bucket(self, view: View, shapes) -> Bucket:
        """The smallest bucket that holds a view; each shape has only two canvases, so that few programs suffice."""
        (height, width), size = view.source, view.size
        fitting = [shape for shape in shapes if size[0] <= shape[0] and size[1] <= shape[1]]
        if not fitting:
            raise UserError(f"data.buckets: none holds an image of {width}x{height} pixels")
        shape = fitting[0]
        fits = height <= shape[0] and width <= shape[1]
        return Bucket(*shape, *(side * (1 if fits else 2) for side in shape))
