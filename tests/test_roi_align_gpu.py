"""The Mosaic GPU kernels against their references: interpreted at small sizes, lowered at the detector's, run on a GPU.

Where a memory checker exists: ``compute-sanitizer python -m pytest -n 0 -m gpu tests/test_roi_align_gpu.py``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from lowering import interpreter, lower_for_cuda

from diou_jax.kernels import roi_align_gpu
from diou_jax.kernels.roi_align import pool_xla, roi_align, roi_frames, roi_levels, scatter_xla

STRIDES = (4, 8, 16, 32)
DTYPES = [jnp.float32, jnp.bfloat16]


def pyramid_shapes(height, width):
    return [(height // stride, width // stride) for stride in STRIDES]


def random_rois(rng, batch, count, height, width):
    """Boxes of all sizes and shapes, some partly or wholly outside the image, the first a filler."""
    sides = np.exp(rng.uniform(0, np.log(2 * width), (batch, count, 2)))
    centre = rng.uniform(-0.1, 1.1, (batch, count, 2)) * [width, height]
    rois = np.concatenate([centre - sides / 2, centre + sides / 2], -1)
    rois[:, 0] = 0
    return rois.astype(np.float32)


def place(rois, shapes, *, resolution, canonical_scale=224, padded_size=None):
    level = roi_levels(rois, canonical_scale=canonical_scale)
    return level, roi_frames(rois, level, shapes, resolution=resolution, strides=STRIDES, padded_size=padded_size)


def assert_equal_but_for_rounding(values, wanted):
    """To a few last bits of sums of order 1."""
    tolerance = 1e-5 if values.dtype == jnp.float32 else 2**-7
    values, wanted = np.asarray(values, np.float32), np.asarray(wanted, np.float32)
    np.testing.assert_allclose(values, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def small():
    """Two images of different size in maps of 64 x 48 pixels, which hold NaN outside the smaller image."""
    rng = np.random.default_rng(0)
    shapes = pyramid_shapes(64, 48)
    padded_size = np.array([[64, 48], [41, 37]])
    features = [rng.normal(size=(2, *shape, 128)).astype(np.float32) for shape in shapes]
    for feature, stride in zip(features, STRIDES, strict=True):
        height, width = -(-padded_size[1] // stride)
        feature[1, height:] = feature[1, :, width:] = np.nan
    rois = random_rois(rng, 2, 4, 64, 48)
    rois[:, 1] = [30, 20, 62, 46]
    return shapes, [jnp.asarray(feature) for feature in features], rois, jnp.asarray(padded_size)


@pytest.mark.parametrize(("dtype", "resolution"), [slow(jnp.float32, 7), (jnp.bfloat16, 3)])
def test_pooling_equals_the_reference(small, dtype, resolution):
    shapes, features, rois, padded_size = small
    level, frame = place(rois, shapes, resolution=resolution, canonical_scale=40, padded_size=padded_size)
    assert len(np.unique(level)) >= 3
    features = [feature.astype(dtype) for feature in features]
    values = roi_align_gpu.pool(features, level, frame, resolution=resolution, interpret=interpreter())
    assert values.dtype == dtype
    wanted = pool_xla(features, level, frame, resolution=resolution, sampling_ratio=2)
    assert np.isfinite(np.asarray(wanted, np.float32)).all()
    assert_equal_but_for_rounding(values, wanted)


def test_boxes_that_are_no_numbers_pool_what_they_pool_in_the_reference(small):
    shapes, features, _, padded_size = small
    rois = np.float32([[np.nan] * 4, [np.nan, 0, 20, 20], [-np.inf, 0, 10, 20], [0, 0, np.inf, 20]])
    level, frame = place(np.stack([rois, rois]), shapes, resolution=3, padded_size=padded_size)
    values = roi_align_gpu.pool(features, level, frame, resolution=3, interpret=interpreter())
    wanted = pool_xla(features, level, frame, resolution=3, sampling_ratio=2)
    assert np.isfinite(np.asarray(wanted)).all()
    assert_equal_but_for_rounding(values, wanted)


@pytest.mark.parametrize(("dtype", "resolution"), [slow(jnp.float32, 14), (jnp.bfloat16, 3)])
def test_the_gradient_equals_the_reference(small, dtype, resolution):
    shapes, _, rois, padded_size = small
    level, frame = place(rois, shapes, resolution=resolution, canonical_scale=40, padded_size=padded_size)
    gradient = jax.random.normal(jax.random.key(1), (*level.shape, resolution, resolution, 128), dtype)
    gradient = gradient.at[0, 2].set(0)  # a RoI that is passed over
    values = roi_align_gpu.scatter(gradient, level, frame, shapes=shapes, interpret=interpreter())
    wanted = scatter_xla(gradient, level, frame, shapes=shapes, sampling_ratio=2)
    for map_values, map_wanted in zip(values, wanted, strict=True):
        assert map_values.dtype == dtype
        assert_equal_but_for_rounding(map_values, map_wanted)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("resolution", [7, slow(14)])
def test_no_tile_misses_a_roi_and_no_roi_a_bin(axis, resolution):
    """At the detector's size, which no interpreter reaches: whatever weighs more than 0 is in the tables."""
    rng = np.random.default_rng(2)
    shapes = pyramid_shapes(800, 1344)
    rois = random_rois(rng, 2, 300, 800, 1344)
    rois[:, 1:9] = [[-4, -4, 20, 20], [1340, 796, 1344, 800], [1340, 796, 1348, 804], [0, 0, 1343, 799]] * 2
    level, frame = place(rois, shapes, resolution=resolution, padded_size=jnp.asarray([[800, 1344], [795, 1001]]))
    tiles = [(-(-height // 4), -(-width // 4)) for height, width in shapes]
    needed = jnp.asarray(rng.random(level.shape) < 0.9)
    words = np.asarray(roi_align_gpu._masks(level, frame, needed, tiles, resolution, axis))
    flagged = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[..., :300].astype(bool)

    first, line = 4 * np.arange(tiles[0][axis]), 0
    start, side, limit = (np.asarray(frame)[..., axis + k, None] for k in (0, 2, 4))
    bins = np.arange(resolution, dtype=np.float32)
    weights = np.zeros((2, 300, len(first), resolution))  # the largest of a tile's four cells
    for k in range(2):
        position, share = roi_align_gpu._sample(start, side, limit, bins, k)
        distance = np.abs(np.asarray(position)[:, :, None, None] - (first[:, None] + np.arange(4))[..., None])
        weights += (np.maximum(1 - distance, 0) * np.asarray(share)[:, :, None, None]).max(-2)
    before, until = roi_align_gpu._bins(start, side, jnp.asarray(first), resolution)
    in_range = (bins >= before[..., None]) & (bins < until[..., None])
    assert not (weights * ~in_range).any()
    for index, lines in enumerate(tiles):
        reached = weights[:, :, : lines[axis]].any(-1) & (np.asarray(level) == index)[..., None]
        wanted = (reached & np.asarray(needed)[..., None]).transpose(0, 2, 1)
        found = flagged[:, line : line + lines[axis]]
        assert wanted.any() and not (wanted & ~found).any()
        assert not (found & ~np.asarray(needed)[:, None]).any()
        line += lines[axis]
    assert line == flagged.shape[1]


@pytest.mark.parametrize(("channels", "kernels"), [(256, 2), (192, 0)])
def test_a_gpu_gets_the_kernels_where_they_can(channels, kernels):
    features = [jax.ShapeDtypeStruct((2, *shape, channels), jnp.bfloat16) for shape in pyramid_shapes(800, 1344)]
    rois = jax.ShapeDtypeStruct((2, 512, 4), jnp.float32)
    pooled = jax.ShapeDtypeStruct((2, 512, 7, 7, channels), jnp.bfloat16)

    def both(features, rois, gradient):
        values, pull = jax.vjp(lambda f: roi_align(f, rois, resolution=7, sampling_ratio=2), features)
        return values, pull(gradient)

    program = lower_for_cuda(both, features, rois, pooled)
    assert program.count("@mosaic_gpu") == kernels
    assert "stablehlo.scatter" not in program  # deterministic, it would sort scalars


def test_what_the_kernels_do_not_support():
    def supported(dtype=jnp.bfloat16, channels=256, resolution=7, sampling_ratio=2):
        features = jax.ShapeDtypeStruct((1, 8, 8, channels), dtype)
        return roi_align_gpu.supported(features, resolution=resolution, sampling_ratio=sampling_ratio)

    assert supported() and supported(jnp.float32) and supported(resolution=14)
    assert not supported(jnp.float16) and not supported(channels=192) and not supported(sampling_ratio=0)
    assert not supported(resolution=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "resolution"), [(512, 7), slow(1000, 7), slow(512, 14)])
def test_the_kernels_lower_for_cuda_at_the_detectors_sizes(dtype, count, resolution):
    shapes = pyramid_shapes(800, 1344)
    features = [jax.ShapeDtypeStruct((16, *shape, 256), dtype) for shape in shapes]
    level = jax.ShapeDtypeStruct((16, count), jnp.int32)
    frame = jax.ShapeDtypeStruct((16, count, 6), jnp.float32)
    pooled = jax.ShapeDtypeStruct((16, count, resolution, resolution, 256), dtype)
    program = lower_for_cuda(functools.partial(roi_align_gpu.pool, resolution=resolution), features, level, frame)
    assert "mosaic_gpu" in program
    program = lower_for_cuda(functools.partial(roi_align_gpu.scatter, shapes=shapes), pooled, level, frame)
    assert "mosaic_gpu" in program


def full_size(seed, dtype, *, count, resolution):
    """Fresh inputs at the detector's size, 16 images, drawn on the device."""
    shapes = pyramid_shapes(800, 1344)
    *keys, last = jax.random.split(jax.random.key(seed), 1 + len(shapes))
    features = [jax.random.normal(key, (16, *shape, 256), dtype) for key, shape in zip(keys, shapes, strict=True)]
    gradient = jax.random.normal(last, (16, count, resolution, resolution, 256), dtype)
    rois = random_rois(np.random.default_rng(seed), 16, count, 800, 1344)
    level, frame = place(rois, shapes, resolution=resolution)
    return shapes, features, gradient, level, frame


def poison(*arrays):
    """Leaves NaN in the memory that results of these shapes are likely to get."""
    jax.block_until_ready([jnp.full(array.shape, jnp.nan, array.dtype) for array in arrays])


def assert_close(values, wanted):
    """In norm, which in float32 one wrong cell would break, and nowhere far off."""
    tolerance = 1e-4 if values.dtype == jnp.float32 else 4e-3
    values, wanted = values.astype(jnp.float32), wanted.astype(jnp.float32)
    assert jnp.linalg.norm(values - wanted) <= tolerance * jnp.linalg.norm(wanted)
    assert (jnp.abs(values - wanted) <= 0.02 + 0.02 * jnp.abs(wanted)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "resolution"), [(512, 7), (1000, 7), (512, 14)])
def test_on_a_gpu_both_kernels_equal_the_reference(hopper, dtype, count, resolution):
    shapes, features, gradient, level, frame = full_size(count + resolution, dtype, count=count, resolution=resolution)
    pool = jax.jit(functools.partial(roi_align_gpu.pool, resolution=resolution))
    poison(gradient)
    values = pool(features, level, frame)
    wanted = jax.jit(functools.partial(pool_xla, resolution=resolution, sampling_ratio=2))(features, level, frame)
    assert_close(values, wanted)
    poison(*features)
    values = jax.jit(functools.partial(roi_align_gpu.scatter, shapes=shapes))(gradient, level, frame)
    reference = jax.jit(functools.partial(scatter_xla, shapes=shapes, sampling_ratio=2))
    for map_values, map_wanted in zip(values, reference(gradient, level, frame), strict=True):
        assert_close(map_values, map_wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_two_runs_give_the_same_bits(hopper, dtype):
    shapes, features, gradient, level, frame = full_size(3, dtype, count=512, resolution=7)
    scatter = jax.jit(functools.partial(roi_align_gpu.scatter, shapes=shapes))
    first = scatter(gradient, level, frame)
    poison(*features)
    for one, two in zip(first, scatter(gradient, level, frame), strict=True):
        assert (one == two).all()
