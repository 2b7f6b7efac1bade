"""Images in the forms in which callers have them, as the uint8 BGR arrays that the network is fed with."""

import os
import pathlib
from typing import Any, TypeAlias

import cv2
import jax
import numpy as np
import PIL.Image

from diou_jax.data.dataset import BadImageError
from diou_jax.data.decoding import decode_upright
from diou_jax.errors import UserError
from diou_jax.files import printable, regular_file

# An image file, an array or Pillow's image, see `to_pixels`.
Image: TypeAlias = str | os.PathLike | np.ndarray | jax.Array | PIL.Image.Image

COLORS = ("bgr", "rgb")
# Pillow's modes whose conversion to RGB keeps the picture; that of deeper grey levels cuts them off at 255.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def is_image(value: Any) -> bool:
    """Whether a value is one image rather than several; an array of four axes or more is several."""
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim < 4
    return isinstance(value, str | os.PathLike | PIL.Image.Image)


def to_pixels(image: Image, name: str, *, color: str = "bgr") -> np.ndarray:
    """The image as uint8 (H, W, 3), blue first.

    Args:
      image: path of an image file, which is turned as its metadata say; Pillow's image, which is taken as it lies in
        memory; or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or float. Values of a float array lie in
        [0, 1] and are rounded to the nearest of 256 levels. A fourth channel, opacity, is left out, as cv2.imread does.
      name: name of the image in messages.
      color: "bgr" or "rgb", the order of an array's channels; files and Pillow's images know theirs.

    Raises:
      UserError: if it is no such image; the message begins with `name`, or with the path.
    """
    if color not in COLORS:
        raise UserError(f"color={color!r}: it must be one of {', '.join(COLORS)}")
    if isinstance(image, str | os.PathLike):
        return read_image(pathlib.Path(image))
    if isinstance(image, PIL.Image.Image):
        if image.mode not in MODES:
            raise UserError(
                f"{name} is an image of Pillow's mode {image.mode}; the modes {', '.join(MODES)} can be taken. Scale "
                "deeper grey levels to 0 to 255 first, since Pillow cuts them off at 255"
            )
        image, color = np.asarray(image.convert("RGB")), "rgb"
    if not isinstance(image, np.ndarray | jax.Array):
        raise UserError(f"{name} is {type(image).__name__}; it must be a path, an array or an image of Pillow's")
    return _from_array(np.asarray(image), name, color)


def read_image(path: pathlib.Path) -> np.ndarray:
    """An image file as a viewer shows it, uint8 (H, W, 3) BGR; raises BadImageError if it cannot be read."""
    try:
        return decode_upright(regular_file(path).read_bytes(), printable(path))
    except OSError as error:
        raise BadImageError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    except BadImageError:
        raise
    except UserError as error:
        raise BadImageError(str(error)) from None


def _from_array(image: np.ndarray, name: str, color: str) -> np.ndarray:
    kind = f"{image.dtype} {image.shape}"
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise UserError(f"{name} is {kind}; its shape must be (height, width) or (height, width, 1, 3 or 4 channels)")
    if 0 in image.shape:
        raise UserError(f"{name} is {kind}: it has no pixels")
    if np.issubdtype(image.dtype, np.floating):
        image = _from_unit_range(image, name)
    if image.dtype != np.uint8:
        raise UserError(f"{name} is {kind}; its values must be uint8, or float from 0 to 1")
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(np.ascontiguousarray(image.reshape(image.shape[:2])), cv2.COLOR_GRAY2BGR)
    image = image[..., :3]
    return np.ascontiguousarray(image[..., ::-1] if color == "rgb" else image)


def _from_unit_range(image, name):
    low, high = image.min(), image.max()  # NaN if there is one
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{name} has float values from {low:.9g} to {high:.9g}; they must lie in [0, 1]. Values from 0 to 255 must "
            "be uint8"
        )
    return np.rint(image.astype(np.float32) * 255).astype(np.uint8)
