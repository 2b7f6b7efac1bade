import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diou_jax.data.dataset import BadImageError
from diou_jax.errors import UserError
from diou_jax.prediction.pixels import MODES, is_image, read_image, to_pixels

BGR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
RGB = np.ascontiguousarray(BGR[..., ::-1])
ALPHA = np.full((5, 7, 1), 9, np.uint8)


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (BGR, "bgr"),
        (RGB, "rgb"),
        (np.concatenate([BGR, ALPHA], 2), "bgr"),
        (np.concatenate([RGB, ALPHA], 2), "rgb"),
        (BGR / 255, "bgr"),
        ((RGB / 255).astype(np.float32), "rgb"),
        (BGR[:, ::-1][:, ::-1], "bgr"),
        (jnp.asarray(BGR), "bgr"),
        (Image.fromarray(RGB), "bgr"),
        (Image.fromarray(RGB), "rgb"),
        (Image.fromarray(RGB).convert("RGBA"), "bgr"),
    ],
)
def test_every_form_of_an_image_gives_the_same_pixels(image, color):
    assert is_image(image)
    pixels = to_pixels(image, "image 0", color=color)
    np.testing.assert_array_equal(pixels, BGR)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous


@pytest.mark.parametrize("grey", [BGR[..., 0], BGR[..., :1], BGR[..., 0] / 255, Image.fromarray(BGR[..., 0])])
def test_grey_levels_become_three_equal_channels(grey):
    np.testing.assert_array_equal(to_pixels(grey, "image 0"), np.repeat(BGR[..., :1], 3, 2))


def test_files_know_their_colours_and_a_path_is_one_image(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert is_image(path)
        for color in ("bgr", "rgb"):
            np.testing.assert_array_equal(to_pixels(path, "image 0", color=color), BGR)
    (tmp_path / "b.png").write_bytes(b"no")
    for name, words in (("b.png", "not an image"), ("c.png", "cannot be read"), (".", "a folder")):
        with pytest.raises(BadImageError, match=words):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (BGR.astype(np.float32), r"float values from .* to 2\d\d; .* must be uint8"),
        (-(BGR / 255), "they must lie in"),
        (np.full((4, 4, 3), np.nan), "from nan to nan; they must lie in"),
        (BGR.astype(np.int32), "its values must be uint8"),
        (BGR > 3, "bool .* must be uint8"),
        (BGR[..., :2], r"shape must be .*channels"),
        (BGR[:0], "it has no pixels"),
        (np.zeros((2, 2, 2, 3), np.uint8), "shape must be"),
        ([[1]], "is list; it must be a path, an array"),
        (None, "is NoneType"),
        (np.full((4, 4), np.nextafter(np.float32(1), np.float32(2))), r"from 1\.00000012 to 1\.00000012; they"),
        (Image.new("I;16", (4, 4)), "mode I;16; the modes .* Scale deeper grey levels to 0 to 255 first"),
        (Image.new("La", (4, 4)), "mode La; the modes 1, L, "),
    ],
)
def test_what_is_no_image_is_named_with_the_mend(image, words):
    with pytest.raises(UserError, match=f"image 3 .*{words}"):
        to_pixels(image, "image 3")
    with pytest.raises(UserError, match="color='RGB': it must be one of bgr, rgb"):
        to_pixels(image, "image 3", color="RGB")


def test_pillows_modes_that_are_taken_keep_the_picture():
    white = Image.new("RGB", (4, 4), "white")
    for mode in set(MODES) - {"RGBa", "PA", "RGBX", "LAB", "HSV"}:
        assert to_pixels(white.convert(mode), "image 0").min() >= 250, mode
    for mode in MODES:
        assert to_pixels(Image.new(mode, (5, 4)), "image 0").shape == (4, 5, 3), mode


@pytest.mark.parametrize("shape", [(), (4,)])
def test_an_array_of_too_few_axes_is_no_image(shape):
    image = np.zeros(shape, np.uint8)
    assert is_image(image), "iterating over it would give numbers"
    with pytest.raises(UserError, match=r"image 0 is uint8 \(4?,?\); its shape must be"):
        to_pixels(image, "image 0")


def test_several_images_are_not_one():
    assert not any(map(is_image, ([BGR], iter([BGR]), np.stack([BGR, BGR]), (str(path) for path in "ab"))))
