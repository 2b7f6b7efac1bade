"""The files that drawn pictures are kept in: small, and marked, so that nobody takes one for a photo."""

import io
import os
import pathlib
import zlib

import cv2
import numpy as np
from PIL import Image

SUFFIX, QUALITY = ".jpg", 90

# A comment inside the file, so that a picture is known wherever it has been moved.
MARK = b"boxes drawn by diou-jax"

# Bytes that the name of a file may have on all systems, less what a draft's ending takes.
LONGEST = 255 - len(".tmp")


def encode(image: np.ndarray, *, quality: int = QUALITY, longest_side: int | None = None) -> bytes:
    """A uint8 BGR (H, W, 3) picture as a marked JPEG file, reduced where its longer side exceeds `longest_side`."""
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
    """Whether an opened image is a picture that `encode` made."""
    return header.info.get("comment") == MARK


def write(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a uint8 BGR picture as JPEG, whole or not at all; makes the folder; raises OSError."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(encode(image))
    os.replace(draft, path)


def beside(name: pathlib.PurePath) -> pathlib.PurePath:
    """The name of the picture of an image file, so that a.jpg and a.png have different ones."""
    return name.with_name(_shortened(name.name, SUFFIX))


def flat(name: str) -> str:
    """A file's name, without folders, for the picture of the image file `name`, different for each path.

    The folder that the image lies in and the image stay readable; a checksum of the whole path tells equal ones apart.
    """
    parts = pathlib.PurePath(name).parts[-2:]
    readable = "_".join(part.strip("/\\") for part in parts).replace("\0", "")
    checksum = zlib.crc32(os.fsencode(name))
    return _shortened(readable, f"_{checksum:08x}{SUFFIX}")


def _shortened(name, ending):
    """`name` and `ending`, a checksum in place of the name's end where a system could not store all of it."""
    encoded = os.fsencode(name)
    room = LONGEST - len(ending)
    if len(encoded) > room:
        checksum = f"_{zlib.crc32(encoded):08x}"
        encoded = encoded[: room - len(checksum)]
        name = encoded.decode("utf-8", "ignore") + checksum
    return name + ending
