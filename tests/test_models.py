"""The network. Golden file: init_stats; test_proof_detection.py has the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from flax import traverse_util

from diou_jax.models.box_head import BoxHead
from diou_jax.models.fpn import FPN, upsample
from diou_jax.models.mask_head import MaskHead
from diou_jax.models.masking import mask_outside
from diou_jax.models.network import HeadModule, Network
from diou_jax.models.norms import UseAffine, UseBatchNorm, UseBias, UseGroupNorm
from diou_jax.models.resnet import ResNet
from diou_jax.models.rpn import RPNHead
from diou_jax.weights.original import original_tensors

R50 = Network(ResNet(), FPN(), RPNHead(), (HeadModule("box_head", BoxHead(num_classes=81), 7),))
STRIDES = (4, 8, 16, 32, 64)

# Compiles in a fraction of the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


AFFINE, BIAS, GROUP, BATCH = UseAffine(), UseBias(), UseGroupNorm(), UseBatchNorm()


def narrow(*, norm=AFFINE, fpn_norm=BIAS, stride_1x1=True, dtype=jnp.float32, rpn_convs=1):
    return Network(
        ResNet(
            blocks=(1, 1, 2, 1),
            width_per_group=4,
            stem_width=8,
            norm=norm,
            stride_1x1=stride_1x1,
            freeze_at=0,
            dtype=dtype,
        ),
        FPN(16, norm=fpn_norm, dtype=dtype),
        RPNHead(features=16, num_convs=rpn_convs, dtype=dtype),
        (
            HeadModule("box_head", BoxHead(num_classes=5, hidden=12, dtype=dtype), 3),
            HeadModule("mask_head", MaskHead(5, num_convs=1, features=8, norm=fpn_norm, dtype=dtype), 3),
        ),
    )


def random_variables(network):
    """As after some training: no bias and no scale at its initial value."""
    rng = np.random.default_rng(1)

    def draw(path, like):
        if path[-1].key == "kernel":
            fan_in = np.prod(like.shape[1:]) if len(like.shape) == 4 else like.shape[0]
            return rng.normal(0, (2 / fan_in) ** 0.5, like.shape).astype(np.float32)
        return rng.normal(path[-1].key in ("scale", "var"), 0.2, like.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, network.variable_shapes())


def assert_close(ours, theirs, *, relative):
    """To `relative` of the largest value of the map."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= relative * np.abs(theirs).max()


@pytest.mark.slow
def test_initial_weights_are_distributed_as_the_originals(golden_path):
    rows = [line.split("\t") for line in golden_path("init_stats.txt").read_text().splitlines() if line[0] != "#"]
    statistics = {name: [float(x) for x in numbers] for name, _, *numbers in rows}
    # One block a stage has every kind of tensor.
    heads = (HeadModule("box_head", BoxHead(num_classes=81), 7),)
    network = Network(ResNet(blocks=(1, 1, 1, 1)), FPN(), RPNHead(), heads)
    variables = network.init_variables(jax.random.key(0))
    tensors = original_tensors(variables)
    for path, value in traverse_util.flatten_dict(variables, sep="/").items():
        mean, std, low, high = statistics[tensors[path].name]
        value = np.asarray(value)
        assert value.dtype == np.float32
        error = 8 * std / value.size**0.5  # several standard deviations of either estimate
        assert abs(value.mean() - mean) <= error, path
        assert abs(value.std() - std) <= error, path
        # Uniform about zero ends at 1.7 standard deviations; uniform in (0, 1) and Gaussian do not.
        assert (np.abs(value).max() <= 1.8 * std) == (max(-low, high) <= 1.8 * std), path
        assert path.startswith("params/") or (value.min() >= 0 and value.max() <= 1)


