"""Whether one box suppresses another: IoU or DIoU against a threshold, with the same result on every device.

GPUs divide with an error of two units in the last place and approximate powers in their own way, so nothing here
divides or calls a transcendental function. Sums and products round alike everywhere unless a compiler fuses them;
where fusing would change the rounding, a maximum that changes no value stands between product and sum.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32

from diou_jax.kernels.iou import Corners
from diou_jax.kernels.rounding import product

# Lower bounds of squared lengths, far below the resolution of coordinates in pixels. With them the diagonal is never 0,
# and the quotient of distance and diagonal is close to 0 where the distance is.
LEAST_DISTANCE, LEAST_DIAGONAL = 1e-36, 1e-24
# Coefficients of 1, f, f ** 2 ...: log2(1 + f) / f within 3e-8 and 2 ** f within 2e-7 for f from 0 to 1, by least
# squares at Chebyshev nodes.
LOG2 = (
    1.4426950216293335,
    -0.7213402986526489,
    0.4806954562664032,
    -0.358428418636322,
    0.27571940422058105,
    -0.19728469848632812,
    0.11305142939090729,
    -0.04268687218427658,
    0.007579062134027481,
)
EXP2 = (
    0.9999998807907104,
    0.6931546330451965,
    0.24014076590538025,
    0.055863283574581146,
    0.00894621480256319,
    0.0018951073288917542,
)


def suppresses(
    a: Corners,
    b: Corners,
    threshold: Float32[jax.Array | np.ndarray, "*#batch"],
    *,
    overlap: str,
    beta: float,
) -> Bool[jax.Array, "*#batch"]:
    """Whether boxes `a` suppress boxes `b`; symmetric.

    With intersection I, union U, squared distance D of the centres and squared diagonal C of the box around both, the
    condition is ``I / U - (D / C) ** beta >= threshold``; with `beta` 1 it is ``(I - threshold * U) * C >= D * U``.

    Args:
      a, b: four float32 arrays of coordinates each, inclusive pixels up to 1e9, broadcast. A box without area or with
        a non-finite corner neither suppresses nor is suppressed.
      threshold: float32; above 1, nothing is suppressed.
      overlap: "iou" or "diou".
      beta: exponent of DIoU's penalty, positive.
    """
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    right = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    below = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    # One side is clamped first: two negative sides would give a positive area.
    intersection = jnp.maximum(jnp.maximum(right + 1, 0.0) * (below + 1), 0.0)
    union = _area(ax1, ay1, ax2, ay2) + _area(bx1, by1, bx2, by2) - intersection
    rest = excess(intersection, union, threshold)
    if overlap == "iou":
        return rest >= 0
    # The enclosing box is as wide as both boxes together minus their overlap, which is negative if they are apart.
    across = (ax2 - ax1) + (bx2 - bx1) - right
    down = (ay2 - ay1) + (by2 - by1) - below
    diagonal = _square(across, LEAST_DIAGONAL) + _square(down, LEAST_DIAGONAL)
    dx = (ax1 + ax2) / 2 - (bx1 + bx2) / 2
    dy = (ay1 + ay2) / 2 - (by1 + by2) / 2
    distance = _square(dx, LEAST_DISTANCE) + _square(dy, LEAST_DISTANCE)
    if beta == 1.0:
        return rest * diagonal >= distance * union
    apart = (dx != 0) | (dy != 0)
    penalty = jnp.where(apart, _exp2(product(_log2(distance) - _log2(diagonal), beta)), 0.0)
    return rest >= penalty * union


def excess(
    part: Float32[jax.Array, "*#batch"],
    whole: Float32[jax.Array, "*#batch"],
    threshold: Float32[jax.Array | np.ndarray, "*#batch"],
) -> Float32[jax.Array, "*#batch"]:
    """``part - threshold * whole``, at least 0 exactly where the rounded quotient of both reaches the threshold.

    A quotient rounds up to `threshold` from half a unit in the last place below it. This lower limit has 25 bits and is
    split into two numbers of 12 bits, one of them signed; `whole` is split likewise. So the four products are exact,
    fused or not, and, taken in this order, the first three differences are exact wherever the result is near 0.

    Args:
      part: float32, not negative.
      whole: float32, positive.
      threshold: float32.
    """
    bits = jax.lax.bitcast_convert_type(threshold, jnp.int32)
    half = (threshold - jax.lax.bitcast_convert_type(bits - 1, jnp.float32)) * 0.5
    high = jax.lax.bitcast_convert_type((bits + 2047) & jnp.int32(-4096), jnp.float32)
    low = threshold - high - jnp.where(threshold > 0, half, 0.0)
    upper = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(whole, jnp.int32) & jnp.int32(-4096), jnp.float32)
    lower = whole - upper
    return part - high * upper - high * lower - low * upper - low * lower


def _area(x1, y1, x2, y2):
    """The area of a box; NaN for a box without area, so that every comparison with it is False."""
    width = x2 - x1 + 1
    area = width * (y2 - y1 + 1)
    return jnp.where((area > 0) & (width > 0), area, jnp.nan)


def _square(x, least):
    return jnp.maximum(x * x, least)


def _log2(x):
    """Base-2 logarithm of a positive normal number, within 3e-7."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    exponent = ((bits >> 23) - 127).astype(jnp.float32)
    fraction = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32) - 1.0
    return exponent + product(_polynomial(LOG2, fraction), fraction)


def _exp2(x):
    """``2 ** x`` for x up to 0, relative error below 4e-7; inputs below -125 are clamped to -125."""
    x = jnp.maximum(x, -125.0)
    whole = x.astype(jnp.int32) - 1  # Mosaic has no floor
    power = jax.lax.bitcast_convert_type((whole + 127) << 23, jnp.float32)
    return _polynomial(EXP2, x - whole.astype(jnp.float32)) * power


def _polynomial(coefficients, x):
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = product(total, x) + coefficient
    return total
