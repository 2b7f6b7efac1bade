"""The selection of kernels or their XLA references."""

import os

import jax
import jax.numpy as jnp
import pytest
from lowering import lower_for_cuda

from diou_jax.kernels import selection
from diou_jax.kernels.nms import nms


def program():
    boxes, scores = jax.ShapeDtypeStruct((2, 100, 4), jnp.float32), jax.ShapeDtypeStruct((2, 100), jnp.float32)
    return lower_for_cuda(lambda boxes, scores: nms(boxes, scores, 0.5), boxes, scores, kernels=None)


@pytest.fixture(autouse=True)
def nothing_accepted():
    selection.accept(())
    yield
    selection.accept(())


@pytest.mark.parametrize(("value", "kernels"), [(None, False), ("auto", False), ("pallas", True), ("xla", False)])
def test_the_environment_decides_where_nothing_has_been_tried(monkeypatch, value, kernels):
    monkeypatch.delenv("DIOU_JAX_KERNELS", raising=False)
    if value:
        monkeypatch.setenv("DIOU_JAX_KERNELS", value)
    assert ("mosaic_gpu" in program()) == kernels


@pytest.mark.parametrize(("accepted", "kernels"), [((), False), (("match",), False), (("nms", "match"), True)])
def test_auto_takes_what_has_earned_its_place(monkeypatch, accepted, kernels):
    monkeypatch.setenv("DIOU_JAX_KERNELS", "auto")
    selection.accept(accepted)
    assert ("mosaic_gpu" in program()) == kernels


@pytest.mark.parametrize("value", [None, "xla"])
def test_a_trial_sets_the_switch_and_puts_it_back(monkeypatch, value):
    monkeypatch.delenv("DIOU_JAX_KERNELS", raising=False)
    if value:
        monkeypatch.setenv("DIOU_JAX_KERNELS", value)
    with selection.only(("nms",)):
        assert "mosaic_gpu" in program()
    assert os.environ.get("DIOU_JAX_KERNELS") == value
    assert selection.accepted() == frozenset()


def test_what_it_does_not_know_is_named(monkeypatch):
    monkeypatch.setenv("DIOU_JAX_KERNELS", "triton")
    with pytest.raises(ValueError, match=r"DIOU_JAX_KERNELS is 'triton'; set it to 'auto', 'pallas' or 'xla'"):
        program()
    with pytest.raises(ValueError, match="unknown kernels"):
        selection.accept(("triton",))