def test_a_body_that_starts_from_nothing_keeps_the_scale_of_its_activations():
    body = ResNet(blocks=(1,), norm=GROUP)
    params = quick(body.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    for kernel in (params["conv1"]["kernel"], params["res2_0"]["conv2"]["kernel"]):
        assert kernel.std() == pytest.approx((2 / np.prod(kernel.shape[1:])) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("norm", "fpn_norm", "stride_1x1", "rpn_convs"),
    [
        (AFFINE, BIAS, True, 1),
        slow(AFFINE, BIAS, False, 2),
        slow(GROUP, BIAS, True, 1),
        slow(GROUP, GROUP, False, 1),
        slow(BATCH, BATCH, False, 2),
    ],
)
def test_padding_is_invisible(norm, fpn_norm, stride_1x1, rpn_convs):
    network = narrow(norm=norm, fpn_norm=fpn_norm, stride_1x1=stride_1x1, rpn_convs=rpn_convs)
    variables = random_variables(network)

    @quick
    def forward(images, padded_size):
        pyramid = network.apply(variables, images, padded_size, method="pyramid")
        return list(pyramid.values()), *network.apply(variables, pyramid, None, padded_size, method="propose")

    # Two images in two buckets, with different rubbish around them. The first one fills the smaller bucket; the second
    # one's sides are no multiples of anything.
    padded_size = np.array([[96, 128], [61, 90]])
    rng = np.random.default_rng(0)
    large, small = (rng.normal(0, 50, (2, *bucket, 3)).astype(np.float32) for bucket in ((160, 192), (96, 128)))
    for image, (height, width) in enumerate(padded_size):
        small[image, :height, :width] = large[image, :height, :width]
    padded, fitting, unmasked = forward(large, padded_size), forward(small, padded_size), forward(small[:1], None)

    for image, (height, width) in enumerate(padded_size):
        for level, stride in enumerate(STRIDES):
            inside = np.s_[: -(-height // stride), : -(-width // stride)]
            cells = [x[level].shape[1:3] for x in (padded[0], fitting[0])]
            for output in range(3):
                ours, theirs = (
                    np.array(x[output][level][image]).reshape(*shape, -1)
                    for x, shape in zip((padded, fitting), cells, strict=True)
                )
                assert_close(ours[inside], theirs[inside], relative=1e-5)
                if image == 0:
                    assert_close(ours[inside], np.reshape(unmasked[output][level][0], theirs.shape), relative=1e-5)
                if output == 0:
                    ours[inside] = 0
                    assert not ours.any()


def test_masks_cost_nothing_where_everything_exists():
    network = narrow(norm=GROUP)
    shapes = network.variable_shapes()
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    padded_size = jax.ShapeDtypeStruct((1, 2), jnp.int32)

    def trace(*args):
        return str(jax.make_jaxpr(lambda v, *args: network.apply(v, *args, method="pyramid"))(shapes, *args))

    assert "select_n" not in trace(image)
    assert "select_n" in trace(image, padded_size)


def test_mask_keeps_cells_of_which_a_part_exists():
    x = jnp.ones((2, 4, 4, 1))
    masked = mask_outside(x, jnp.array([[33, 128], [0, 64]]), 32)[..., 0]
    np.testing.assert_array_equal(masked.sum((1, 2)), [8, 0])
    np.testing.assert_array_equal(masked[0, :2], 1)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 160)])
def test_pyramid_of_any_multiple_of_32(height, width):
    network = narrow()
    image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)

    def forward(variables, image):
        pyramid = network.apply(variables, image, method="pyramid")
        return list(pyramid.values()), *network.apply(variables, pyramid, method="propose")

    pyramid, logits, deltas = jax.eval_shape(forward, network.variable_shapes(), image)
    cells = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    assert [x.shape for x in pyramid] == [(2, h, w, 16) for h, w in cells]
    assert [x.shape for x in logits] == [(2, 3 * h * w) for h, w in cells]
    assert [x.shape for x in deltas] == [(2, 3 * h * w, 4) for h, w in cells]


def test_upsampling_repeats_cells():
    x = np.arange(24.0).reshape(2, 2, 3, 2)
    np.testing.assert_array_equal(upsample(jnp.asarray(x)), x.repeat(2, 1).repeat(2, 2))


