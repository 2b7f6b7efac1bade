"""IoU of boxes in inclusive pixels; on one device all callers get the same bits, even if XLA fuses it with others."""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from diou_jax.kernels.rounding import product

# The four coordinates of boxes.
Corners: TypeAlias = Sequence[Float[jax.Array | np.ndarray, "*#batch"]] | Float[jax.Array | np.ndarray, "4 *#batch"]


def iou(a: Corners, b: Corners) -> Float32[jax.Array, "*#batch"]:
    """IoU of boxes `a` and `b`, each four float32 arrays of coordinates, broadcast; symmetric.

    The IoU is 0 where boxes do not meet or have no area.
    """
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1) + 1
    height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1) + 1
    intersection = product(width, height)
    union = product(ax2 - ax1 + 1, ay2 - ay1 + 1) + product(bx2 - bx1 + 1, by2 - by1 + 1) - intersection
    meet = (width > 0) & (height > 0) & (union > 0)
    return jnp.where(meet, intersection / jnp.where(meet, union, 1.0), 0.0)
