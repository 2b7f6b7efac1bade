"""Decodes image files, and refuses those that are damaged or have another size than the annotations state."""

import io
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from diou_jax.data.dataset import BadImageError

# A quarter of a GiB when decoded, which is Pillow's own limit; a file of a few bytes may claim any size.
MAX_PIXELS = 2**30 // 12

# Formats that both Pillow and OpenCV read. For some other formats Pillow starts external programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")

ORIENTATION = 0x0112  # Exif's tag; some programs write 0 for an unknown orientation

# OpenCV's warnings do not name the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(content: bytes, name: str, *, height: int, width: int) -> np.ndarray:
    """Decodes an image to (height, width, 3) uint8 BGR, for any channels and depth of the file.

    The image is turned as its metadata say, like cv2.imread does, if it then has the size that the annotations state;
    else its pixels are taken as stored, if they have that size.

    Raises:
      BadImageError: if it is no image, larger than `MAX_PIXELS` or of another size; the message starts with `name`.
    """
    found = open_header(content, name).size
    if sorted(found) == sorted((height, width)):
        for orientation in (0, cv2.IMREAD_IGNORE_ORIENTATION):
            image = _decode(content, name, cv2.IMREAD_COLOR | orientation)
            if image.shape[:2] == (height, width):
                return image
    raise BadImageError(
        f"{name}: {found[0]}x{found[1]} pixels, but the annotations say {width}x{height}",
        "image files of another size than the annotations say",
    )


def decode_upright(content: bytes, name: str) -> np.ndarray:
    """Decodes an image of any size to uint8 (H, W, 3) BGR, turned as its metadata say; errors as in `decode`."""
    open_header(content, name)
    return _decode(content, name, cv2.IMREAD_COLOR)


def upright_size(content: bytes | BinaryIO, name: str) -> tuple[int, int]:
    """Height and width that `decode_upright` gives; pixels are decoded only where the metadata might exchange the two.

    Errors are as in `decode`.
    """
    header = open_header(content, name)
    if orientation(header) < 5:
        return header.height, header.width
    # The decoder decides whether it turns the image as the metadata say. OpenCV turns no AVIF, for one.
    if not isinstance(content, bytes):
        content.seek(0)
        content = content.read()
    height, width = _decode(content, name, cv2.IMREAD_COLOR).shape[:2]
    return height, width


def open_header(content: bytes | BinaryIO, name: str) -> Image.Image:
    """Format, mode, size and metadata of an encoded image, without decoding its pixels; errors as in `decode`."""
    try:
        header = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS)
        too_large = header.width * header.height > MAX_PIXELS
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        too_large = True
    except Exception:
        # A damaged header can raise anything.
        raise _undecodable(content, name) from None
    if too_large:
        raise BadImageError(
            f"{name}: it claims more than {MAX_PIXELS} pixels; cut it into tiles or scale it down",
            "image files that claim too many pixels",
        )
    return header


def orientation(header: Image.Image) -> int:
    """Exif's orientation, from 1 (upright) to 8; from 5 on, height and width are exchanged."""
    try:
        return int(header.getexif().get(ORIENTATION, 1)) or 1
    except Exception:
        # Damaged metadata can raise anything; the image is then taken as upright.
        return 1


def _decode(content, name, flags):
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        image = None
    # Grey floating-point numbers come without a channel, which no network takes.
    if image is None or image.ndim != 3:
        reason = "its channels have 32 bits; save it with 8 bits a channel" if _has_32_bits(content) else ""
        raise _undecodable(content, name, reason)
    return image


def _has_32_bits(content) -> bool:
    """Whether the channels of an image whose header can be read are floating-point numbers or long integers."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as header:
        return header.mode == "F" or (header.mode, header.format) == ("I", "TIFF")


def _undecodable(content, name, reason=""):
    size = len(content) if isinstance(content, bytes) else content.seek(0, io.SEEK_END)
    return BadImageError(
        f"{name}: not an image that can be decoded ({reason or f'{size} bytes'})", "image files that cannot be decoded"
    )
