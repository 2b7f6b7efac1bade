"""A handful of static input shapes, and which of them each image takes.

A compiled step knows one shape. The original pads every minibatch to its largest image; here every image of a bucket is
padded to the bucket, and a bucket costs one compilation. Images go by their size alone, so that neither the scale drawn
for an image nor its neighbours change the shape.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diou_jax.data.transforms import image_scale, resized_size
from diou_jax.errors import UserError

# Long over short side of the shapes below the longest. Photographs are 4:3 or 3:2, the latter a little off where the
# pixels did not divide. With COCO's images these two cost 4 % more pixels than padding each image by itself; a third
# would save 1 %, without any it is 21 %.
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
    """Input shapes, (height, width), one of which holds any image; lying and standing, a few lengths each."""
    short = max(scales)
    longest = round_up(max(max_size, 1), stride)
    lengths = {min(round_up(round(short * aspect), stride), longest) for aspect in ASPECTS} | {longest}
    short = min(round_up(short, stride), longest)
    return sorted({shape for length in lengths for shape in ((short, length), (length, short))})


def largest_sizes(sizes: np.ndarray, *, scales: Sequence[int], max_size: int) -> np.ndarray:
    """The largest that images of (n, 2) heights and widths become over all `scales`; (n, 2)."""
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
    """The buckets that a data set needs, each image in the one of least area that holds it at every scale.

    Args:
      heights: (N,) of the image files.
      widths: (N,).
      scales: TRAIN.SCALES, or the test scale alone.
      max_size: TRAIN.MAX_SIZE.
      shapes: inputs to use as they are; by default `default_shapes`, cut down to what the images in them need.
      stride: of the coarsest pyramid level that the input must divide by, FPN.COARSEST_STRIDE.
      canvas_limit: canvas over input, per side. The canvas holds the largest file of its bucket up to this limit;
        larger ones are reduced on the host.

    Returns:
      The buckets that hold an image, and (N,) int32, each image's.

    Raises:
      UserError: a shape is no multiple of `stride`, or an image fits none.
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
