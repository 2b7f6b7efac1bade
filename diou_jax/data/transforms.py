"""The host's work on one image and its boxes: decoding, and the geometry of the original's preprocessing.

The device resizes the pixels (`diou_jax.detection.preprocess`) with the taps that are computed here.
"""

import dataclasses
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


def image_scale(height: int, width: int, *, target: int, max_size: int) -> float:
    """The factor that scales the shorter side to `target`, or the longer to `max_size` if it would exceed it."""
    scale = target / min(height, width)
    if np.round(scale * max(height, width)) > max_size:
        scale = max_size / max(height, width)
    return scale


def resized_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width after scaling, rounded half to even, as OpenCV does; at least one pixel."""
    return max(int(np.round(height * scale)), 1), max(int(np.round(width * scale)), 1)


def linear_taps(source: int, scale: float, output: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that OpenCV's linear resize blends along one axis; the border is repeated.

    Output pixel i lies at ``(i + 0.5) / scale - 0.5``, with the exact factor: it differs from `output` / `source` if
    the size was rounded.

    Args:
      source: pixels of the image along the axis.
      scale: the factor.
      output: pixels of the resized image along the axis.
      length: length of the returned arrays, at least `output`; the rest refers to pixel 0.

    Returns:
      The pixels before and after each position, (2, length) int32, and the weight of the latter, (length,) float32.
    """
    position = (np.arange(output) + 0.5) * (1.0 / scale) - 0.5
    before = np.floor(position)
    taps = np.zeros((2, length), np.int32)
    weight = np.zeros(length, np.float32)
    taps[:, :output] = np.clip([before, before + 1], 0, source - 1)
    weight[:output] = position - before
    return taps, weight


@dataclasses.dataclass(frozen=True)
class Placement:
    """The way of an image from its canvas to the network's input, in fields of `diou_jax.structures.Batch`."""

    rows: np.ndarray
    row_weight: np.ndarray
    columns: np.ndarray
    column_weight: np.ndarray
    size: tuple[int, int]
    scale: float


def place(height: int, width: int, *, target: int, max_size: int, flip: bool, bucket: tuple[int, int]) -> Placement:
    """The taps that resize an image, mirrored first if `flip`, for a network input of shape `bucket`."""
    scale = image_scale(height, width, target=target, max_size=max_size)
    size = resized_size(height, width, scale)
    rows, row_weight = linear_taps(height, scale, size[0], bucket[0])
    columns, column_weight = linear_taps(width, scale, size[1], bucket[1])
    if flip:
        columns = width - 1 - columns
    return Placement(rows, row_weight, columns, column_weight, size, scale)


def place_reduced(
    image: np.ndarray, *, target: int, max_size: int, flip: bool, bucket: tuple[int, int]
) -> tuple[np.ndarray, Placement]:
    """As `place`, for an image that its canvas cannot hold: it is resized here and rounded to uint8.

    Returns:
      The resized image (h, w, 3) uint8, and taps that copy it.
    """
    height, width = image.shape[:2]
    scale = image_scale(height, width, target=target, max_size=max_size)
    size = resized_size(height, width, scale)
    image = (image[:, ::-1] if flip else image).astype(np.float32)
    # OpenCV gets the factor, which decides where it samples; only a side that would vanish needs the size instead.
    if min(height * scale, width * scale) > 0.5:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    else:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    rows, row_weight = linear_taps(size[0], 1.0, size[0], bucket[0])
    columns, column_weight = linear_taps(size[1], 1.0, size[1], bucket[1])
    return np.rint(image).astype(np.uint8), Placement(rows, row_weight, columns, column_weight, size, scale)


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Mirrors (n, 4) boxes in an image `width` pixels wide."""
    flipped = boxes.copy()
    flipped[:, 0] = width - boxes[:, 2] - 1
    flipped[:, 2] = width - boxes[:, 0] - 1
    return flipped


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
    if image is None:
        raise _undecodable(content, name)
    return image


def _undecodable(content, name):
    size = len(content) if isinstance(content, bytes) else content.seek(0, io.SEEK_END)
    return BadImageError(
        f"{name}: not an image that can be decoded ({size} bytes)", "image files that cannot be decoded"
    )
