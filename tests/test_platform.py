"""The switch between kernels and their XLA twins."""

import jax
import jax.numpy as jnp
import pytest
from lowering import lower_for_cuda

from diou_jax.kernels.nms import nms


def program():
    boxes, scores = jax.ShapeDtypeStruct((2, 100, 4), jnp.float32), jax.ShapeDtypeStruct((2, 100), jnp.float32)
    return lower_for_cuda(lambda boxes, scores: nms(boxes, scores, 0.5), boxes, scores)


@pytest.mark.parametrize(("value", "kernels"), [(None, True), ("auto", True), ("xla", False)])
def test_the_environment_may_ask_for_the_twins(monkeypatch, value, kernels):
    monkeypatch.delenv("DIOU_JAX_KERNELS", raising=False)
    if value:
        monkeypatch.setenv("DIOU_JAX_KERNELS", value)
    assert ("mosaic_gpu" in program()) == kernels


def test_what_it_does_not_know_is_named(monkeypatch):
    monkeypatch.setenv("DIOU_JAX_KERNELS", "triton")
    with pytest.raises(ValueError, match=r"DIOU_JAX_KERNELS is 'triton'; set it to 'xla' or 'auto'"):
        program()
