"""RoIAlign over a feature pyramid: one gather for all levels.

RoIs are ``[x1, y1, x2, y2]`` in pixels of the network's input.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from diou_jax.kernels import roi_align_gpu
from diou_jax.kernels.rounding import product, quotient
from diou_jax.kernels.selection import kernel_or_reference
from diou_jax.kernels.varying import varying_as

ROIS_AT_ONCE = 128  # in the products that make a gradient; all 512 of an image would need 734 MB at 800 x 1344


def roi_levels(
    rois: Float[jax.Array | np.ndarray, "*batch 4"],
    *,
    strides: Sequence[int] = (4, 8, 16, 32),
    canonical_scale: float = 224,
    canonical_level: int = 4,
) -> Int32[jax.Array, "*batch"]:
    """The level that each RoI is pooled from: int32 (...), an index into `strides`.

    The level is ``floor(canonical_level + log2(sqrt(area) / canonical_scale))``, clipped to the given ones; its stride
    is ``2 ** level`` (FPN, eq. 1; the original's FPN.ROI_CANONICAL_*). The area counts inclusive pixels.

    Args:
      rois: float (..., 4), pixels.
      strides: strides of the feature maps, powers of two, fine to coarse, each twice the one before.
      canonical_scale: side in pixels of a RoI that belongs to `canonical_level`.
      canonical_level: the base-2 logarithm of that level's stride.

    Raises:
      ValueError: if `strides` are others.
    """
    finest = int(strides[0])
    if finest.bit_count() != 1 or any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise ValueError(f"strides must be powers of two, each twice the one before, not {tuple(strides)}")
    area = (rois[..., 2] - rois[..., 0] + 1) * (rois[..., 3] - rois[..., 1] + 1)
    side = jnp.sqrt(jnp.maximum(area, 0.0))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_scale + 1e-6))  # 1e-6 as in the original: no log of 0
    return jnp.clip(level - (finest.bit_length() - 1), 0, len(strides) - 1).astype(jnp.int32)


def roi_align(
    features: Sequence[Float[jax.Array, "B _Hl _Wl C"]],
    rois: Float[jax.Array | np.ndarray, "B R 4"],
    *,
    resolution: int,
    sampling_ratio: int,
    strides: Sequence[int] = (4, 8, 16, 32),
    padded_size: Int[jax.Array | np.ndarray, "B 2"] | None = None,
    levels: Int32[jax.Array | np.ndarray, "B R"] | None = None,
) -> Float[jax.Array, "B R {resolution} {resolution} C"]:
    """Pools each RoI from its pyramid level into resolution x resolution bins.

    A bin is the mean of regularly spaced bilinear samples, ``sampling_ratio`` per axis (Mask R-CNN, section 3). As in
    the original, the corners of a RoI are scaled by 1 / stride without a half-pixel shift, a RoI is at least one cell
    wide and high, a sample more than one cell outside the map counts as 0, and a sample at most one cell outside takes
    the value at the border. `features` receive a gradient, `rois` do not.

    Args:
      features: float32 or bfloat16 (B, Hl, Wl, C), one map per stride.
      rois: float (B, R, 4), pixels; (0, 0, 0, 0) may fill unused rows.
      resolution: FAST_RCNN.ROI_XFORM_RESOLUTION.
      sampling_ratio: FAST_RCNN.ROI_XFORM_SAMPLING_RATIO; 0 takes one sample per cell that a bin spans, rounded up,
        which is exact for RoIs up to twice as large as the map.
      strides: strides of the maps; without `levels` they must be as `roi_levels` demands.
      padded_size: int (B, 2), height and width in pixels beyond which cells of the maps are ignored, so that the bucket
        of an image does not change its result. None: the whole maps.
      levels: int32 (B, R), index of the map of each RoI. None: that of `roi_levels` with FPN's numbers.

    Returns:
      (B, R, resolution, resolution, C) in the features' dtype, accumulated in float32.

    Raises:
      ValueError: if features and strides differ in number, shapes do not belong together, or `roi_levels` refuses the
        strides.
    """
    if len(features) != len(strides):
        raise ValueError(f"{len(features)} feature maps need as many strides, not {len(strides)}")
    maps = [feature.shape for feature in features]
    if any(len(shape) != 4 for shape in maps) or len({(shape[0], shape[3]) for shape in maps}) > 1:
        raise ValueError(f"features must be (B, Hl, Wl, C) with one B and one C, not {maps}")
    if rois.ndim != 3 or rois.shape[0] != maps[0][0] or rois.shape[2] != 4:
        raise ValueError(f"rois must be (B, R, 4) with B={maps[0][0]} as the features, not {rois.shape}")
    rois = jax.lax.stop_gradient(rois.astype(jnp.float32))
    if levels is None:
        levels = roi_levels(rois, strides=strides)
    shapes = tuple((feature.shape[1], feature.shape[2]) for feature in features)
    frame = roi_frames(rois, levels, shapes, resolution=resolution, strides=strides, padded_size=padded_size)
    return _pool(tuple(features), levels, frame, _Grid(shapes, resolution, sampling_ratio))


def roi_frames(
    rois: Float32[jax.Array | np.ndarray, "B R 4"],
    level: Int32[jax.Array | np.ndarray, "B R"],
    shapes: Sequence[tuple[int, int]],
    *,
    resolution: int,
    strides: Sequence[int],
    padded_size: Int[jax.Array | np.ndarray, "B 2"] | None = None,
) -> Float32[jax.Array, "B R 6"]:
    """The frame of each RoI in cells of its level: top, left, bin height and width, map height and width.

    Args:
      rois: float32 (B, R, 4), pixels.
      level: int32 (B, R), index into `shapes` and `strides`.
      shapes: height and width of each map.
      resolution: bins per side.
      strides: strides of the maps.
      padded_size: int (B, 2) pixels, or None, as for `roi_align`.

    Returns:
      float32 (B, R, 6).
    """
    stride = jnp.asarray(strides, jnp.float32)[level][..., None]
    corner, opposite = rois[..., 1::-1] / stride, rois[..., :1:-1] / stride
    bin_sides = quotient(jnp.maximum(opposite - corner, 1.0), resolution)  # else samples move by up to 1e-5 cells
    sizes = jnp.asarray(shapes, jnp.int32)[level]
    if padded_size is not None:
        cells = -(-padded_size[:, None, :] // jnp.asarray(strides, jnp.int32)[level][..., None])
        sizes = jnp.clip(cells, 1, sizes)  # the kernels read without a check of bounds
    return jnp.concatenate([corner, bin_sides, sizes.astype(jnp.float32)], -1)


class _Grid(NamedTuple):
    """The cells that samples are taken from, and the bins and samples of a RoI."""

    shapes: tuple[tuple[int, int], ...]  # height and width of each map
    resolution: int
    sampling_ratio: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _pool(features, level, frame, grid):
    _, resolution, sampling_ratio = grid
    kernel = functools.partial(roi_align_gpu.pool, resolution=resolution)
    reference = functools.partial(_pool_reference, resolution=resolution, sampling_ratio=sampling_ratio)
    if not roi_align_gpu.supported(features[0], resolution=resolution, sampling_ratio=sampling_ratio):
        return reference(features, level, frame)
    return kernel_or_reference("roi_align", kernel, reference, features, level, frame)


def _pool_forward(features, level, frame, grid):
    return _pool(features, level, frame, grid), (level, frame)


def _pool_backward(grid, saved, gradient):
    shapes, resolution, sampling_ratio = grid
    kernel = functools.partial(roi_align_gpu.scatter, shapes=shapes)
    reference = functools.partial(_features_gradient, shapes=shapes, sampling_ratio=sampling_ratio)
    if roi_align_gpu.supported(gradient, resolution=resolution, sampling_ratio=sampling_ratio):
        of_features = kernel_or_reference("roi_align_gradient", kernel, reference, gradient, *saved)
    else:
        of_features = reference(gradient, *saved)
    level, frame = saved
    return tuple(of_features), np.zeros(level.shape, jax.dtypes.float0), jnp.zeros_like(frame)


_pool.defvjp(_pool_forward, _pool_backward)


def _along(axis, frame, grid):
    """The taps of all bins along an axis, 0 or 1: cells of the map, int32, and weights (taps, B, R, resolution)."""
    start, side, limit = (frame[..., axis + k, None] for k in (0, 2, 4))
    if grid.sampling_ratio > 0:
        samples, used = grid.sampling_ratio, jnp.float32(grid.sampling_ratio)
    else:
        samples = -(-2 * max(shape[axis] for shape in grid.shapes) // grid.resolution)
        used = jnp.minimum(jnp.ceil(side), samples)
    step = jnp.arange(samples, dtype=jnp.float32)[:, None, None, None]
    # Positions have the kernels' bits; a fused product would differ by 1e-5 cells, and so would the weights.
    first = start + product(jnp.arange(grid.resolution, dtype=jnp.float32), side)
    position = first + (step + 0.5) * side / used

    inside = (position >= -1) & (position <= limit) & (step < used)
    position = jnp.where(inside, jnp.clip(position, 0.0, limit - 1), 0.0)
    low = position.astype(jnp.int32)
    fraction = position - low
    high = jnp.where(fraction > 0, low + 1, low)  # the cell beyond the map may be NaN, and 0 * NaN is NaN
    share = jnp.where(inside, 1.0 / used, 0.0)
    return jnp.concatenate([low, high]), jnp.concatenate([(1 - fraction) * share, fraction * share])


def _accumulate(add, total, level, frame, grid, *, unroll):
    """Folds `add` over the taps of all bins: ``add(total, position, weight) -> total``.

    The value of a bin is the sum of weight times feature over its T x T taps. `position`, an index into the flattened
    pyramid, and `weight` are (B, R, resolution, resolution): one tap of each bin.
    """
    shapes = np.asarray(grid.shapes)
    (rows, row_weights), (columns, column_weights) = (_along(axis, frame, grid) for axis in (0, 1))
    offset = jnp.asarray(np.cumsum(shapes.prod(1)) - shapes.prod(1), jnp.int32)[level][..., None]
    rows = offset + rows * jnp.asarray(shapes[:, 1], jnp.int32)[level][..., None]

    def add_tap(total, tap):
        row, column = tap
        position = rows[row][..., None] + columns[column][..., None, :]
        return add(total, position, row_weights[row][..., None] * column_weights[column][..., None, :]), None

    taps = np.indices((len(rows), len(columns))).reshape(2, -1)
    return jax.lax.scan(add_tap, total, tuple(taps), unroll=unroll)[0]


def _pool_reference(features, level, frame, *, resolution, sampling_ratio):
    """`pool_xla`, on a CPU in a branch of its own, which is always taken.

    A box head flattens bins and channels. Without the branch XLA fuses that with the pooling, whose innermost loop then
    no longer runs over the channels, and which takes 3 to 12 times as long on a CPU.
    """
    pool = functools.partial(pool_xla, resolution=resolution, sampling_ratio=sampling_ratio)

    def nothing(*operands):
        shape = jax.eval_shape(pool, *operands)
        return varying_as(jnp.zeros(shape.shape, shape.dtype), operands)

    def branch(features, level, frame):
        return jax.lax.cond(jnp.all(level >= 0), pool, nothing, features, level, frame)

    return jax.lax.platform_dependent(features, level, frame, cpu=branch, default=pool)


def pool_xla(features, level, frame, *, resolution, sampling_ratio):
    """The reference of `roi_align_gpu.pool`, for any device, number of channels and sampling ratio."""
    batch, _, _, channels = features[0].shape
    flat = jnp.concatenate([feature.reshape(batch, -1, channels) for feature in features], 1)
    image = np.arange(batch)[:, None, None, None]

    def add(total, position, weight):
        return total + weight[..., None] * flat[image, position].astype(jnp.float32)

    total = varying_as(jnp.zeros((*level.shape, resolution, resolution, channels), jnp.float32), flat, frame)
    grid = _Grid(tuple(feature.shape[1:3] for feature in features), resolution, sampling_ratio)
    return _accumulate(add, total, level, frame, grid, unroll=16).astype(flat.dtype)  # gathers fuse if unrolled


def _features_gradient(gradient, level, frame, *, shapes, sampling_ratio):
    """The reference of `roi_align_gpu.scatter`, for any device, number of channels and sampling ratio.

    Where results must not depend on the order of threads (`diou_jax.compilation.FLAGS`), XLA turns a scatter on a GPU
    into a sort of all its scalars, 12.8 million for each of the 16 taps with two images. Products need none.
    """
    options = {"shapes": shapes, "sampling_ratio": sampling_ratio}
    scatter, products = (functools.partial(form, **options) for form in (scatter_xla, products_xla))
    return jax.lax.platform_dependent(gradient, level, frame, cpu=scatter, default=products)


def scatter_xla(gradient, level, frame, *, shapes, sampling_ratio):
    """The gradient of the feature maps, each tap added to its cell; least work, which suits a CPU."""
    batch, _, resolution, _, channels = gradient.shape
    image = np.arange(batch)[:, None, None, None]

    def add(total, position, weight):
        return total.at[image, position].add(weight[..., None] * gradient.astype(jnp.float32))

    sizes = [height * width for height, width in shapes]
    total = varying_as(jnp.zeros((batch, sum(sizes), channels), jnp.float32), gradient, frame)
    grid = _Grid(tuple(shapes), resolution, sampling_ratio)
    total = _accumulate(add, total, level, frame, grid, unroll=1).astype(gradient.dtype)  # scatters never fuse
    maps = jnp.split(total, np.cumsum(sizes)[:-1], 1)
    return [level.reshape(batch, *shape, channels) for level, shape in zip(maps, shapes, strict=True)]


def products_xla(gradient, level, frame, *, shapes, sampling_ratio):
    """The gradient of the feature maps as products of matrices, some RoIs after the other: much work, but no scatter.

    Bilinear weights are products of a row's and a column's weight, so the gradient of a map is
    ``sum over r, j of column[r, j, x] * (sum over i of row[r, i, y] * gradient[r, i, j])``.
    """
    dtype = gradient.dtype
    # Factors are float32, which GPUs round to 10 bits unless told otherwise. That is enough for bfloat16, whose own 7
    # bits are not: gradients of many RoIs cancel, and what rounding leaves of them would be 0.4 % of the largest.
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    grid = _Grid(tuple(shapes), gradient.shape[2], sampling_ratio)
    taps = [_along(axis, frame, grid) for axis in (0, 1)]

    def weights_of(axis, size, here):
        cells, weights = taps[axis]
        chosen = (cells[..., None] == jnp.arange(size)) & here[..., None, None]
        return jnp.where(chosen, weights[..., None], 0.0).sum(0)

    def add(total, some):
        rows, columns, gradient = some
        lines = jnp.einsum("riy,rijc->rjyc", rows, gradient.astype(jnp.float32), precision=precision)
        return total + jnp.einsum("rjx,rjyc->yxc", columns, lines, precision=precision), None

    def of_image(operands):
        zeros = jnp.zeros((operands[0].shape[-1], operands[1].shape[-1], gradient.shape[-1]), jnp.float32)
        return jax.lax.scan(add, varying_as(zeros, operands), jax.tree.map(in_parts, operands))[0].astype(dtype)

    def in_parts(x):
        """RoIs filled up with zeros to whole parts: (parts, at once, ...)."""
        at_once = min(ROIS_AT_ONCE, len(x))
        filled = jnp.pad(x, [(0, -len(x) % at_once)] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(-1, at_once, *x.shape[1:])

    maps = []
    for index, (height, width) in enumerate(shapes):
        here = level == index
        maps.append(jax.lax.map(of_image, (weights_of(0, height, here), weights_of(1, width, here), gradient)))
    return maps
