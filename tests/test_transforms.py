import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.data import transforms
from diou_jax.data.dataset import BadImageError

SIDES = st.integers(1, 700)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def resize(image, placement):
    """What the device makes of the taps, in float64."""
    image = image.astype(np.float64)
    weight = placement.column_weight.astype(np.float64)[None, :, None]
    image = image[:, placement.columns[0]] * (1 - weight) + image[:, placement.columns[1]] * weight
    weight = placement.row_weight.astype(np.float64)[:, None, None]
    return image[placement.rows[0]] * (1 - weight) + image[placement.rows[1]] * weight


@pytest.mark.parametrize("case", range(3))
def test_scale_and_size_equal_the_originals(golden, case):
    """preproc.npz, exactly."""
    expected = {key.split("/")[1]: value for key, value in golden("preproc.npz").items() if key[0] == str(case)}
    height, width = expected["image_u8_bgr"].shape[:2]
    target, max_size = expected["target_max"].tolist()
    scale = transforms.image_scale(height, width, target=target, max_size=max_size)
    assert scale == expected["scale_f64"][0]
    assert transforms.resized_size(height, width, scale) == tuple(expected["resized_hw"])


def test_the_longer_side_is_limited_after_rounding():
    """A side of 1333.4 pixels passes a limit of 1333, one of 1333.6 does not."""
    assert transforms.image_scale(10_000, 16_667, target=800, max_size=1333) == 800 / 10_000
    assert transforms.image_scale(10_000, 16_670, target=800, max_size=1333) == 1333 / 16_670


@settings(deadline=None, max_examples=40)
@given(SIDES, SIDES, st.integers(16, 400), st.integers(16, 600), st.booleans())
def test_taps_equal_opencvs_resize(height, width, target, max_size, flip):
    """To 0.02 of 255 grey levels: for some sizes OpenCV itself rounds positions to float32, for most it does not."""
    scale = transforms.image_scale(height, width, target=target, max_size=max_size)
    if min(height * scale, width * scale) <= 0.5:
        return  # OpenCV refuses
    size = transforms.resized_size(height, width, scale)
    image = picture(height, width)
    placement = transforms.place(
        height, width, target=target, max_size=max_size, flip=flip, bucket=(size[0] + 3, size[1] + 5)
    )
    mirrored = np.ascontiguousarray(image[:, ::-1] if flip else image)
    expected = cv2.resize(mirrored.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    assert expected.shape[:2] == size == placement.size
    np.testing.assert_allclose(resize(image, placement)[: size[0], : size[1]], expected, rtol=0, atol=0.02)


@settings(deadline=None, max_examples=40)
@given(SIDES, SIDES, st.integers(1, 400), st.integers(1, 600), st.booleans())
def test_taps_stay_on_the_image(height, width, target, max_size, flip):
    placement = transforms.place(height, width, target=target, max_size=max_size, flip=flip, bucket=(700, 700))
    for taps, weight, source, length in (
        (placement.rows, placement.row_weight, height, placement.size[0]),
        (placement.columns, placement.column_weight, width, placement.size[1]),
    ):
        assert taps.min() >= 0
        assert taps.max() < source
        assert ((weight >= 0) & (weight <= 1)).all()
        assert not weight[length:].any()


def test_an_image_reduced_on_the_host_equals_the_device_to_half_a_grey_level():
    image = cv2.GaussianBlur(picture(300, 460), (5, 5), 0)
    for flip in (False, True):
        options = {"target": 100, "max_size": 140, "flip": flip, "bucket": (128, 160)}
        exact = transforms.place(300, 460, **options)
        reduced, placement = transforms.place_reduced(image, **options)
        assert reduced.dtype == np.uint8
        assert reduced.shape[:2] == placement.size == exact.size
        assert placement.scale == exact.scale
        inside = np.s_[: exact.size[0], : exact.size[1]]
        np.testing.assert_allclose(resize(reduced, placement)[inside], resize(image, exact)[inside], rtol=0, atol=0.501)


def test_a_sliver_keeps_one_pixel():
    image = picture(1, 3000)
    reduced, placement = transforms.place_reduced(image, target=100, max_size=200, flip=False, bucket=(128, 224))
    assert reduced.shape == (1, 200, 3)
    assert placement.size == (1, 200)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 100), st.lists(st.tuples(*[st.integers(0, 50)] * 4), max_size=5))
