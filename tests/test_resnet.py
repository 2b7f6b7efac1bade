"""The body: its sizes, and its options against their meaning."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from flax import traverse_util

from diou_jax.models.conv import Conv, convolve
from diou_jax.models.norms import GroupNorm, UseAffine, UseBias, UseGroupNorm
from diou_jax.models.resnet import Bottleneck, ResNet, frozen_stage, max_pool

NARROW = {"blocks": (1, 1, 1, 1), "width_per_group": 4, "stem_width": 8}

# Compiles in a fraction of the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes_of(body):
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    variables = jax.eval_shape(body.init, jax.random.key(0), image)
    maps = jax.eval_shape(body.apply, variables, image)
    return variables, {stride: x.shape[1:] for stride, x in maps.items()}


@pytest.mark.parametrize(
    ("body", "convolutions", "channels"),
    [
        # Published sizes of torchvision's models, less the classifier and batch norm.
        (ResNet(), 23_454_912, 256),
        (ResNet(blocks=(3, 4, 23, 3)), 42_394_816, 256),
        (ResNet(blocks=(3, 4, 23, 3), num_groups=32, width_per_group=8, stride_1x1=False), 86_539_456, 256),
        (ResNet(**NARROW), None, 16),
    ],
)
def test_size_and_strides(body, convolutions, channels):
    variables, maps = shapes_of(body)
    assert maps == {s: (64 // s, 96 // s, channels * s // 4) for s in body.strides}
    assert body.strides == (4, 8, 16, 32)
    kernels = jax.tree.leaves(variables["params"])
    assert convolutions in (None, sum(kernel.size for kernel in kernels))
    # One frozen scale and one bias per output channel of each convolution, and nothing else.
    assert sum(x.size for x in jax.tree.leaves(variables["affine"])) == 2 * sum(len(k) for k in kernels)


def test_cardinality_groups_the_3x3_convolutions_only():
    variables, _ = shapes_of(ResNet(blocks=(1, 1, 1, 1), num_groups=32, width_per_group=8))
    block = variables["params"]["res3_0"]
    assert block["conv1"]["kernel"].shape == (512, 1, 1, 256)
    assert block["conv2"]["kernel"].shape == (512, 3, 3, 16)
    assert block["conv3"]["kernel"].shape == (512, 1, 1, 512)


def test_grouped_convolution_is_one_convolution_per_group():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
    kernel = jax.random.normal(jax.random.key(1), (12, 3, 3, 2))
    whole = quick(functools.partial(convolve, stride=1, groups=4))(x, kernel)
    single = quick(functools.partial(convolve, stride=1, groups=1))
    parts = [single(x[..., 2 * g : 2 * g + 2], kernel[3 * g : 3 * g + 3]) for g in range(4)]
    np.testing.assert_allclose(whole, np.concatenate(parts, -1), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(8, 6), (7, 9)])
def test_1x1_convolution_as_a_product_equals_xlas_convolution(stride, shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 5))
    kernel = jax.random.normal(jax.random.key(1), (4, 1, 1, 5))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "OHWI", "NHWC")
    )
    np.testing.assert_allclose(convolve(x, kernel, stride=stride, groups=1), expected, atol=1e-5)


@pytest.mark.parametrize("stride_1x1", [True, False])
def test_stride_sits_where_the_option_says(stride_1x1):
    def conv(*args, **kwargs):
        return Conv(*args, norm_type=UseBias(), **kwargs)

    block = Bottleneck(4, 8, 2, 1, stride_1x1, True, conv)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 8))
    changed = x.at[:, 1::2].add(1.0)

    def outputs(key):
        variables = block.init(key, x, None, 4)
        return block.apply(variables, x, None, 4), block.apply(variables, changed, None, 4)

    same = np.array_equal(*quick(outputs)(jax.random.key(1)))
    # Strided 1x1 convolutions never look at odd rows; a strided 3x3 does.
    assert same == stride_1x1


def test_max_pool_equals_the_windowed_maximum_and_its_gradient():
    x = nn.relu(jax.random.normal(jax.random.key(0), (2, 8, 12, 3)))
    weight = jax.random.normal(jax.random.key(1), (2, 4, 6, 3))

    def windowed(x):
        return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])

    np.testing.assert_array_equal(max_pool(x), windowed(x))

    def gradient(pool):
        return jax.grad(lambda x: (pool(nn.relu(x)) * weight).sum())(x)

    np.testing.assert_allclose(quick(gradient, static_argnums=0)(max_pool), gradient(windowed), atol=1e-6)


def test_frozen_affine_is_a_scale_and_a_bias_after_the_convolution():
    x = jax.random.normal(jax.random.key(0), (1, 5, 5, 3))
    conv = Conv(4, 3, norm_type=UseAffine())
    variables = conv.init(jax.random.key(1), x)
    assert list(variables["params"]) == ["kernel"]
    scale, bias = variables["affine"]["scale"], variables["affine"]["bias"] + jnp.arange(4.0)
    plain = Conv(4, 3).apply({"params": {"kernel": variables["params"]["kernel"], "bias": jnp.zeros(4)}}, x)
    folded = conv.apply({"params": variables["params"], "affine": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(folded, plain * scale + bias, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "channels", "groups"),
    [
        ({"num_groups": 32}, 256, 32),
        ({"num_groups": 32}, 64, 32),
        ({"num_groups": 32}, 24, 12),  # never a group of one channel
        ({"num_groups": 8}, 20, 5),  # the largest divisor below
        ({"num_groups": 2}, 7, 1),
        ({"dim_per_group": 16}, 64, 4),
        ({}, 1, 1),
    ],
)
def test_group_norm_normalises_each_group_inside_the_padded_size(options, channels, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (2, 6, 8, channels)).astype(np.float32)
    padded_size = np.array([[6 * 4, 8 * 4], [4 * 4 - 1, 5 * 4]])  # a cell of which only a part exists counts
    norm = GroupNorm(UseGroupNorm(**options))
    scale, bias = rng.normal(size=(2, channels)).astype(np.float32)
    y = norm.apply({"params": {"scale": scale, "bias": bias}}, x, padded_size, 4)
    for image, (height, width) in enumerate([(6, 8), (4, 5)]):
        part = x[image, :height, :width].reshape(height * width, groups, -1).astype(np.float64)
        mean, variance = part.mean((0, 2), keepdims=True), part.var((0, 2), keepdims=True)
        expected = ((part - mean) / np.sqrt(variance + 1e-5)).reshape(height, width, channels) * scale + bias
        np.testing.assert_allclose(y[image, :height, :width], expected, atol=2e-5)


def test_group_norm_of_nothing_is_finite():
    x = jnp.ones((2, 4, 4, 8))
    norm = GroupNorm()
    variables = norm.init(jax.random.key(0), x)
    padded_size = jnp.array([[4, 4], [0, 0]])
    value, gradient = quick(jax.value_and_grad(lambda x: norm.apply(variables, x, padded_size, 1).sum()))(x)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


@pytest.mark.parametrize("freeze_at", [slow(0), 2])
def test_frozen_stages_get_no_gradient_and_the_others_do(freeze_at):
    body = ResNet(**NARROW, freeze_at=freeze_at)

    def gradient(key):
        x = jax.random.normal(key, (1, 32, 32, 3))
        variables = body.init(key, x)
        return jax.grad(lambda p: sum((y**2).sum() for y in body.apply(variables | {"params": p}, x).values()))(
            variables["params"]
        )

    gradients = quick(gradient)(jax.random.key(0))
    for path, value in traverse_util.flatten_dict(gradients, sep="/").items():
        stage = int(match[1]) if (match := re.match(r"res(\d)", path)) else 1
        assert frozen_stage(f"backbone/{path}", freeze_at) == (stage <= freeze_at)
        assert jnp.any(value != 0) == (stage > freeze_at), path


def test_nothing_outside_the_body_is_ever_frozen():
    for path in ("neck/inner2/kernel", "rpn/conv/bias", "box_head/fc1/kernel"):
        assert not frozen_stage(path, 5)
