"""RoIAlign over a feature pyramid: one gather for all levels.

RoIs are ``[x1, y1, x2, y2]`` in pixels of the network's input. This module knows arrays only.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def roi_levels(
    rois: jax.Array, *, strides: Sequence[int] = (4, 8, 16, 32), canonical_scale: float = 224, canonical_level: int = 4
) -> jax.Array:
    """Which of `strides` each RoI is pooled at: int32 (...), an index into `strides`.

    ``floor(canonical_level + log2(sqrt(area) / canonical_scale))``, the level whose stride is ``2 ** level``, or the
    nearest of those given (FPN, eq. 1; the original's FPN.ROI_CANONICAL_*). The area counts inclusive pixels.

    Args:
      rois: float (..., 4), pixels.
      strides: of the feature maps, ascending powers of two.
      canonical_scale: side of the RoI that belongs to `canonical_level`.
      canonical_level: the base-2 logarithm of that level's stride.
    """
    area = (rois[..., 2] - rois[..., 0] + 1) * (rois[..., 3] - rois[..., 1] + 1)
    side = jnp.sqrt(jnp.maximum(area, 0.0))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_scale + 1e-6))  # the original's 1e-6: log of 0
    lowest = int(np.log2(strides[0]))
    return jnp.clip(level - lowest, 0, len(strides) - 1).astype(jnp.int32)


def roi_align(
    features: Sequence[jax.Array],
    rois: jax.Array,
    *,
    resolution: int,
    sampling_ratio: int,
    strides: Sequence[int] = (4, 8, 16, 32),
    canonical_scale: float = 224,
    canonical_level: int = 4,
    extent: jax.Array | None = None,
) -> jax.Array:
    """Pools each RoI from its pyramid level into resolution x resolution bins.

    A bin is the mean of regularly spaced bilinear samples, ``sampling_ratio`` per axis (Mask R-CNN, section 3). As in
    the original, a RoI's corners are scaled by 1 / stride without a half-pixel shift, it is at least one cell wide and
    high, a sample more than one cell outside the map counts as 0, and one just outside takes the border's value.
    Differentiable in `features`; `rois` receive no gradient.

    Args:
      features: float32 or bfloat16 (B, Hl, Wl, C), one map per stride.
      rois: float (B, R, 4), pixels; (0, 0, 0, 0) is a legal filler.
      resolution: FAST_RCNN.ROI_XFORM_RESOLUTION.
      sampling_ratio: FAST_RCNN.ROI_XFORM_SAMPLING_RATIO; 0 takes one sample per cell that a bin spans, rounded up,
        which is exact for RoIs up to twice as large as the map.
      strides: of the maps, ascending powers of two.
      canonical_scale, canonical_level: see `roi_levels`.
      extent: int (B, 2), height and width in pixels beyond which the maps do not exist, whatever they hold there: an
        image pooled from a larger bucket gives the same. None: the maps' own sizes.

    Returns:
      (B, R, resolution, resolution, C) in the features' dtype, accumulated in float32.

    Raises:
      ValueError: if features and strides differ in number.
    """
    if len(features) != len(strides):
        raise ValueError(f"{len(features)} feature maps need as many strides, not {len(strides)}")
    taps = _taps(
        [level.shape[1:3] for level in features],
        jax.lax.stop_gradient(rois.astype(jnp.float32)),
        resolution=resolution,
        sampling_ratio=sampling_ratio,
        strides=strides,
        canonical_scale=canonical_scale,
        canonical_level=canonical_level,
        extent=extent,
    )
    batch, _, _, channels = features[0].shape
    flat = jnp.concatenate([level.reshape(batch, -1, channels) for level in features], 1)
    return jax.vmap(_pool)(flat, *taps)


def _taps(shapes, rois, *, resolution, sampling_ratio, strides, canonical_scale, canonical_level, extent):
    """What to read and how much it weighs, separably.

    Returns rows (B, R, resolution, T), offsets of feature rows in the flattened pyramid; row weights, likewise;
    columns and column weights. A bin's value is the sum over its T x T taps of weight * weight * feature.
    """
    level = roi_levels(rois, strides=strides, canonical_scale=canonical_scale, canonical_level=canonical_level)
    shapes = np.asarray(shapes)
    offsets = np.concatenate([[0], np.cumsum(shapes.prod(1))[:-1]])
    stride = jnp.asarray(strides, jnp.float32)[level]
    width = jnp.asarray(shapes[:, 1], jnp.int32)[level]
    if extent is None:
        sizes = jnp.asarray(shapes, jnp.int32)[level]
    else:
        strides_ = jnp.asarray(strides, jnp.int32)
        sizes = -(-extent[:, None, :] // strides_[level][..., None])

    def along(axis):
        start, end = rois[..., axis] / stride, rois[..., axis + 2] / stride
        side = jnp.maximum(end - start, 1.0)
        bin_side = side / resolution
        if sampling_ratio > 0:
            samples, used = sampling_ratio, jnp.full(side.shape, sampling_ratio, jnp.float32)
        else:
            samples = -(-2 * int(shapes[:, 1 - axis].max()) // resolution)
            used = jnp.minimum(jnp.ceil(bin_side), samples)
        bins = jnp.arange(resolution, dtype=jnp.float32)[:, None]
        step = jnp.arange(samples, dtype=jnp.float32)
        start, bin_side, used = (x[..., None, None] for x in (start, bin_side, used))
        position = start + bins * bin_side + (step + 0.5) * bin_side / used  # (B, R, resolution, samples)

        limit = sizes[..., 1 - axis][..., None, None]
        inside = (position >= -1) & (position <= limit) & (step < used)
        position = jnp.where(inside, jnp.maximum(position, 0.0), 0.0)
        low = position.astype(jnp.int32)
        last = low >= limit - 1
        low = jnp.where(last, limit - 1, low)
        high = jnp.where(last, low, low + 1)
        fraction = jnp.where(last, 0.0, position - low)
        share = jnp.where(inside, 1.0 / used, 0.0)
        return (
            jnp.concatenate([low, high], -1),
            jnp.concatenate([(1 - fraction) * share, fraction * share], -1),
        )

    rows, row_weights = along(1)
    columns, column_weights = along(0)
    rows = jnp.asarray(offsets, jnp.int32)[level][..., None, None] + rows * width[..., None, None]
    return rows, row_weights, columns, column_weights


def _combinations(rows, row_weights, columns, column_weights):
    """Positions and weights of each bin's taps, (T * T, R, resolution, resolution)."""
    taps = rows.shape[-1]
    ty, tx = np.divmod(np.arange(taps * taps), taps)
    position = rows[..., ty][:, :, None] + columns[..., tx][:, None]
    weight = row_weights[..., ty][:, :, None] * column_weights[..., tx][:, None]
    return jnp.moveaxis(position, -1, 0), jnp.moveaxis(weight, -1, 0)


@jax.custom_vjp
def _pool(flat, rows, row_weights, columns, column_weights):
    """One image: the flattened pyramid (P, C) to pooled RoIs (R, resolution, resolution, C)."""

    def add(total, tap):
        position, weight = tap
        return total + weight[..., None] * flat[position].astype(jnp.float32), None

    positions, weights = _combinations(rows, row_weights, columns, column_weights)
    total = jnp.zeros((*positions.shape[1:], flat.shape[1]), jnp.float32)
    total, _ = jax.lax.scan(add, total, (positions, weights), unroll=16)
    return total.astype(flat.dtype)


def _pool_forward(flat, *taps):
    return _pool(flat, *taps), (jnp.zeros((flat.shape[0], 0), flat.dtype), *taps)


def _pool_backward(saved, gradient):
    like, *taps = saved

    def add(total, tap):
        position, weight = tap
        update = weight[..., None] * gradient.astype(jnp.float32)
        return total.at[position.reshape(-1)].add(update.reshape(-1, gradient.shape[-1])), None

    total = jnp.zeros((like.shape[0], gradient.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add, total, _combinations(*taps))
    return (
        total.astype(like.dtype),
        *(jnp.zeros_like(tap) if tap.dtype == jnp.float32 else np.zeros(tap.shape, jax.dtypes.float0) for tap in taps),
    )


_pool.defvjp(_pool_forward, _pool_backward)
