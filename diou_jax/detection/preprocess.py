"""The original's preprocessing, on the device: subtraction of means, linear interpolation, zero padding."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diou_jax.structures import Batch

PIXEL_MEANS = (102.9801, 115.9465, 122.7717)  # of blue, green, red; the original's PIXEL_MEANS


@jax.named_scope("input")
def normalise(batch: Batch, means: Sequence[float] = PIXEL_MEANS) -> jax.Array:
    """The network's input, float32 (B, H, W, 3): resized images minus `means`, zero beyond each image's `image_size`.

    It equals the original's ``cv2.resize(image - means)`` to two units in the last place: taps are computed as OpenCV
    does, and columns are blended before rows, as there.
    """
    return jax.vmap(functools.partial(_normalise, jnp.array(means, jnp.float32)))(
        batch.image, batch.rows, batch.columns, batch.image_size
    )


def _normalise(means, image, rows, columns, size):
    def blend_columns(rows):
        # Bytes are gathered before they become floats, so that no float array is larger than the output.
        left, right = (image[rows[:, None], index[None, :]].astype(jnp.float32) - means for index in columns.index)
        weight = columns.weight[None, :, None]
        return left * (1 - weight) + right * weight

    above, below = (blend_columns(index) for index in rows.index)
    weight = rows.weight[:, None, None]
    output = above * (1 - weight) + below * weight
    inside = (jnp.arange(output.shape[0])[:, None] < size[0]) & (jnp.arange(output.shape[1])[None, :] < size[1])
    return jnp.where(inside[:, :, None], output, 0)
