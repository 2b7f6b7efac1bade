"""3x3 convolutions of a CPU, with and without a stride, against XLA's, and the program of a GPU, which keeps XLA's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.models import conv, winograd

general = functools.partial(conv._general, stride=1, groups=1)


def draw(shape, features):
    random = np.random.default_rng(0)
    x = random.normal(size=shape)
    kernel = random.normal(size=(features, 3, 3, shape[-1])) / np.sqrt(9 * shape[-1])
    gradient = random.normal(size=(*shape[:3], features))
    return [jnp.asarray(array, jnp.float32) for array in (x, kernel, gradient)]


def assert_equal_to_rounding(found, right):
    np.testing.assert_allclose(found, right, rtol=0, atol=2e-5 * np.abs(right).max())


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 5, 8, 8), (1, 6, 7, 16), (2, 8, 10, 8)])
def test_it_is_the_convolution_with_its_gradients(shape):
    x, kernel, gradient = draw(shape, 12)
    right, pull = jax.vjp(general, x, kernel)
    assert_equal_to_rounding(winograd.convolve(x, kernel), right)
    of_input, of_kernel = pull(gradient)
    assert_equal_to_rounding(winograd.input_gradient(gradient, kernel), of_input)
    assert_equal_to_rounding(winograd.kernel_gradient(x, gradient), of_kernel)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 5, 8, 8), (1, 6, 7, 16), (2, 8, 9, 8)])
def test_with_a_stride_nine_products_are_the_gradient_of_the_kernel(shape, stride):
    x, kernel, _ = draw(shape, 12)
    result, pull = jax.vjp(lambda kernel: conv._general(x, kernel, stride=stride, groups=1), kernel)
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=result.shape), jnp.float32)
    assert_equal_to_rounding(conv._gradient_by_products(x, gradient, stride=stride), *pull(gradient))


@pytest.mark.parametrize(("side", "channels", "stride"), [(32, 128, 1), (64, 256, 1), (31, 128, 2)])
def test_large_maps_take_it_on_a_cpu(side, channels, stride):
    x, kernel, gradient = draw((1, side, side, channels), channels)
    gradient = gradient[:, ::stride, ::stride]
    convolve, general = (functools.partial(f, stride=stride, groups=1) for f in (conv.convolve, conv._general))
    found, pull = jax.vjp(jax.jit(convolve), x, kernel)
    right, right_pull = jax.vjp(general, x, kernel)
    for one, other in zip((found, *pull(gradient)), (right, *right_pull(gradient)), strict=True):
        assert_equal_to_rounding(one, other)
    assert "stablehlo.convolution" not in of_kernel_gradient(convolve, x, kernel, gradient, "cpu")


@pytest.mark.parametrize("stride", [1, 2])
def test_the_program_of_a_gpu_is_what_it_was(stride):
    x, kernel, gradient = draw((1, 64, 64, 256), 256)
    gradient = gradient[:, ::stride, ::stride]
    convolve, general = (functools.partial(f, stride=stride, groups=1) for f in (conv.convolve, conv._general))
    for program in (of_kernel_gradient, of_both):
        text = program(convolve, x, kernel, gradient, "cuda")
        assert "dot_general" not in text
        assert text.count("stablehlo.convolution") == program(general, x, kernel, gradient, "cuda").count(
            "stablehlo.convolution"
        )


def of_kernel_gradient(convolve, x, kernel, gradient, platform):
    """The program of the kernel's gradient."""
    pull = lambda kernel: jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](gradient)  # noqa: E731
    return jax.jit(pull).trace(kernel).lower(lowering_platforms=(platform,)).as_text()


def of_both(convolve, x, kernel, gradient, platform):
    """The program of result and gradients."""

    def both(x, kernel):
        result, pull = jax.vjp(convolve, x, kernel)
        return result, pull(gradient)

    return jax.jit(both).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
