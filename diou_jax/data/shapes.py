"""The embedded data set: drawn shapes in COCO's format, with which everything runs without a download.

Boxes enclose the drawn pixels. Outlines are polygons, and those of crowds are run lengths.
"""

import contextlib
import glob
import json
import os
import pathlib
import shutil
import tempfile

import cv2
import numpy as np
from pycocotools import mask as rle

from diou_jax.data.shape_drawing import CLASSES, draw
from diou_jax.errors import UserError
from diou_jax.workdir.file_lock import FileLock, Unsupported

VERSION = 2  # must increase with every change of `shape_drawing`, which makes another data set
BOXES_VERSION = 1  # the first version with the same pictures and boxes; it has run lengths instead of polygons
SEED = 20
SIDE = 128
COUNTS = {"train": 800, "val": 200}

MARKER = "shapes.json"


def ensure(root: str | os.PathLike, *, seed: int = SEED, masks: bool = False) -> None:
    """Draws the data set into `root` unless it is there already; the folder appears only when it is complete.

    It holds ``annotations/instances_{train,val}.json`` and ``images/{train,val}``. With `masks` a folder that an
    earlier version drew, without polygons, is refused.

    Raises:
      UserError: if `root` holds something else or cannot be written.
    """
    root = pathlib.Path(root)
    recipe = {"version": VERSION, "seed": seed, "side": SIDE, "images": COUNTS}
    try:
        if not masks and _is_drawn(root, recipe | {"version": BOXES_VERSION}):
            return
        if not _is_there(root, recipe):
            root.parent.mkdir(parents=True, exist_ok=True)
            _draw_locked(root, recipe)
    except OSError as error:
        raise UserError(
            f"the shapes cannot be drawn into {root}: {error.strerror or error}; set data.root to a folder that can be "
            "written"
        ) from None


def _is_there(root, recipe) -> bool:
    """Whether the data set is drawn; raises UserError if something else is in its place."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file, not a folder; set data.root to another one")
    if not root.exists() or not any(root.iterdir()):
        return False
    if _is_drawn(root, recipe | {"version": BOXES_VERSION}):
        raise UserError(
            f"{root} holds the shapes of an earlier version, which have no polygons; set data.root to another folder, "
            "into which they are drawn anew"
        )
    if not _is_drawn(root, recipe):
        raise UserError(
            f"{root} does not hold the shapes of this version and seed; set data.root to another folder for them, or, "
            "to train on its content, take another config: --config configs/own.py"
        )
    return True


def _draw_locked(root, recipe):
    """Draws the data set, or waits for another process that is drawing it."""
    prefix = f".{root.name}-drawing-"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(root.parent / f".{root.name}.lock", wait=True))
        except Unsupported:
            pass  # without locks the first process to finish wins, and drafts of killed processes stay
        else:
            # No other process draws now, so existing drafts were left by killed processes.
            for left in root.parent.glob(f"{glob.escape(prefix)}*"):
                shutil.rmtree(left, ignore_errors=True)
        if not _is_there(root, recipe):
            _draw_all(root, recipe, prefix)


def _draw_all(root, recipe, prefix):
    draft = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=root.parent))
    try:
        for number, (split, count) in enumerate(COUNTS.items()):
            _draw_split(draft, split, count, np.random.SeedSequence([recipe["seed"], number]))
        (draft / MARKER).write_text(json.dumps(recipe))
        try:
            draft.rename(root)  # this replaces an empty folder, too
        except OSError:
            # Another process was faster.
            if not _is_drawn(root, recipe):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_drawn(root, recipe):
    try:
        return json.loads((root / MARKER).read_text()) == recipe
    except (OSError, ValueError):
        return False


def _draw_split(root, split, count, seeds):
    folder = root / "images" / split
    folder.mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for number, seed in enumerate(seeds.spawn(count), start=1):
        picture, objects = draw(np.random.Generator(np.random.Philox(seed)), SIDE)
        name = f"{number:06d}.jpg"
        if not cv2.imwrite(str(folder / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise UserError(f"{folder / name} cannot be written; is there space left?")
        images.append({"id": number, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
        for label, mask, parts in objects:
            annotations.append(_annotation(len(annotations) + 1, number, label, mask, parts))
    (root / "annotations").mkdir(exist_ok=True)
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
    content = {
        "info": {"description": "shapes"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _annotation(number, image, label, mask, parts):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    runs = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return {
        "id": number,
        "image_id": image,
        "category_id": label,
        "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
        "area": int(mask.sum()),
        "iscrowd": int(parts is None),
        "segmentation": runs if parts is None else [np.round(part, 2).reshape(-1).tolist() for part in parts],
    }
