"""Golden files: roi_align, fpn_levels."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from lowering import lower_for_cuda, on_both_devices

from diou_jax.kernels import roi_align as kernel
from diou_jax.kernels.roi_align import products_xla, roi_align, roi_frames, roi_levels, scatter_xla

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}


def pooled(feature, rois, *, level, resolution, ratio):
    """RoIs with an image index, as the original has them, pooled from one level."""
    images = len(feature)
    everywhere = jnp.broadcast_to(rois[None, :, 1:], (images, len(rois), 4))
    all_pooled = roi_align(
        [feature], everywhere, resolution=resolution, sampling_ratio=ratio, strides=(STRIDES[level],)
    )
    return all_pooled[rois[:, 0].astype(int), jnp.arange(len(rois))]


@pytest.mark.parametrize("level", ["p2", "p3", slow("p4"), slow("p5")])
def test_values_and_gradients_equal_the_original(golden, level):
    data = golden("roi_align.npz")
    feature = data[f"feat_{level}"].transpose(0, 2, 3, 1)
    tried = 0
    for name, wanted in data.items():
        if not name.startswith(f"out_{level}_"):
            continue
        resolution, ratio = (int(part[1:]) for part in name.split("_")[2:])
        pool = jax.jit(functools.partial(pooled, rois=data["rois"], level=level, resolution=resolution, ratio=ratio))
        # The same samples, to the bit, where their number is fixed; else the quotient by it is rounded in another way.
        close = 1e-6 if ratio else 1e-5
        np.testing.assert_allclose(pool(feature), wanted.transpose(0, 2, 3, 1), rtol=close, atol=close, err_msg=name)
        if f"g{name}" in data:
            weight = data[f"g{name}"].transpose(0, 2, 3, 1)
            gradient = jax.jit(jax.grad(lambda x, p=pool, w=weight: (p(x) * w).sum()))(jnp.asarray(feature))
            wanted = data[f"gfeat_{name.removeprefix('out_')}"].transpose(0, 2, 3, 1)
            np.testing.assert_allclose(gradient, wanted, atol=close * np.abs(wanted).max(), err_msg=name)
        tried += 1
    assert tried >= 2


def test_levels_equal_the_original(golden):
    data = golden("fpn_levels.npz")
    np.testing.assert_array_equal(roi_levels(data["boxes"]) + 2, data["levels_2_5"])
    np.testing.assert_array_equal(roi_levels(data["boxes"], strides=(4, 8, 16, 32, 64)) + 2, data["levels_2_6"])


def random_pyramid(rng, *, batch=2, channels=3, side=128, dtype=np.float32):
    return [
        jnp.asarray(rng.normal(size=(batch, side // stride, side // stride, channels)), dtype)
        for stride in STRIDES.values()
    ]


def random_rois(rng, *, batch=2, count=30, side=128):
    corner = rng.uniform(0, side * 0.9, (batch, count, 2))
    size = rng.uniform(0, 1, (batch, count, 2)) ** 2 * (side - 1 - corner)
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


def oracle(feature, roi, stride, resolution, ratio):
    """One RoI on one map (H, W, C), sample by sample."""
    height, width, channels = feature.shape
    x1, y1, x2, y2 = np.float64(roi) / stride
    across, down = max(x2 - x1, 1) / resolution, max(y2 - y1, 1) / resolution
    out = np.zeros((resolution, resolution, channels))
    for i in range(resolution):
        for j in range(resolution):
            for a in range(ratio):
                for b in range(ratio):
                    y, x = y1 + i * down + (a + 0.5) * down / ratio, x1 + j * across + (b + 0.5) * across / ratio
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    top, left = min(int(y), height - 1), min(int(x), width - 1)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    dy, dx = y - top, x - left
                    out[i, j] += (1 - dy) * ((1 - dx) * feature[top, left] + dx * feature[top, right])
                    out[i, j] += dy * ((1 - dx) * feature[bottom, left] + dx * feature[bottom, right])
    return out / ratio**2


def test_each_roi_is_pooled_from_its_own_level_and_image():
    rng = np.random.default_rng(0)
    pyramid, rois = random_pyramid(rng), random_rois(rng)
    rois[0, :3] = [[-40, -8, 30, 20], [100, 100, 190, 140], [5, 5, 5, 5]]
    levels = np.asarray(roi_levels(rois, canonical_scale=24, canonical_level=4))
    values = roi_align(pyramid, rois, resolution=3, sampling_ratio=2, levels=levels)
    assert set(levels.ravel()) == {0, 1, 2, 3}
    for image in range(2):
        for number in range(rois.shape[1]):
            level = levels[image, number]
            feature = np.asarray(pyramid[level][image], np.float64)
            wanted = oracle(feature, rois[image, number], 4 * 2**level, 3, 2)
            np.testing.assert_allclose(values[image, number], wanted, atol=2e-5)


@pytest.mark.slow
def test_a_larger_map_changes_nothing_beyond_the_padded_size():
    """Bit for bit, whatever lies there."""
    rng = np.random.default_rng(1)
    small, rois = random_pyramid(rng, side=96), random_rois(rng, side=128)
    padded = [
        jnp.pad(level, ((0, 0), (0, 64 // stride), (0, 32 // stride), (0, 0)), constant_values=np.nan)
        for level, stride in zip(small, STRIDES.values(), strict=True)
    ]
    options = {"resolution": 7, "sampling_ratio": 2, "levels": roi_levels(rois, canonical_scale=40)}
    padded_size = jnp.full((2, 2), 96)
    np.testing.assert_array_equal(
        roi_align(padded, rois, padded_size=padded_size, **options), roi_align(small, rois, **options)
    )

    def total(pyramid, **more):
        return (roi_align(pyramid, rois, **options, **more) ** 2).sum()

    clean = [jnp.nan_to_num(level) for level in padded]
    for large, little in zip(jax.grad(total)(clean, padded_size=padded_size), jax.grad(total)(small), strict=True):
        np.testing.assert_array_equal(large[:, : little.shape[1], : little.shape[2]], little)
        assert float(jnp.abs(large).sum()) == pytest.approx(float(jnp.abs(little).sum()), rel=1e-5)


@pytest.mark.slow
def test_the_gradient_is_the_transpose_and_reaches_no_roi():
    rng = np.random.default_rng(2)
    pyramid, rois = random_pyramid(rng, channels=2), random_rois(rng, count=10)
    levels = roi_levels(rois, canonical_scale=40)
    pool = functools.partial(roi_align, resolution=4, sampling_ratio=2, levels=levels)
    value, pull = jax.vjp(lambda p: pool(p, rois), pyramid)
    weight = jnp.asarray(rng.normal(size=value.shape), jnp.float32)
    (gradient,) = pull(weight)
    inner = sum(float((g * p).sum()) for g, p in zip(gradient, pyramid, strict=True))
    assert inner == pytest.approx(float((value * weight).sum()), rel=1e-4)
    assert (jax.grad(lambda r: pool(pyramid, r).sum())(jnp.asarray(rois)) == 0).all()


@pytest.mark.parametrize("ratio", [2, 0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_give_the_gradient_that_a_scatter_gives(monkeypatch, dtype, ratio):
    monkeypatch.setattr(kernel, "ROIS_AT_ONCE", 7)  # several parts, the last not full
    rng = np.random.default_rng(4)
    shapes = [(32, 24), (16, 12), (8, 6), (4, 3)]
    rois = random_rois(rng, side=110)
    rois[0, :4] = [[-40, -8, 30, 20], [80, 100, 190, 140], [5, 5, 5, 5], [np.nan, 0, 9, 9]]
    level = roi_levels(rois, canonical_scale=24)
    assert set(np.asarray(level).ravel()) == {0, 1, 2, 3}
    padded_size = jnp.asarray([[128, 96], [101, 70]])
    frame = roi_frames(rois, level, shapes, resolution=5, strides=(4, 8, 16, 32), padded_size=padded_size)
    gradient = jnp.asarray(rng.normal(size=(*level.shape, 5, 5, 8)), dtype)
    options = {"shapes": shapes, "sampling_ratio": ratio}
    found = jax.jit(functools.partial(products_xla, **options))(gradient, level, frame)
    wanted = jax.jit(functools.partial(scatter_xla, **options))(gradient, level, frame)
    tolerance = 2e-6 if dtype == jnp.float32 else 2**-9  # half of the last of bfloat16's bits
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def test_on_a_gpu_nothing_is_scattered():
    """Deterministic, XLA would sort all scalars of a scatter for each tap: a hundred times the work."""
    pyramid = [jax.ShapeDtypeStruct((2, 800 // s, 1344 // s, 256), jnp.float32) for s in STRIDES.values()]
    rois = jax.ShapeDtypeStruct((2, 512, 4), jnp.float32)
    pool = functools.partial(roi_align, resolution=7, sampling_ratio=2)
    text = lower_for_cuda(jax.grad(lambda p, r: pool(p, r).sum()), pyramid, rois, kernels=())
    assert "stablehlo.gather" in text
    assert "scatter" not in text


def test_bfloat16_features_are_accumulated_in_float32():
    rng = np.random.default_rng(3)
    exact, rois = random_pyramid(rng), random_rois(rng)
    coarse = [level.astype(jnp.bfloat16) for level in exact]
    levels = roi_levels(rois, canonical_scale=40)
    pool = functools.partial(roi_align, rois=rois, resolution=7, sampling_ratio=2, levels=levels)
    values = pool(coarse)
    assert values.dtype == jnp.bfloat16
    upcast = pool([level.astype(jnp.float32) for level in coarse])
    np.testing.assert_array_equal(values, upcast.astype(jnp.bfloat16))
    gradient = jax.grad(lambda p: pool(p).astype(jnp.float32).sum())(coarse)
    assert all(g.dtype == jnp.bfloat16 and np.isfinite(np.asarray(g, np.float32)).all() for g in gradient)


@pytest.mark.parametrize("axis", [0, 1])
def test_where_samples_lie_does_not_depend_on_what_a_compiler_fuses(axis):
    """A fused product and sum would move samples by 1e-5 cells, and so the values of float32 maps by 1e-4."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1344, (2, 500, 2, 2)), 2).astype(np.float32)
    rois = jnp.asarray(corners.reshape(2, 500, 4))
    shapes = ((200, 336), (100, 168), (50, 84), (25, 42))
    frame = roi_frames(rois, roi_levels(rois), shapes, resolution=7, strides=tuple(STRIDES.values()))
    taps = functools.partial(kernel._along, axis, grid=kernel._Grid(shapes, 7, 2))
    for fused, by_itself in zip(jax.jit(taps)(frame), taps(frame), strict=True):
        np.testing.assert_array_equal(fused, by_itself)