def test_bfloat16_computes_what_float32_computes():
    networks = [narrow(dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    variables = random_variables(networks[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    image = jnp.asarray(np.random.default_rng(0).normal(0, 50, (1, 64, 64, 3)), jnp.float32)

    def forward(network):
        pyramid = network.apply(variables, image, method="pyramid")
        heads = (
            network.apply(variables, pyramid, method="propose"),
            network.apply(variables, pyramid[16][:, None, :3, :3], "box_head", method="head"),
        )
        return pyramid, heads

    (exact, exact_heads), (rounded, rounded_heads) = (quick(functools.partial(forward, n))() for n in networks)
    assert {x.dtype for x in rounded.values()} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(rounded_heads)} == {jnp.dtype("float32")}
    for a, b in zip(jax.tree.leaves((exact, exact_heads)), jax.tree.leaves((rounded, rounded_heads)), strict=True):
        assert_close(np.asarray(b, np.float32), a, relative=0.08)


@pytest.mark.parametrize(("class_agnostic", "boxes"), [(False, 5), (True, 1)])
def test_box_head_gives_every_class_a_box_or_one_to_all(class_agnostic, boxes):
    head = BoxHead(num_classes=5, hidden=8, class_agnostic=class_agnostic)
    pooled = jnp.ones((2, 3, 7, 7, 4))
    (logits, deltas), _ = jax.eval_shape(head.init_with_output, jax.random.key(0), pooled)
    assert logits.shape == (2, 3, 5)
    assert deltas.shape == (2, 3, boxes, 4)


def outputs(network):
    @quick
    def run(variables, images, pooled):
        pyramid = network.apply(variables, images, method="pyramid")
        proposed = network.apply(variables, pyramid, method="propose")
        boxes = network.apply(variables, pooled, "box_head", method="head")
        labels = jnp.zeros(pooled.shape[:2], jnp.int32) + 2
        masks = [network.apply(variables, pooled, "mask_head", *more, method="head") for more in ((), (labels,))]
        return pyramid, proposed, boxes, masks

    return run


@pytest.mark.parametrize("dtype", [jnp.float32, slow(jnp.bfloat16)])
@pytest.mark.parametrize(("norm", "fpn_norm"), [slow(AFFINE, BIAS), (GROUP, GROUP)])
def test_folded_variables_change_no_output(norm, fpn_norm, dtype):
    network = narrow(norm=norm, fpn_norm=fpn_norm, dtype=dtype)
    variables, run = random_variables(network), outputs(network)
    random = np.random.default_rng(1)
    images = random.normal(0, 1, (2, 64, 96, 3)).astype(np.float32)
    pooled = jnp.asarray(random.normal(0, 1, (2, 4, 3, 3, 16)), dtype)
    wanted, found = run(variables, images, pooled), run(network.folded(variables), images, pooled)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype
        assert_close(ours.astype(jnp.float32), theirs.astype(jnp.float32), relative=1e-6)


@pytest.mark.slow
def test_folded_batch_norm_changes_the_rounding_alone():
    """In float32 little; in bfloat16, where a layer rounds its result before the norm, no further from float32."""
    found = {}
    random = np.random.default_rng(1)
    images = random.normal(0, 1, (2, 64, 96, 3)).astype(np.float32)
    pooled = random.normal(0, 1, (2, 4, 3, 3, 16)).astype(np.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        network = narrow(norm=BATCH, fpn_norm=BATCH, dtype=dtype)
        variables, run = random_variables(network), outputs(network)
        for folded in (False, True):
            values = run(network.folded(variables) if folded else variables, images, jnp.asarray(pooled, dtype))
            found[dtype, folded] = [np.asarray(x, np.float32) for x in jax.tree.leaves(values)]
    exact = found[jnp.float32, False]
    for number, truth in enumerate(exact):
        assert_close(found[jnp.float32, True][number], truth, relative=1e-5)
    off = [sum(np.abs(a - b).mean() / b.std() for a, b in zip(found[jnp.bfloat16, f], exact)) for f in (False, True)]
    assert 0 < off[1] < 1.2 * off[0]


def test_folded_no_kernel_is_left_to_round_or_scale():
    network = narrow(fpn_norm=GROUP, dtype=jnp.bfloat16)
    variables = random_variables(network)
    folded = network.folded(variables)
    for path, value in traverse_util.flatten_dict(folded, sep="/").items():
        assert value.dtype == (jnp.float32 if "/norm/" in path else jnp.bfloat16), path
        assert not (path.startswith("affine/") and path.endswith("scale"))

    def program(variables):
        lowered = outputs(network).lower(variables, jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 1, 3, 3, 16)))
        return lowered.as_text(dialect="hlo")

    kernel = "f32[4,1,1,8]"  # of the first block
    assert kernel in program(variables)
    assert kernel not in program(folded)
