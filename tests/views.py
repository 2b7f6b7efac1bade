"""Views and placements for tests, of images that are resized as the original resizes them."""

import jax.numpy as jnp

from diou_jax.data.augmentation import Key, Mirror, ScaleChoice, augment
from diou_jax.structures import Placement


def resized(image, *, target, max_size, flip=False):
    """The view of an image, of which only the size matters."""
    return augment((Mirror(), ScaleChoice((target,), max_size)), Key(0, flip), image.shape[:2])


def at_scale(scale):
    """The placement of (B,) images that are scaled alone."""
    scale = jnp.asarray(scale, jnp.float32)
    pairs = jnp.stack([scale, scale], -1)
    return Placement(pairs, jnp.zeros_like(pairs), jnp.zeros(len(scale), bool))