def test_a_constant_map_gives_the_constant_and_a_slope_its_value():
    y, x = np.mgrid[0:32, 0:32].astype(np.float32)
    feature = jnp.asarray(np.stack([np.full((32, 32), 3.0), x, y], -1))[None]
    rois = np.array([[[16, 24, 72, 88]]], np.float32)
    value = roi_align([feature], rois, resolution=2, sampling_ratio=2, strides=(4,))[0, 0]
    np.testing.assert_allclose(value[..., 0], 3)
    np.testing.assert_allclose(value[..., 1], [[7.5, 14.5]] * 2, rtol=1e-6)
    np.testing.assert_allclose(value[..., 2], [[10, 10], [18, 18]], rtol=1e-6)


def test_devices_can_divide_the_images_by_shard_map():
    """The types are what it checks, so that tracing suffices; 128 channels are what the kernels take."""
    rng = np.random.default_rng(7)
    pyramid, rois = random_pyramid(rng, channels=128), random_rois(rng)

    def gradient(pyramid, rois):
        return jax.grad(lambda p: roi_align(p, rois, resolution=7, sampling_ratio=2).sum())(pyramid)

    assert jax.eval_shape(on_both_devices(gradient), pyramid, rois)[0].shape == pyramid[0].shape


def test_one_stride_for_each_map():
    with pytest.raises(ValueError, match="1 feature maps"):
        roi_align([jnp.zeros((1, 4, 4, 1))], jnp.zeros((1, 1, 4)), resolution=2, sampling_ratio=2)


