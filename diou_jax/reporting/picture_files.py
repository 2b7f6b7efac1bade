"""Files of drawn pictures: small, and marked, so that prediction does not take them for photographs."""

import io
import os
import pathlib
import zlib

import cv2
import numpy as np
from PIL import Image

from diou_jax.files import replacing, shortened

SUFFIX, QUALITY = ".jpg", 90

# A comment inside the file, so that a picture is recognised even after it is moved.
MARK = b"boxes drawn by diou-jax"


def encode(image: np.ndarray, *, quality: int = QUALITY, longest_side: int | None = None) -> bytes:
    """A uint8 BGR (H, W, 3) picture as a marked JPEG file, scaled down if its longer side exceeds `longest_side`."""
    height, width = image.shape[:2]
    if longest_side and max(height, width) > longest_side:
        factor = longest_side / max(height, width)
        size = max(round(width * factor), 1), max(round(height * factor), 1)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(
        file, "JPEG", quality=quality, optimize=True, comment=MARK
    )
    return file.getvalue()


def is_drawn(header: Image.Image) -> bool:
    """Whether an opened image was made by `encode`."""
    return header.info.get("comment") == MARK


def write(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a uint8 BGR picture as JPEG, atomically, and makes its folder; raises OSError."""
    with replacing(path) as draft:
        draft.write_bytes(encode(image))


def beside(name: pathlib.PurePath, suffix: str = SUFFIX) -> pathlib.PurePath:
    """The name of an image file's picture, or of a video's results; it differs for a.jpg and a.png."""
    return name.with_name(shortened(name.name, suffix))


def flat(name: str) -> str:
    """A file name, without folders, for the picture of the image file `name`; it differs for each path.

    It begins with the names of the image's folder and the image; a checksum of the whole path makes it unique.
    """
    parts = pathlib.PurePath(name).parts[-2:]
    readable = "_".join(part.strip("/\\") for part in parts).replace("\0", "")
    checksum = zlib.crc32(os.fsencode(name))
    return shortened(readable, f"_{checksum:08x}{SUFFIX}")