def test_mirroring_boxes_twice_gives_them_back(width, boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    once = transforms.flip_boxes(boxes, width)
    np.testing.assert_array_equal(once[:, 2] - once[:, 0], boxes[:, 2] - boxes[:, 0])
    np.testing.assert_array_equal(transforms.flip_boxes(once, width), boxes)


def test_a_mirrored_box_covers_the_mirrored_pixels():
    image = np.zeros((5, 9), np.uint8)
    image[1:3, 2:6] = 1
    x1, y1, x2, y2 = transforms.flip_boxes(np.array([[2, 1, 5, 2]], np.float32), 9)[0].astype(int)
    mirrored = image[:, ::-1]
    assert mirrored[y1 : y2 + 1, x1 : x2 + 1].all()
    assert mirrored.sum() == (y2 - y1 + 1) * (x2 - x1 + 1)


def test_every_kind_of_file_becomes_bgr_bytes():
    image = picture(7, 9)
    deep = image.astype(np.uint16) * 257
    alpha = np.dstack([image, np.full((7, 9), 9, np.uint8)])
    for stored in (image, deep, alpha):
        np.testing.assert_array_equal(transforms.decode(png(stored), "x", height=7, width=9), image)
    grey = transforms.decode(png(image[..., 0]), "x", height=7, width=9)
    np.testing.assert_array_equal(grey, np.repeat(image[..., :1], 3, 2))


def test_cmyk_becomes_bgr():
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.new("CMYK", (16, 8), (0, 255, 255, 0)).save(file, "JPEG", quality=95)
    image = transforms.decode(file.getvalue(), "x", height=8, width=16)
    assert (image[..., 2] > 200).all()
    assert (image[..., :2] < 60).all()


def test_the_orientation_in_the_metadata_counts_only_where_the_size_asks_for_it():
    pillow = pytest.importorskip("PIL.Image")
    exif = pillow.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    file = io.BytesIO()
    pillow.fromarray(np.repeat(np.arange(32, dtype=np.uint8)[None] * 8, 16, 0)).save(file, "JPEG", exif=exif)
    stored = transforms.decode(file.getvalue(), "x", height=16, width=32).astype(int)
    turned = transforms.decode(file.getvalue(), "x", height=32, width=16).astype(int)
    assert (np.diff(stored[8, :, 0]) > 0).all()
    assert (np.diff(turned[:, 8, 0]) > 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(32, 32), (16, 32)])
def test_an_image_is_turned_as_imread_turns_it_wherever_its_size_allows(orientation, shape):
    pillow = pytest.importorskip("PIL.Image")
    exif = pillow.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    pillow.fromarray(picture(*shape)).save(file, "PNG", exif=exif)
    seen = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    height, width = seen.shape[:2]
    decoded = transforms.decode(file.getvalue(), "x", height=height, width=width)
    np.testing.assert_array_equal(decoded, seen)
    np.testing.assert_array_equal(decoded, transforms.decode_upright(file.getvalue(), "x"))


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"text" * 99, png(picture(64, 64))[:-2000]])
def test_what_is_no_image_is_named(content):
    with pytest.raises(BadImageError, match=r"^some/file\.jpg: not an image that can be decoded"):
        transforms.decode(content, "some/file.jpg", height=64, width=64)


def test_a_truncated_jpeg_is_refused():
    content = cv2.imencode(".jpg", picture(64, 64))[1].tobytes()
    transforms.decode(content, "x", height=64, width=64)
    with pytest.raises(BadImageError, match="not an image"):
        transforms.decode(content[: len(content) // 2], "x", height=64, width=64)


def test_another_size_than_the_annotations_say_is_refused():
    with pytest.raises(BadImageError, match=r"^x: 9x7 pixels, but the annotations say 9x8$"):
        transforms.decode(png(picture(7, 9)), "x", height=8, width=9)
