"""Polygons filled on a small grid, equal bit for bit to COCO's ``rleFrPoly`` (pycocotools), under jit.

COCO draws a polygon's edges on a grid that is finer by `FINE`, each edge point by point along its longer axis, and
toggles the fill of a column where the drawn line passes the column's middle. Here the row of each such crossing is
computed at once, in integers. COCO computes points in float64; `_rounds_down` finds the few that its rounding moves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int32

from diou_jax.structures import Array

FINE = 5

# Fine coordinates are limited to this distance, so that quotients fit into float32 and int32.
FURTHEST = 2**21


def fill(
    points: Float32[Array, "*batch P 2"], part: Int32[Array, "*batch P"], *, resolution: int
) -> Bool[jax.Array, "*batch {resolution} {resolution}"]:
    """The cells that belong to each polygon: bool (..., M, M).

    Args:
      points: float32 (..., P, 2), x and y of vertices in cells of the grid.
      part: int32 (..., P), number of the vertex's part, ascending; -1 where there is no vertex. Inside a part the
        even-odd rule holds; parts are united.
      resolution: M, cells along each side of the grid, at most 32.
    """
    fine = _fine(points)
    first, last = _ends(part)
    following = jnp.where(last, first, jnp.arange(part.shape[-1]) + 1)
    row, crosses = _crossings(fine, jnp.take_along_axis(fine, following[..., None], -2), resolution)
    # Bit r of a word is the cell of row r. A crossing toggles its row and all rows below.
    crosses &= (part >= 0)[..., None] & (row < 32)
    toggled = jnp.where(crosses, jnp.uint32(2**32 - 1) << jnp.clip(row, 0, 31).astype(jnp.uint32), 0)
    passed = jax.lax.associative_scan(jnp.bitwise_xor, toggled, axis=toggled.ndim - 2)
    before = jnp.take_along_axis(passed, jnp.maximum(first - 1, 0)[..., None], -2)
    parts = passed ^ jnp.where((first > 0)[..., None], before, 0)
    words = jnp.bitwise_or.reduce(jnp.where(last[..., None], parts, 0), axis=-2)
    return ((words[..., None, :] >> jnp.arange(resolution, dtype=jnp.uint32)[:, None]) & 1).astype(bool)


def _fine(points):
    """``int(FINE * points + 0.5)`` as float64 gives it, computed by comparisons in float32."""
    distance = jnp.minimum(jnp.abs(points), FURTHEST // FINE)
    whole = jnp.floor(distance)
    # The fraction is exact, and each bound is the smallest float32 of at least 0.1, 0.3, 0.5, 0.7, 0.9.
    bounds = jnp.array([0.1, 0.3, 0.5, 0.70000005, 0.90000004], jnp.float32)
    steps = FINE * whole.astype(jnp.int32) + ((distance - whole)[..., None] >= bounds).sum(-1, dtype=jnp.int32)
    # The conversion truncates towards zero.
    return jnp.where(points >= 0, steps, -jnp.maximum(steps - 1, 0))


def _ends(part):
    """The place of the first vertex of each vertex's part, int32 (..., P), and whether it is the last one, bool."""
    change = part[..., 1:] != part[..., :-1]
    edge = jnp.ones_like(part[..., :1], bool)
    begins, last = jnp.concatenate([edge, change], -1), jnp.concatenate([change, edge], -1)
    place = jnp.where(begins, jnp.arange(part.shape[-1], dtype=jnp.int32), 0)
    return jax.lax.cummax(place, axis=place.ndim - 1), last


class _Line(NamedTuple):
    """An edge along its longer axis: it leads from (`low`, `base`) over `length` steps and changes by `rise`."""

    low: jax.Array
    base: jax.Array
    length: jax.Array
    rise: jax.Array


