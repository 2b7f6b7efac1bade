import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import resized

from diou_jax.data.taps import recolour, resample, taps
from diou_jax.data.view import View, cropped, image_scale, mirrored, recoloured, resized_size, scaled, whole

SIDES = st.integers(1, 700)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def resize(image, view, bucket=None):
    """The device's work on the taps, in float64, cut to the view."""
    rows, columns = taps(view, bucket or view.size)
    image = image.astype(np.float64)
    weight = columns.weight.astype(np.float64)[None, :, None]
    image = image[:, columns.index[0]] * (1 - weight) + image[:, columns.index[1]] * weight
    weight = rows.weight.astype(np.float64)[:, None, None]
    image = image[rows.index[0]] * (1 - weight) + image[rows.index[1]] * weight
    return image[: view.size[0], : view.size[1]]


@settings(deadline=None, max_examples=40)
@given(SIDES, SIDES, st.integers(16, 400), st.integers(16, 600), st.booleans())
def test_taps_equal_opencvs_resize(height, width, target, max_size, flip):
    """To 0.02 of 255 grey levels: for some sizes OpenCV itself rounds positions to float32, for most it does not."""
    scale = image_scale(height, width, target=target, max_size=max_size)
    if min(height * scale, width * scale) <= 0.5:
        return  # OpenCV refuses
    size = resized_size(height, width, scale)
    image = picture(height, width)
    view = resized(image, target=target, max_size=max_size, flip=flip)
    mirrored = np.ascontiguousarray(image[:, ::-1] if flip else image)
    expected = cv2.resize(mirrored.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    assert expected.shape[:2] == size == view.size
    np.testing.assert_allclose(resize(image, view, (size[0] + 3, size[1] + 5)), expected, rtol=0, atol=0.02)


@settings(deadline=None, max_examples=40)
@given(SIDES, SIDES, st.integers(1, 400), st.integers(1, 600), st.booleans())
def test_taps_stay_on_the_image(height, width, target, max_size, flip):
    view = resized(np.empty((height, width)), target=target, max_size=max_size, flip=flip)
    for axis, source, length in zip(taps(view, (700, 700)), (height, width), view.size):
        assert axis.index.min() >= 0
        assert axis.index.max() < source
        assert ((axis.weight >= 0) & (axis.weight <= 1)).all()
        assert not axis.weight[length:].any()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(20, 200),
    st.integers(20, 200),
    st.floats(0.3, 2),
    st.floats(0, 0.7),
    st.floats(0, 0.7),
    st.booleans(),
    st.booleans(),
)
def test_a_crop_of_a_resized_image_is_the_crop_of_its_pixels(height, width, scale, top, left, flip, first):
    """Whether the image is mirrored before it is resized or after; whole pixels, so that slicing is the crop."""
    image = picture(height, width)
    resized = scaled((height, width), scale)
    mirror = mirrored((height, width)).then(resized) if first else resized.then(mirrored(resized.size))
    whole = mirror if flip else resized
    start = int(top * whole.size[0]), int(left * whole.size[1])
    view = whole.then(cropped(whole.size, *start, shape=(64, 48)))
    pixels = resize(image, whole)[start[0] :, start[1] :][:64, :48]
    assert view.size == pixels.shape[:2]
    np.testing.assert_allclose(resize(image, view), pixels, rtol=0, atol=1e-3)


def test_axes_may_have_factors_of_their_own():
    image = picture(40, 30)
    view = View((40, 30), (20, 60), scale=(0.5, 2.0))
    expected = cv2.resize(image.astype(np.float32), None, fx=2.0, fy=0.5, interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resize(image, view), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "view",
    [
        View((8, 8), (8, 8), offset=(2.0, 0.0)),
        View((8, 8), (8, 8), offset=(0.0, -3.0)),
        View((8, 8), (16, 8)),
        View((90, 8), (90, 8)),
    ],
)
def test_a_view_that_the_image_does_not_fill_is_refused(view):
    with pytest.raises(ValueError, match="the image must fill the view, and the view must fit into"):
        taps(view, (64, 64))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [False, True])
def test_an_image_resampled_on_the_host_equals_the_device_to_half_a_grey_level(flip, crop):
    image = picture(300, 460)
    view = resized(image, target=100, max_size=140, flip=flip)
    if crop:
        view = view.then(cropped(view.size, 30.4, 51.7, shape=(64, 48)))
    pixels = resample(image, view)
    assert pixels.dtype == np.uint8 and pixels.shape[:2] == view.size
    np.testing.assert_array_equal(resize(pixels, whole(view.size)), pixels)
    np.testing.assert_allclose(pixels, resize(image, view), rtol=0, atol=0.501)


def test_a_sliver_keeps_one_pixel():
    image = picture(1, 3000)
    assert resample(image, resized(image, target=100, max_size=200)).shape == (1, 200, 3)


def test_colours_are_mixed_rounded_and_limited():
    image = np.array([[[10, 100, 250]]], np.uint8)
    swapped = recoloured((1, 1), np.array([[0, 0, 1, 0], [0, 0.5, 0, 0.6], [1, 0, 0, -20]]))
    assert recolour(image, swapped).tolist() == [[[250, 51, 0]]]
    assert recolour(image, mirrored((1, 1))) is image
    twice = swapped.then(recoloured((1, 1), np.array([[1.0, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 40]])))
    assert recolour(image, twice).tolist() == [[[255, 51, 30]]]
