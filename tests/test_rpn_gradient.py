"""The RPN's gradient from the sampled anchors alone against that of the whole maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow

from diou_jax.models.patches import put_patches, take_cells, take_patches
from diou_jax.models.rpn import RPNHead

SHAPES = [(2, 7, 9, 4), (2, 4, 5, 4), (2, 2, 3, 4), (2, 1, 2, 4)]
CELLS = sum(height * width for _, height, width, _ in SHAPES)


@pytest.fixture
def maps():
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES, strict=True)]


def test_cells_stay_int32_where_jax_has_int64(maps):
    with jax.enable_x64(True):
        patches = jax.eval_shape(take_patches, maps, jax.ShapeDtypeStruct((2, 5), jnp.int32))
    assert patches.shape == (2, 5, 9, 4) and patches.dtype == jnp.float32


@pytest.mark.slow
def test_patches_are_what_a_convolution_sees(maps):
    """Of every cell of every level, corners and maps of one row included; beyond the last cell there is nothing."""
    cells = jnp.tile(jnp.arange(CELLS + 3), (2, 1))
    patches = take_patches(maps, cells)
    np.testing.assert_array_equal(patches[:, :, 4], take_cells(maps, cells))
    assert (np.asarray(patches[:, CELLS:]) == 0).all()
    first = 0
    for level in maps:
        height, width = level.shape[1:3]
        padded = np.pad(level, ((0, 0), (1, 1), (1, 1), (0, 0)))
        for y in range(height):
            for x in range(width):
                wanted = padded[:, y : y + 3, x : x + 3].reshape(2, 9, 4)
                np.testing.assert_array_equal(patches[:, first + y * width + x], wanted)
        first += height * width


@pytest.mark.slow
def test_putting_is_the_transpose_of_taking(maps):
    rng = np.random.default_rng(0)
    cells = jnp.asarray(np.stack([rng.permutation(CELLS + 5)[:40] for _ in range(2)]), jnp.int32)
    patches = jax.random.normal(jax.random.key(1), (2, 40, 9, 4))
    _, pull = jax.vjp(lambda maps: take_patches(maps, cells), maps)
    for ours, wanted in zip(put_patches(patches, cells, SHAPES), pull(patches)[0], strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


def gradients(head, variables, maps, sampled, weights):
    """With the gradient of the sampled alone, and of all, of a loss that looks at the sampled anchors."""

    def loss(params, maps, sampled):
        pyramid = {4 << level: one for level, one in enumerate(maps)}
        logits, deltas = head.apply({"params": params}, pyramid, sampled)
        outputs = jnp.concatenate([jnp.concatenate(logits, 1)[..., None], jnp.concatenate(deltas, 1)], -1)
        return (jnp.tanh(outputs) * weights).sum()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return gradient(variables["params"], maps, sampled), gradient(variables["params"], maps, None)


def looked_at(sampled):
    """Random weights (2, A, 5) of the outputs, zero but for the sampled anchors."""
    weights = np.zeros((2, 3 * CELLS + 1, 5), np.float32)
    rows = np.arange(2)[:, None]
    weights[rows, sampled] = np.random.default_rng(2).normal(size=(*sampled.shape, 5))
    return weights[:, :-1]


def random_head(maps, **options):
    """A head and its random variables."""
    head = RPNHead(features=6, **options)
    return head, head.init(jax.random.key(3), dict(enumerate(maps)))


@pytest.mark.parametrize(("share", "convs"), [slow(0.0, 1), (0.1, 1), slow(0.6, 1), (1.0, 1), (0.3, 2), slow(1.0, 3)])
@pytest.mark.slow
def test_the_gradient_is_the_whole_one(maps, share, convs):
    """Anchors side by side, three in a cell, at every edge; images with different numbers of them, or none."""
    head, variables = random_head(maps, num_convs=convs)
    # Wider than at the start, so that the ReLU is on for some and off for others.
    variables = jax.tree.map(lambda x: 30 * x + 0.1, variables)
    rng = np.random.default_rng(1)
    sampled = np.full((2, 3 * CELLS), 3 * CELLS, np.int32)
    for row in range(2):
        drawn = np.flatnonzero(rng.random(3 * CELLS) < share / (row + 1))
        sampled[row, : len(drawn)] = drawn
    (loss, ours), (wanted_loss, wanted) = gradients(head, variables, maps, sampled, looked_at(sampled))
    assert loss == wanted_loss
    assert share == 0 or max(float(abs(x).max()) for x in jax.tree.leaves(wanted)) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), ours, wanted)


@pytest.mark.slow
def test_in_bfloat16_it_is_as_near_as_the_whole_one(maps):
    exact, variables = random_head(maps)
    variables = jax.tree.map(lambda x: 30 * x + 0.1, variables)
    sampled = np.tile(np.arange(0, 3 * CELLS, 4, dtype=np.int32), (2, 1))
    weights = looked_at(sampled)
    _, (_, truth) = gradients(exact, variables, maps, sampled, weights)
    coarse = gradients(RPNHead(features=6, dtype=jnp.bfloat16), variables, maps, sampled, weights)

    def distance(found):
        off = jax.tree.map(lambda a, b: float(((a - b) ** 2).sum()), found, truth)
        return np.sqrt(sum(jax.tree.leaves(off)) / sum(float((x**2).sum()) for x in jax.tree.leaves(truth)))

    (_, ours), (_, whole) = coarse
    assert distance(ours) < max(1.5 * distance(whole), 0.02)
