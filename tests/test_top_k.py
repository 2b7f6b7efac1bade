"""`top_k` by rounds of short sorts against the whole one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lowering import lower_for_cuda

from diou_jax.kernels.top_k import by_rounds, top_k


def equal(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("count", [17, 64, 65, 129, 1000])
@pytest.mark.parametrize("k", [1, 5, 16])
def test_rounds_find_what_one_sort_finds(count, k):
    """Rows with many ties, in which the order is the index's."""
    x = jnp.asarray(np.random.default_rng(count).integers(0, 20, (3, 2, count)) / 7, jnp.float32)
    equal(by_rounds(x, k=k, length=32), jax.lax.top_k(x, k))


@settings(deadline=None)
@given(hnp.arrays(np.float32, (2, 70), elements=st.floats(width=32, allow_nan=False)))
def test_any_float_has_its_place(x):
    """Infinities and both zeros too."""
    equal(by_rounds(jnp.asarray(x), k=8, length=16), jax.lax.top_k(jnp.asarray(x), 8))


def test_a_nan_is_the_largest_as_for_jax():
    x = jnp.zeros((1, 40)).at[0, 23].set(jnp.nan)
    equal(by_rounds(x, k=3, length=16), jax.lax.top_k(x, 3))


def test_it_can_be_mapped():
    x = jax.random.normal(jax.random.key(0), (3, 100))
    equal(jax.vmap(functools.partial(by_rounds, k=4, length=20))(x), jax.lax.top_k(x, 4))


@pytest.mark.parametrize(("count", "k"), [(268569, 256), (201600, 2000), (80000, 100)])
def test_the_detectors_rows_are_cut_for_cuda(count, k):
    """No row that is sorted is longer than one kernel takes."""
    program = lower_for_cuda(functools.partial(top_k, k=k), jax.ShapeDtypeStruct((2, count), jnp.float32))
    sorts = [line for line in program.splitlines() if line.strip().startswith("}) : (tensor<2x")]
    assert sorts
    for line in sorts:
        assert int(line.split("tensor<")[1].split("x")[2]) <= 4096


@pytest.mark.gpu
def test_on_a_gpu_it_is_jaxs_own(hopper):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 5000, (16, 201600)) / 5000, jnp.float32)
    equal(jax.jit(functools.partial(top_k, k=2000))(x), jax.lax.top_k(x, 2000))
