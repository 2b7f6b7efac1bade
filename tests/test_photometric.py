"""Changes of colour against Pillow's and exact cases."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from diou_jax.data.augmentation import Key
from diou_jax.data.photometric import PhotometricJitter, brighter, multiplied, saturated, turned
from diou_jax.data.taps import recolour
from diou_jax.data.view import recoloured

IMAGE = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)


def changed(matrix):
    return recolour(IMAGE, recoloured(IMAGE.shape[:2], matrix[:3])).astype(int)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.5])
@pytest.mark.parametrize(("ours", "theirs"), [(saturated, ImageEnhance.Color), (multiplied, ImageEnhance.Brightness)])
def test_factors_are_pillows(ours, theirs, factor):
    wanted = theirs(Image.fromarray(IMAGE[..., ::-1])).enhance(factor)
    np.testing.assert_allclose(changed(ours(factor)), np.asarray(wanted)[..., ::-1].astype(int), atol=1)


def test_a_number_is_added_and_values_stay_in_range():
    np.testing.assert_array_equal(changed(brighter(30)), np.clip(IMAGE.astype(int) + 30, 0, 255))
    np.testing.assert_array_equal(changed(brighter(-300)), 0)


def test_colours_turn_about_grey():
    np.testing.assert_allclose(changed(turned(120)), IMAGE[..., [2, 0, 1]], atol=1)  # blue takes red's value
    np.testing.assert_allclose(turned(50) @ turned(-50), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(turned(77) @ [9, 9, 9, 1], [9, 9, 9, 1])
    np.testing.assert_allclose(saturated(0.0) @ [10, 20, 30, 1], [0.114 * 10 + 0.587 * 20 + 0.299 * 30] * 3 + [1])


def test_each_change_takes_place_with_its_probability_and_within_its_range():
    views = [PhotometricJitter(0.3)(Key(bits), (4, 5)) for bits in range(3000)]
    untouched = np.mean([view.colour is None for view in views])
    assert abs(untouched - 0.7**4) < 0.03
    always = [PhotometricJitter(1.0, hue=0.0, saturation=(1.0, 1.0))(Key(bits), (4, 5)).colour for bits in range(500)]
    factors = np.array([colour[0, 0] for colour in always])
    added = np.array([colour[0, 3] for colour in always]) / factors
    assert factors.min() >= 0.5 and factors.max() <= 1.5 and abs(factors.mean() - 1) < 0.05
    assert np.abs(added).max() <= 32 and np.abs(added).max() > 30
    assert abs(np.corrcoef(factors, added)[0, 1]) < 0.15
    assert PhotometricJitter(0.0)(Key(1), (4, 5)).colour is None


def test_the_same_key_gives_the_same_colours():
    one, other = (PhotometricJitter(1.0)(Key(9), (4, 5)).colour for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert (PhotometricJitter(1.0)(Key(10), (4, 5)).colour != one).any()
