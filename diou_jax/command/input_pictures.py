"""A page with pictures of the training's input: each image as the network sees it, with its boxes and masks."""

import html
import os
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from pycocotools import mask as coco_mask

from diou_jax.boxes import to_input
from diou_jax.data.reader import Reader
from diou_jax.detection.preprocess import normalise
from diou_jax.files import replacing
from diou_jax.masks import Rle
from diou_jax.reporting import picture_files, visualize
from diou_jax.reporting.visualize import Objects
from diou_jax.structures import Batch

PAGE = "index.html"

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; color: #222; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1.2rem; }
figure { margin: 0; } img { width: 100%; background: #eee; } figcaption { font-size: 13px; color: #555; }
"""


def write_pictures(
    reader: Reader, folder: str | os.PathLike, *, class_names: Sequence[str], means: Sequence[float], count: int = 32
) -> pathlib.Path:
    """Writes the first images of a training, as its network sees them, and a page that shows them.

    Args:
      reader: makes the training's batches.
      folder: where the pictures and the page go; it is made.
      class_names: K names, the background first.
      means: of blue, green and red; the network sees differences from them. Padding has this colour.
      count: number of pictures.

    Returns:
      The path of the page.

    Raises:
      OSError: if a file cannot be written.
      BadImageError: if an image cannot be read and the reader does not skip it.
    """
    folder = pathlib.Path(folder)
    figures = []
    for number, (picture, caption) in zip(range(count), _pictures(reader, class_names, means)):
        name = f"{number:03d}{picture_files.SUFFIX}"
        picture_files.write(folder / name, picture)
        figures.append(
            f'<figure><a href="{name}"><img src="{name}" alt="" loading="lazy"></a>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    changes = "".join(f"<li><code>{html.escape(str(change))}</code></li>" for change in reader.augmentations)
    text = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Training input</title>'
        f"<style>{STYLE}</style></head><body><h1>The training&rsquo;s input</h1>"
        f"<p>The first {len(figures)} images of {html.escape(reader.dataset.name)}, in the order of the training, as "
        "the network sees them. The grey of the padding is the mean colour, which the network sees as 0. Each image "
        f"has gone through, in this order:</p><ul>{changes}</ul><main>{''.join(figures)}</main></body></html>\n"
    )
    with replacing(folder / PAGE) as draft:
        draft.write_text(text, encoding="utf-8")
    return folder / PAGE


def _pictures(reader, class_names, means) -> Iterator[tuple[np.ndarray, str]]:
    """Pictures of the images of all steps, uint8 BGR, with a caption."""
    seen = jax.jit(lambda batch: normalise(batch, means) + np.float32(means))
    step = 0
    while True:
        batch, _ = reader(step)
        inputs = np.clip(np.rint(np.asarray(seen(batch))), 0, 255).astype(np.uint8)
        boxes = np.asarray(to_input(batch.gt.boxes, batch.placement, edges=True))
        for row in np.flatnonzero(batch.present).tolist():
            valid = batch.gt.valid[row]
            objects = Objects(
                boxes[row][valid],
                batch.gt.classes[row][valid],
                crowd=batch.gt.crowd[row][valid],
                rles=_masks(batch, row, inputs.shape[1:3]),
            )
            yield visualize.draw(inputs[row], objects, class_names=class_names), _caption(reader, batch, row)
        step += 1


def _caption(reader, batch: Batch, row: int) -> str:
    height, width = batch.original_size[row].tolist()
    shown_height, shown_width = batch.image_size[row].tolist()
    factor = float(batch.placement.scale[row, 0])
    return (
        f"{reader.dataset.image_name(int(batch.index[row]))}: {width}x{height} times {factor:.2f}, "
        f"{shown_width}x{shown_height} shown{', mirrored' if batch.placement.mirrored[row] else ''}, "
        f"objects: {int(batch.gt.valid[row].sum())}"
    )


def _masks(batch: Batch, row: int, size):
    """The masks of an image's objects in its input of a height and width; None for a batch without outlines."""
    outlines = batch.gt.masks
    if outlines is None:
        return None
    placement, found = batch.placement, []
    for points, part in zip(outlines.points[row], outlines.part[row]):
        placed = points * placement.scale[row, ::-1] + placement.offset[row, ::-1]
        rings = [placed[part == number].ravel().tolist() for number in range(part.max() + 1)]
        rings = [ring for ring in rings if len(ring) >= 6]
        found.append(_encoded(rings, size, shown=batch.image_size[row]) if rings else None)
    return [mask for mask, valid in zip(found, batch.gt.valid[row]) if valid]


def _encoded(rings, size, *, shown) -> Rle:
    """Rings of flat coordinates as a mask of a height and width, empty beyond the height and width `shown`."""
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, *size)))
    mask[shown[0] :], mask[:, shown[1] :] = 0, 0
    return Rle(size=list(size), counts=coco_mask.encode(np.asfortranarray(mask))["counts"].decode("ascii"))
