import io

import cv2
import numpy as np
import pytest

from diou_jax.data.dataset import BadImageError
from diou_jax.data.decoding import decode, decode_upright, upright_size


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def test_every_kind_of_file_becomes_bgr_bytes():
    image = picture(7, 9)
    deep = image.astype(np.uint16) * 257
    alpha = np.dstack([image, np.full((7, 9), 9, np.uint8)])
    for stored in (image, deep, alpha):
        np.testing.assert_array_equal(decode(png(stored), "x", height=7, width=9), image)
    grey = decode(png(image[..., 0]), "x", height=7, width=9)
    np.testing.assert_array_equal(grey, np.repeat(image[..., :1], 3, 2))


def test_cmyk_becomes_bgr():
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.new("CMYK", (16, 8), (0, 255, 255, 0)).save(file, "JPEG", quality=95)
    image = decode(file.getvalue(), "x", height=8, width=16)
    assert (image[..., 2] > 200).all()
    assert (image[..., :2] < 60).all()


def test_the_orientation_in_the_metadata_counts_only_where_the_size_asks_for_it():
    pillow = pytest.importorskip("PIL.Image")
    exif = pillow.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    file = io.BytesIO()
    pillow.fromarray(np.repeat(np.arange(32, dtype=np.uint8)[None] * 8, 16, 0)).save(file, "JPEG", exif=exif)
    stored = decode(file.getvalue(), "x", height=16, width=32).astype(int)
    turned = decode(file.getvalue(), "x", height=32, width=16).astype(int)
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
    decoded = decode(file.getvalue(), "x", height=height, width=width)
    np.testing.assert_array_equal(decoded, seen)
    np.testing.assert_array_equal(decoded, decode_upright(file.getvalue(), "x"))


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"text" * 99, png(picture(64, 64))[:-2000]])
def test_what_is_no_image_is_named(content):
    with pytest.raises(BadImageError, match=r"^some/file\.jpg: not an image that can be decoded"):
        decode(content, "some/file.jpg", height=64, width=64)


def floating(suffix, image):
    """A file of floating-point numbers or of integers of 32 bits."""
    if suffix == "pfm":
        return cv2.imencode(".pfm", image)[1].tobytes()
    file = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(image).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("suffix, kind", [("pfm", np.float32), ("tif", np.float32), ("tif", np.int32)])
def test_channels_of_32_bits_are_refused_with_the_mend(suffix, kind):
    content = floating(suffix, np.arange(48, dtype=kind).reshape(6, 8))
    message = r"^x: not an image that can be decoded \(its channels have 32 bits; save it with 8 bits a channel\)$"
    with pytest.raises(BadImageError, match=message):
        decode(content, "x", height=6, width=8)
    with pytest.raises(BadImageError, match=message):
        decode_upright(content, "x")


@pytest.mark.parametrize("suffix", [".png", ".pgm", ".tiff"])
def test_channels_of_16_bits_are_read(suffix):
    image = picture(7, 9)[..., 0]
    content = cv2.imencode(suffix, image.astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode(content, "x", height=7, width=9), np.repeat(image[..., None], 3, 2))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "AVIF", "WEBP"])
def test_the_upright_size_is_that_of_the_decoded_image(kind, orientation):
    pillow = pytest.importorskip("PIL.Image")
    exif = pillow.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    pillow.fromarray(picture(16, 32)).save(file, kind, exif=exif)
    wanted = decode_upright(file.getvalue(), "x").shape[:2]
    assert upright_size(file.getvalue(), "x") == upright_size(file, "x") == wanted


def test_a_truncated_jpeg_is_refused():
    content = cv2.imencode(".jpg", picture(64, 64))[1].tobytes()
    decode(content, "x", height=64, width=64)
    with pytest.raises(BadImageError, match="not an image"):
        decode(content[: len(content) // 2], "x", height=64, width=64)


def test_another_size_than_the_annotations_say_is_refused():
    with pytest.raises(BadImageError, match=r"^x: 9x7 pixels, but the annotations say 9x8$"):
        decode(png(picture(7, 9)), "x", height=8, width=9)
