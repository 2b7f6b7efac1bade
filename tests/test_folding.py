"""A network with folded variables does what it did, and its program no longer prepares a kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from diou_jax.models.fpn import FPN
from diou_jax.models.heads import BoxHead
from diou_jax.models.network import Network
from diou_jax.models.resnet import ResNet
from diou_jax.models.rpn import RPNHead


def narrow(norm, fpn_norm, dtype):
    body = ResNet(blocks=(1, 1, 1, 1), width_per_group=8, stem_width=8, norm=norm, dtype=dtype)
    heads = RPNHead(features=16, dtype=dtype), BoxHead(num_classes=5, hidden=12, dtype=dtype)
    return Network(body, FPN(16, norm=fpn_norm, dtype=dtype), *heads, resolution=3)


def draw(network):
    """As after some training: no bias and no scale at its initial value."""
    random = np.random.default_rng(0)
    shapes = network.variable_shapes()
    return jax.tree.map(lambda like: random.normal(0.1, 0.3, like.shape).astype(np.float32), shapes)


def outputs(network):
    @jax.jit
    def run(variables, images, pooled):
        pyramid = network.apply(variables, images, method="pyramid")
        proposed = network.apply(variables, pyramid, method="propose")
        return pyramid, proposed, network.apply(variables, pooled, method="classify")

    return run


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("norm", "fpn_norm"), [("affine", "bias"), ("group", "group")])
def test_every_output_is_the_same(norm, fpn_norm, dtype):
    network = narrow(norm, fpn_norm, dtype)
    variables, run = draw(network), outputs(network)
    random = np.random.default_rng(1)
    images = random.normal(0, 1, (2, 64, 96, 3)).astype(np.float32)
    pooled = jnp.asarray(random.normal(0, 1, (2, 4, 3, 3, 16)), dtype)
    wanted, found = run(variables, images, pooled), run(network.folded(variables), images, pooled)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype and np.isfinite(np.float32(theirs)).all()
        scale = np.abs(np.float32(theirs)).max()
        np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=0, atol=1e-6 * scale)


def test_no_kernel_is_left_to_round_or_scale():
    network = narrow("affine", "group", jnp.bfloat16)
    folded = traverse_util.flatten_dict(network.folded(draw(network)), sep="/")
    for path, value in folded.items():
        assert value.dtype == (jnp.float32 if "/norm/" in path else jnp.bfloat16), path
    assert not any(path.startswith("affine/") and path.endswith("scale") for path in folded)

    def program(variables):
        lowered = outputs(network).lower(variables, jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 1, 3, 3, 16)))
        return lowered.as_text(dialect="hlo")

    kernel = "f32[8,1,1,8]"  # of the first block
    assert kernel in program(draw(network))
    assert kernel not in program(traverse_util.unflatten_dict(folded, sep="/"))