def _crossings(starts, ends, resolution):
    """The first row that each edge toggles in each column, int32 (..., P, M), and whether it crosses the column."""
    distance = jnp.abs(ends - starts)
    steep = (distance[..., 0] < distance[..., 1])[..., None]
    (x0, y0), (x1, y1) = (jnp.split(corner, 2, -1) for corner in (starts, ends))
    along0, along1 = jnp.where(steep, y0, x0), jnp.where(steep, y1, x1)
    across0, across1 = jnp.where(steep, x0, y0), jnp.where(steep, x1, y1)
    base = jnp.where(along0 > along1, across1, across0)
    line = _Line(jnp.minimum(along0, along1), base, jnp.abs(along1 - along0), across0 + across1 - 2 * base)
    # The middle of column j lies between the fine columns 5 j + 2 and 5 j + 3.
    middle = FINE * jnp.arange(resolution, dtype=jnp.int32) + FINE // 2
    crosses = (jnp.minimum(x0, x1) <= middle) & (middle < jnp.maximum(x0, x1))
    fine_row = jnp.where(steep, _row_of_steep(line, middle), _row_of_flat(line, middle))
    return jnp.clip((fine_row + FINE // 2) // FINE, 0, resolution), crosses


def _row_of_flat(line, middle):
    """The fine row at which lines along x cross: the smaller one of the points on both sides of the middle."""
    slope = _slope_error(line)

    def row(step):
        change, rest = _divide((2 * step, line.rise), line.length, by=2 * line.length)
        value = line.base + change
        return value - ((rest == 0) & _rounds_down(line, step, value, slope))

    step = jnp.clip(middle - line.low, 0, jnp.maximum(line.length - 1, 0))
    return jnp.minimum(row(step), row(step + 1))


def _row_of_steep(line, middle):
    """The fine row at which lines along y cross: the one before the first step that lies beyond the middle."""
    ascends = line.rise > 0
    halves = jnp.where(ascends, 2 * (middle - line.base) + 1, 2 * (line.base - middle) - 1)
    step, rest = _divide((halves, line.length), 0, by=2 * jnp.abs(line.rise))
    short = (rest == 0) & _rounds_down(line, step, jnp.broadcast_to(middle + 1, step.shape), _slope_error(line))
    # A point exactly on the border counts as right of it, unless it is rounded down.
    beyond = jnp.where(ascends, step + ((rest > 0) | short), step + ~short)
    return line.low + beyond - 1


def _divide(factors, summand, *, by):
    """The quotient and rest of ``factors[0] * factors[1] + summand`` divided by `by`, although the product overflows.

    The float32 quotient is off by one at most. The rest is small, so that integers that wrap around hold it exactly.
    """
    first, second = factors
    by = jnp.maximum(by, 1)
    product = first.astype(jnp.float32) * second.astype(jnp.float32) + jnp.asarray(summand, jnp.float32)
    limit = jnp.float32(4 * FURTHEST)
    quotient = jnp.floor(jnp.clip(product / by.astype(jnp.float32), -limit, limit)).astype(jnp.int32)
    rest = first * second + summand - quotient * by
    off = (rest >= by).astype(jnp.int32) - (rest < 0)
    return quotient + off, rest - off * by


def _slope_error(line):
    """By how much float64 rounds a slope to the side on which points fall short: (error, exponent).

    With the exponent k, the smallest with ``abs(rise) * 2 ** k >= length``, the error is ``error / length`` units of
    the last place of ``rise / length``, hence ``error / length * 2 ** (-k - 52)``.
    """
    length, rise = jnp.maximum(line.length, 1), jnp.maximum(jnp.abs(line.rise), 1)
    exponent = jnp.maximum(jax.lax.clz(rise) - jax.lax.clz(length), 0)
    exponent += (rise << exponent) < length
    rest = (rise << exponent) % length
    for bits in (9, 9, 9, 9, 9, 7):  # 52 in all; a length has at most 22 bits
        rest = (rest << bits) % length
    error = jnp.where(line.rise > 0, rest, length - rest)
    return jnp.where((rest > 0) & (2 * error < length), error, 0), exponent


def _rounds_down(line, step, value, slope):
    """Whether float64 takes a point below `value`, where its exact coordinate plus one half is the integer `value`.

    The product of step and slope is then h = |value - base - 1/2|. It misses h by one unit of the last place if the
    slope's error times the step exceeds half a unit, and the sum keeps this unit if it has no larger exponent than h.
    """
    error, exponent = slope
    twice_h, twice_sum = jnp.abs(2 * (value - line.base) - 1), 2 * value - 1
    bits = 31 - jax.lax.clz(twice_h)
    missed = jnp.ldexp(2.0 * step.astype(jnp.float32) * error.astype(jnp.float32), -exponent - (bits - 1))
    kept = jax.lax.clz(jnp.maximum(twice_sum, 1)) >= jax.lax.clz(twice_h)
    # Half of one has the next smaller float64 at half the distance, and the sum rounds it up again.
    kept &= (twice_h > 1) | (line.rise < 0)
    return (value >= 1) & kept & (missed > line.length.astype(jnp.float32))
