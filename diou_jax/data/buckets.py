"""Buckets: a few static input shapes, and the bucket of each image.

A compiled step has one input shape. The original pads every minibatch to its largest image; here every image of a
bucket is padded to the bucket's shape, and a bucket costs one compilation. The size of an image alone decides its
bucket, so that neither its augmentation nor the other images of its batch change the shape.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diou_jax.errors import UserError

# Ratios of long to short side of the shapes below the longest. Photographs are 4:3 or 3:2; 1.51 leaves room for those
# whose sides are rounded. On COCO's images these two cost 4 % more pixels than padding each image by itself; a third
# ratio would save 1 %; without any it is 21 %.
ASPECTS = (4 / 3, 1.51)

# Largest ratio of a canvas to its input, per side. Up to it a canvas holds the largest file of its bucket; larger files
# are resized on the host.
CANVAS_LIMIT = 2


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

    @property
    def canvas_bytes(self) -> int:
        """Bytes of an image's canvas."""
        return self.canvas_height * self.canvas_width * 3


def round_up(size, multiple: int):
    """The next multiple of `multiple`, for an integer or an array of them."""
    return -(-size // multiple) * multiple


def default_shapes(short: int, longest: int, *, stride: int = 32) -> list[tuple[int, int]]:
    """Input shapes, landscape and portrait in a few lengths, for images whose sides are at most `short` and `longest`.

    They are (height, width); one of them holds any such image.
    """
    limit = round_up(max(longest, 1), stride)
    lengths = {min(round_up(round(short * aspect), stride), limit) for aspect in ASPECTS} | {limit}
    short = min(round_up(short, stride), limit)
    return sorted({shape for length in lengths for shape in ((short, length), (length, short))})


def make_buckets(
    files: np.ndarray,
    inputs: np.ndarray,
    *,
    shapes: Sequence[tuple[int, int]],
    fit: bool = False,
    stride: int = 32,
) -> tuple[tuple[Bucket, ...], np.ndarray]:
    """The buckets that a data set needs; an image goes to the smallest one that always holds it.

    Args:
      files: int (N, 2), heights and widths of the image files.
      inputs: int (N, 2), the largest height and width of each image in the network's input.
      shapes: the input shapes to choose from.
      fit: whether each shape is reduced to the size that its images need.
      stride: FPN.COARSEST_STRIDE, which must divide the sides of an input shape.

    Returns:
      The buckets that hold an image, and each image's bucket, (N,) int32.

    Raises:
      UserError: if `stride` does not divide a shape, or an image fits into none.
    """
    for shape in shapes:
        if len(shape) != 2 or min(shape) <= 0 or any(side % stride for side in shape):
            raise UserError(f"data.buckets: {tuple(shape)} is not a height and width that are multiples of {stride}")
    candidates = np.array(sorted(shapes, key=np.prod))
    fits = np.all(inputs[:, None] <= candidates[None], axis=2)
    if not fits.any(1).all():
        height, width = files[~fits.any(1)][0]
        need = tuple(round_up(inputs[~fits.any(1)][0], stride).tolist())
        raise UserError(f"data.buckets: none holds an image of {width}x{height} pixels, which needs {need}; add it")
    choice = fits.argmax(1)
    used, choice = np.unique(choice, return_inverse=True)
    buckets = []
    for number, candidate in enumerate(used):
        inside = choice == number
        shape = round_up(inputs[inside].max(0), stride) if fit else candidates[candidate]
        canvas = np.minimum(round_up(files[inside].max(0), stride), CANVAS_LIMIT * shape)
        if (files[inside] > canvas).any():
            canvas = np.maximum(canvas, round_up(inputs[inside].max(0), stride))
        buckets.append(Bucket(*shape.tolist(), *canvas.tolist()))
    return tuple(buckets), choice.reshape(-1).astype(np.int32)