@pytest.mark.parametrize(
    ("maps", "rois", "named"),
    [
        ([(1, 4, 4, 1)], (3, 4), "rois must be (B, R, 4) with B=1"),
        ([(1, 4, 4, 1)], (2, 3, 4), "rois must be (B, R, 4) with B=1"),
        ([(1, 4, 4, 1)], (1, 3, 5), "rois must be (B, R, 4) with B=1"),
        ([(1, 4, 4, 1), (1, 2, 2, 2)], (1, 3, 4), "one B and one C"),
        ([(4, 4, 1)], (1, 3, 4), "features must be (B, Hl, Wl, C)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_named(maps, rois, named):
    features = [jnp.zeros(shape) for shape in maps]
    with pytest.raises(ValueError, match=re.escape(named)):
        inspect.unwrap(kernel.roi_align)(
            features, jnp.zeros(rois), resolution=2, sampling_ratio=2, strides=(4, 8)[: len(maps)]
        )


@pytest.mark.parametrize("strides", [(32, 16, 8, 4), (4, 16), (3, 6)])
def test_levels_of_other_strides_are_refused(strides):
    with pytest.raises(ValueError, match=re.escape(f"twice the one before, not {strides}")):
        roi_levels(jnp.zeros((1, 1, 4)), strides=strides)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_lowers_for_cuda_at_the_detectors_sizes(dtype):
    pyramid = [jax.ShapeDtypeStruct((2, 800 // s, 1344 // s, 256), dtype) for s in STRIDES.values()]
    rois = jax.ShapeDtypeStruct((2, 512, 4), jnp.float32)
    pool = functools.partial(roi_align, resolution=7, sampling_ratio=2)
    assert lower_for_cuda(jax.grad(lambda p, r: pool(p, r).astype(jnp.float32).sum()), pyramid, rois)


def test_a_cpu_does_not_fuse_the_pooling_with_a_reshape_behind_it():
    shapes = [jax.ShapeDtypeStruct((1, 64 // stride, 64 // stride, 8), jnp.float32) for stride in STRIDES.values()]
    rois = jax.ShapeDtypeStruct((1, 6, 4), jnp.float32)

    def flat(features, rois):
        return roi_align(features, rois, resolution=7, sampling_ratio=2).reshape(6, -1)

    on_a_cpu = jax.jit(flat).trace(shapes, rois).lower(lowering_platforms=("cpu",))
    assert "conditional(" in on_a_cpu.compile().as_text()
