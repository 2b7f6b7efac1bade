"""Products and quotients compiled together with other operations, beside numpy's, which rounds each by itself."""

import jax
import numpy as np

from diou_jax.kernels.rounding import product, quotient

A, B, C = np.random.default_rng(0).uniform(1, 400, (3, 4096)).astype(np.float32)


def test_a_product_is_rounded_before_a_sum():
    np.testing.assert_array_equal(jax.jit(lambda a, b, c: product(a, b) + c)(A, B, C), A * B + C)


def test_a_constant_divides():
    np.testing.assert_array_equal(jax.jit(lambda a: quotient(a, 7))(A), A / np.float32(7))
    assert (np.float32(1 / 7) * A != A / np.float32(7)).any()


def test_what_is_no_number_stays_so():
    numbers = np.float32([np.nan, np.inf, -np.inf, 0])
    np.testing.assert_array_equal(quotient(numbers, 7), numbers)
