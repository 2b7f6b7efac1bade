"""Buckets: a few static input shapes, and the bucket of each image.

A compiled step has one input shape. The original pads every minibatch to its largest image; here every image of a
bucket is padded to the bucket's shape, and a bucket costs one compilation. The size of an image alone decides its
bucket, so that neither the scale drawn for it nor the other images of its batch change the shape.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diou_jax.data.transforms import image_scale, resized_size
from diou_jax.errors import UserError

# Ratios of long to short side of the shapes below the longest. Photographs are 4:3 or 3:2; 1.51 leaves room for those
# whose sides are rounded. On COCO's images these two cost 4 % more pixels than padding each image by itself; a third
# ratio would save 1 %; without any it is 21 %.
ASPECTS = (4 / 3, 1.51)


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """A shape of the network's input, and of the uint8 canvas on which its images travel to the device, in pixels."""

    height: int
    width: int
    canvas_height: int
    canvas_width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.height, self.width

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the canvas."""
        return self.canvas_height, self.canvas_width


def round_up(size, multiple: int):
    """The next multiple of `multiple`, for an integer or an array of them."""
    return -(-size // multiple) * multiple


def default_shapes(scales: Sequence[int], max_size: int, *, stride: int = 32) -> list[tuple[int, int]]:
    """Input shapes (height, width), landscape and portrait in a few lengths, of which one holds any image."""
    short = max(scales)
    longest = round_up(max(max_size, 1), stride)
    lengths = {min(round_up(round(short * aspect), stride), longest) for aspect in ASPECTS} | {longest}
    short = min(round_up(short, stride), longest)
    return sorted({shape for length in lengths for shape in ((short, length), (length, short))})


def largest_sizes(sizes: np.ndarray, *, scales: Sequence[int], max_size: int) -> np.ndarray:
    """The largest resized height and width over all `scales`, (n, 2), of images with (n, 2) heights and widths."""
    largest = np.zeros((len(sizes), 2), np.int64)
    for row, (height, width) in zip(largest, sizes.tolist()):
        for target in scales:
            scale = image_scale(height, width, target=target, max_size=max_size)
            row[:] = np.maximum(row, resized_size(height, width, scale))
    return largest


def make_buckets(
    heights: np.ndarray,
    widths: np.ndarray,
    *,
    scales: Sequence[int],
    max_size: int,
    shapes: Sequence[tuple[int, int]] = (),
    stride: int = 32,
    canvas_limit: float = 2.0,
) -> tuple[tuple[Bucket, ...], np.ndarray]:
    """The buckets that a data set needs; an image goes to the smallest one that holds it at every scale.

    Args:
      heights: (N,) heights of the image files.
      widths: (N,) widths of the image files.
      scales: TRAIN.SCALES, or the test scale alone.
      max_size: TRAIN.MAX_SIZE.
      shapes: input shapes to use unchanged; by default `default_shapes`, each reduced to the size that its images need.
      stride: FPN.COARSEST_STRIDE, which must divide the sides of an input shape.
      canvas_limit: largest ratio of canvas to input, per side. Up to this limit the canvas holds the largest file of
        its bucket; larger images are resized on the host.

    Returns:
      The buckets that hold an image, and each image's bucket, (N,) int32.

    Raises:
      UserError: if `stride` does not divide a shape, or an image fits into none.
    """
    for shape in shapes:
        if len(shape) != 2 or min(shape) <= 0 or any(side % stride for side in shape):
            raise UserError(f"data.buckets: {tuple(shape)} is not a height and width that are multiples of {stride}")
    candidates = np.array(sorted(shapes or default_shapes(scales, max_size, stride=stride), key=np.prod))
    sizes, image_size = np.unique(np.stack([heights, widths], 1), axis=0, return_inverse=True)
    image_size = image_size.reshape(-1)
    resized = largest_sizes(sizes, scales=scales, max_size=max_size)
    fits = np.all(resized[:, None] <= candidates[None], axis=2)
    if not fits.any(1).all():
        height, width = sizes[~fits.any(1)][0]
        need = tuple(round_up(resized[~fits.any(1)][0], stride).tolist())
        raise UserError(f"data.buckets: none holds an image of {width}x{height} pixels, which needs {need}; add it")
    choice = fits.argmax(1)
    used, choice = np.unique(choice, return_inverse=True)
    buckets = []
    for number, candidate in enumerate(used):
        inside = choice == number
        shape = candidates[candidate] if shapes else round_up(resized[inside].max(0), stride)
        limit = round_up(np.maximum(shape * canvas_limit, shape).astype(int), stride)
        canvas = np.minimum(round_up(sizes[inside].max(0), stride), limit)
        buckets.append(Bucket(*shape.tolist(), *canvas.tolist()))
    return tuple(buckets), choice.reshape(-1)[image_size].astype(np.int32)
