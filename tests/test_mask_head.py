"""The heads' convolutions and the mask head; test_proof_masks.py has the original's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow

from diou_jax.models.box_head import BoxHead
from diou_jax.models.mask_head import MaskHead, Upsample
from diou_jax.models.norms import UseBatchNorm, UseBias, UseGroupNorm

K, M, C = 5, 4, 16
# Compiles in a fraction of the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LABELS = jnp.array([[0, 4, 2], [1, 1, 3]])


def head(*, norm=None, dtype=jnp.float32):
    return MaskHead(K, num_convs=2, features=8, norm=norm or UseGroupNorm(4), dtype=dtype)


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_variables(module, pooled):
    """With biases and scales unlike their initial values."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), pooled)
    return jax.tree_util.tree_map_with_path(
        lambda path, like: draw(like.shape) * 0.2 + (path[-1].key in ("scale", "var")), shapes
    )


@pytest.fixture(scope="module")
def pooled():
    return draw((2, 3, M, M, C), 1)


def chosen(logits):
    """The masks (B, R, 2 M, 2 M) of `LABELS` among all (B, R, K, 2 M, 2 M)."""
    return jnp.take_along_axis(logits, LABELS[..., None, None, None], 2)[:, :, 0]


@pytest.mark.parametrize(
    ("norm", "dtype", "accuracy"),
    [
        (UseBias(), jnp.float32, 1e-5),
        (UseGroupNorm(4), jnp.bfloat16, 0.02),
        slow(UseGroupNorm(4), jnp.float32, 1e-5),
        slow(UseBias(), jnp.bfloat16, 0.02),
    ],
)
def test_the_wanted_masks_alone_have_the_values_and_gradients_of_all(pooled, norm, dtype, accuracy):
    module = head(norm=norm, dtype=dtype)
    variables = random_variables(module, pooled)
    wanted = draw((2, 3, 2 * M, 2 * M), 2)

    def value(variables, pooled, alone):
        logits = module.apply(variables, pooled, LABELS) if alone else chosen(module.apply(variables, pooled))
        return jnp.mean((logits - wanted) ** 2), logits

    results = [
        quick(functools.partial(jax.value_and_grad(value, (0, 1), has_aux=True), alone=alone))(variables, pooled)
        for alone in (True, False)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        assert ours.dtype == jnp.float32
        assert np.abs(ours - theirs).max() <= accuracy * np.abs(theirs).max()


def test_the_masks_of_a_class_teach_that_class_alone(pooled):
    module = head()
    variables = random_variables(module, pooled)
    gradient = quick(jax.grad(lambda variables: module.apply(variables, pooled, LABELS).sum()))(variables)
    counts = np.bincount(LABELS.ravel(), minlength=K)
    np.testing.assert_allclose(gradient["params"]["logits"]["bias"], counts * (2 * M) ** 2, rtol=1e-6)


def test_upsampling_is_a_transposed_convolution(pooled):
    """Each cell of the input gives a block of two by two."""
    x = np.asarray(pooled[0])
    module = Upsample(6)
    variables = random_variables(module, pooled[0])
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    wanted = np.zeros((3, 2 * M, 2 * M, 6))
    for row, column in np.ndindex(2, 2):
        wanted[:, row::2, column::2] = np.einsum("nhwc,fc->nhwf", x, kernel[:, row, column])
    np.testing.assert_allclose(module.apply(variables, pooled[0]), np.maximum(wanted + bias, 0), atol=1e-5)


def test_initial_weights_are_spread_as_the_originals():
    """Caffe2's MSRAFill divides the number of values by the second axis of the original's layout."""
    features = jnp.zeros((1, 1, M, M, 32))
    box = quick(BoxHead(5, hidden=8, num_convs=2, conv_features=128).init)(jax.random.key(0), features)["params"]
    mask = quick(MaskHead(81, num_convs=1, features=128).init)(jax.random.key(0), features)["params"]
    fans = [(box["conv1"], 9 * 128), (box["conv2"], 9 * 128), (mask["conv1"], 9 * 128)]
    fans += [(mask["upsample"], 4 * 128), (mask["logits"], 81)]
    for layer, fan in fans:
        assert layer["kernel"].std() == pytest.approx((2 / fan) ** 0.5, rel=0.03)
        assert np.abs(layer["kernel"]).max() > 2.5 * layer["kernel"].std()  # a uniform distribution ends at 1.7
        assert not layer["bias"].any()


@pytest.mark.parametrize(("norm", "norms"), [(UseBias(), 0), (UseGroupNorm(4), 2), (UseBatchNorm(), 2)])
def test_a_box_head_of_convolutions(pooled, norm, norms):
    module = BoxHead(K, hidden=12, num_convs=2, conv_features=8, norm=norm)
    variables = random_variables(module, pooled)
    logits, deltas = quick(module.apply)(variables, pooled)
    assert logits.shape == (2, 3, K) and deltas.shape == (2, 3, K, 4)
    params = variables["params"]
    assert params.keys() == {"conv1", "conv2", "fc", "logits", "deltas"}
    assert sum("norm" in params[name] for name in ("conv1", "conv2")) == norms
    # Each RoI by itself: neither convolution nor norm mixes them.
    alone = quick(module.apply)(variables, pooled[1:, 2:])
    np.testing.assert_allclose(alone[0][0, 0], logits[1, 2], atol=1e-5)
