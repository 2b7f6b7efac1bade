"""A data set of seven images, and files of every kind that may stand among them by mistake, all of one picture."""

import io
import json
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
COUNT = 7
ODD = 3  # the image that is not like the others
CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 5, "name": "dog"}]


def write_set(root, name="seven", *, files=None, images=None, annotations=(), categories=CATEGORIES):
    """Writes `COUNT` images with one box each, in the layout of `diou_jax.data.catalog`.

    Args:
      root: folder.
      name: of the data set.
      files: contents by image, instead of a picture; None writes none.
      images: changed fields of the json's entries, by image.
      annotations: more of them.
      categories: of the json.
    """
    folder = root / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    listed, boxes = [], []
    for number in range(COUNT):
        content = (files or {}).get(number, encoded(picture(number)))
        if content is not None:
            (folder / f"{number}.jpg").write_bytes(content)
        entry = {"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH}
        listed.append(entry | (images or {}).get(number, {}))
        boxes.append({"id": number, "image_id": number, "category_id": 5, "bbox": [5, 6, 20, 30], "area": 600})
    content = {"images": listed, "annotations": [*boxes, *annotations], "categories": categories}
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def box(number, **change):
    """An annotation of the odd image."""
    return {"id": 100 + number, "image_id": ODD, "category_id": 5, "bbox": [1, 2, 10, 20], "area": 200} | change


def picture(seed, height=HEIGHT, width=WIDTH):
    """Smooth blobs of colour, (height, width, 3) uint8 BGR."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


PICTURE = picture(ODD)


def encoded(image, suffix=".jpg"):
    return cv2.imencode(suffix, image)[1].tobytes()


def by_pillow(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation, stored=PICTURE):
    """A JPEG of an image whose metadata ask for an orientation, a number of Exif's."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return by_pillow(Image.fromarray(stored[..., ::-1]), "JPEG", exif=exif)


def claiming(width, height):
    """A PNG of a hundred bytes whose header claims any size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(999))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def claiming_jpeg(width, height):
    """A JPEG of the picture whose header claims another size."""
    content = bytearray(encoded(PICTURE))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


# Contents, and the messages on them.
UNREADABLE = {
    "empty": (b"", "not an image that can be decoded"),
    "text": (b"<html>404</html>" * 9, "not an image that can be decoded"),
    "truncated jpeg": (encoded(PICTURE)[:-200], "not an image that can be decoded"),
    "truncated png": (encoded(PICTURE, ".png")[:-200], "not an image that can be decoded"),
    "header alone": (encoded(PICTURE)[:180], "not an image that can be decoded"),
    "other size": (encoded(picture(ODD, 40, 64)), "64x40 pixels, but the annotations say 64x48"),
    "bomb": (claiming(60000, 60000), "it claims more than 89478485 pixels"),
    "jpeg bomb": (claiming_jpeg(65500, 65500), "it claims more than 89478485 pixels"),
    "bomb of one row": (claiming(2**31 - 1, 1), "it claims more than 89478485 pixels"),
    "missing": (None, "cannot be read"),
}

READABLE = {
    "cmyk": by_pillow(Image.fromarray(PICTURE[..., ::-1]).convert("CMYK"), "JPEG", quality=95),
    "grey": encoded(PICTURE[..., 0]),
    "grey, 16 bits": encoded(PICTURE[..., 0].astype(np.uint16) * 257, ".png"),
    "16 bits": encoded(PICTURE.astype(np.uint16) * 257, ".png"),
    "alpha": encoded(np.dstack([PICTURE, np.zeros((HEIGHT, WIDTH), np.uint8)]), ".png"),
    "palette": by_pillow(Image.fromarray(PICTURE[..., ::-1]).quantize(256), "PNG", transparency=3),
    "png named jpg": encoded(PICTURE, ".png"),
    "webp": encoded(PICTURE, ".webp"),
    "tiff": encoded(PICTURE, ".tiff"),
    "turned by 180 degrees": turned(3, PICTURE[::-1, ::-1]),
    "turned by 90 degrees": turned(6),
}
