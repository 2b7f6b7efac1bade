"""Where an exported program's images lie in the network's input.

If all images have one size, the host computes their view and taps before the program is exported. If the size is an
argument, the program computes both itself: in float64, with the formulas of `diou_jax.data` in the same order, so that
the results are equal.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.data.augmentation import longest_sides
from diou_jax.data.buckets import Bucket, round_up
from diou_jax.data.packing import example, pack
from diou_jax.data.passes import Pass
from diou_jax.data.view import Size
from diou_jax.structures import Batch, Taps, blank_batch


def batch_of_one_size(looks: Pass, image_size: Size, *, images: int, stride: int) -> Batch:
    """A batch of `images` black images of `image_size` in the smallest network input that holds them; numpy arrays.

    Args:
      looks: the way in which the network looks at an image, without another aspect ratio.
      image_size: height and width, pixels.
      images: B.
      stride: the sides of the network's input are multiples of it.
    """
    view = looks.view(image_size)
    height, width = (round_up(side, stride) for side in view.size)
    bucket = Bucket(height, width, *image_size)
    return pack([example(np.zeros((*image_size, 3), np.uint8), view, bucket, stride=stride)] * images, bucket)


def largest_input(looks: Pass, canvas: Size, *, stride: int) -> Size:
    """Height and width of a network input for images of all sizes.

    It holds every landscape image if `canvas` is wider than high, every portrait image if it is higher than wide, and
    every image if it is square.
    """
    short, long = (round_up(side, stride) for side in longest_sides(looks.augmentations))
    height, width = canvas
    return long if height >= width else short, long if width >= height else short


def place(images: jax.Array, sizes: jax.Array, *, looks: Pass, shape: Size, stride: int) -> Batch:
    """A batch of B images that lie in the upper left corners of their canvases.

    An image whose view exceeds `shape` is scaled down until it fits.

    Args:
      images: uint8 (B, H, W, 3), BGR; pixels beyond an image's size have no effect.
      sizes: int32 (B, 2), heights and widths of the images, limited to 1 to H and 1 to W.
      looks: the way in which the network looks at an image, neither mirrored nor with another aspect ratio.
      shape: height and width of the network's input.
      stride: padded sizes are multiples of it.
    """
    count, height, width, _ = images.shape
    sizes = jnp.clip(sizes, 1, jnp.array([height, width], jnp.int32))
    with jax.enable_x64(True):
        scales, views = _views(sizes, looks, shape)
        rows, columns = (
            _linear_taps(sizes[:, axis], views[:, axis], scales, length=length) for axis, length in enumerate(shape)
        )
        scales = scales.astype(jnp.float32)
    batch = blank_batch(count, *shape)
    return dataclasses.replace(
        batch,
        image=images,
        rows=rows,
        columns=columns,
        image_size=views,
        padded_size=round_up(views, stride),
        placement=dataclasses.replace(batch.placement, scale=jnp.stack([scales, scales], 1)),
        original_size=sizes,
    )


def _views(sizes, looks, shape):
    """The factors, float64 (B,), and sizes, int32 (B, 2), of `augmentation.ScaleChoice` and `View.within`."""
    sides = sizes.astype(jnp.float64)
    short, long = sides.min(1), sides.max(1)
    scales = looks.scale / short
    scales = jnp.where(jnp.round(scales * long) > looks.max_size, looks.max_size / long, scales)
    views = _resized(sides, scales)
    fit = jnp.minimum(1.0, (jnp.array(shape, jnp.float64) / views).min(1))
    return scales * fit, _resized(views, fit).astype(jnp.int32)


def _resized(sides, scales):
    """Sizes after scaling, as `view.resized_size` rounds them."""
    return jnp.maximum(jnp.round(sides * scales[:, None]), 1.0)


def _linear_taps(sources, outputs, scales, *, length):
    """`taps.linear_taps` of B images: `sources` and `outputs` int32 (B,), `scales` float64 (B,)."""
    output = jnp.arange(length)
    position = (output + 0.5) * (1.0 / scales)[:, None] - 0.5
    before = jnp.floor(position)
    inside = output < outputs[:, None]
    index = jnp.clip(jnp.stack([before, before + 1], 1), 0, sources[:, None, None] - 1)
    return Taps(
        jnp.where(inside[:, None], index, 0).astype(jnp.int32),
        jnp.where(inside, position - before, 0).astype(jnp.float32),
    )
