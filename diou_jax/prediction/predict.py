"""Detection in image files, with pictures and a json as results."""

import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diou_jax.checkpoint.checkpoints import LAST
from diou_jax.compilation import prepare
from diou_jax.data.dataset import BadImageError
from diou_jax.data.decoding import decode_upright
from diou_jax.errors import UserError
from diou_jax.files import printable, regular_file, writable_folder
from diou_jax.options.open_options import settle
from diou_jax.prediction.detector import Detector, Result
from diou_jax.prediction.image_folder import find_images
from diou_jax.reporting import picture_files, visualize
from diou_jax.reporting.progress import images_progress
from diou_jax.reporting.run_log import print_line

RESULTS_FILE = "detections.json"

# Number of images in memory at once.
CHUNK = 16


def predict(
    config: ConfigDict,
    workdir: str | os.PathLike,
    source: str | os.PathLike,
    *,
    output: str | os.PathLike,
    draw_threshold: float = 0.5,
    checkpoint: str = LAST,
) -> bool:
    """Detects with a checkpoint of `workdir` in an image or a folder of images.

    Args:
      config: config of the network.
      workdir: the run's folder.
      source: an image, or a folder that is searched with all folders below it.
      output: folder for a JPEG picture of each image, named as the image below `source` with ``.jpg`` appended, and for
        ``detections.json``. The json has for each image its path, its picture, and boxes in inclusive pixels, scores,
        classes, names and, if the detector has masks, COCO's run lengths of all detections; and the files that could
        not be read.
      draw_threshold: pictures show detections with higher scores.
      checkpoint: "last", "best" or the step of one; see `Detector.from_checkpoint`.

    Returns:
      Whether at least one image could be read.

    Raises:
      UserError: if there is no checkpoint or no image, or `output` cannot be written or would overwrite the images.
    """
    source, output = pathlib.Path(source), pathlib.Path(output)
    found = find_images(source)
    folder = source if source.is_dir() else source.parent
    pictures = {path: picture_files.beside(path.relative_to(folder)) for path in found.images}
    _keep_images(found.images, pictures, folder, output)
    prepare(config.log.compilation_cache)
    detector = Detector.from_checkpoint(workdir, settle(config, workdir), checkpoint=checkpoint)
    writable_folder(output, "--output")
    for line in found.passed_over:
        print_line(f"passed over: {line}")

    def show(path, image, result):
        shown = np.flatnonzero(result.scores > draw_threshold).tolist()
        rles = None if result.rles is None else [result.rles[row] for row in shown]
        objects = visualize.Objects(result.boxes[shown], result.classes[shown], scores=result.scores[shown], rles=rles)
        picture = visualize.draw(image, objects, class_names=detector.class_names)
        picture_files.write(output / pictures[path], picture)
        return as_entry(path, image, result, folder=folder, picture=pictures[path])

    entries: list[dict[str, Any]] = []
    unreadable = list(found.unreadable)
    try:
        with ThreadPoolExecutor() as pool, images_progress(len(found.images), title="prediction") as progress:
            for start in range(0, len(found.images), CHUNK):
                paths = found.images[start : start + CHUNK]
                read = dict(zip(paths, pool.map(read_image, paths)))
                images = {path: image for path, image in read.items() if isinstance(image, np.ndarray)}
                unreadable += [str(error) for error in read.values() if isinstance(error, BadImageError)]
                results = detector(list(images.values()))
                entries += pool.map(show, images, images.values(), results)
                progress.update(len(paths))
    except OSError as error:
        raise UserError(f"--output {printable(output)} cannot be written: {error.strerror}") from None
    finally:
        # An interrupted run writes the results so far, too.
        _write_results(output / RESULTS_FILE, entries, unreadable)
    detections = sum(len(entry["scores"]) for entry in entries)
    print_line(f"{len(entries)} images, {detections} detections: {printable(output / RESULTS_FILE)}")
    for line in unreadable:
        print_line(f"not read: {line}")
    return bool(entries)


def _keep_images(images, pictures, folder, output):
    """Raises UserError if a picture would overwrite an image or lie among the images."""
    if output.resolve() == folder.resolve():
        raise UserError(f"--output {printable(output)} is where the images are; name another, or they would be mixed")
    taken = {path.resolve() for path in images} & {(output / picture).resolve() for picture in pictures.values()}
    if taken:
        raise UserError(f"--output {printable(output)}: the image {printable(min(taken))} would be overwritten")


def _write_results(path, entries, unreadable):
    """Writes the json atomically."""
    draft = path.with_name(path.name + ".tmp")
    try:
        draft.write_text(as_json(entries, unreadable))
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be written: {error.strerror}") from None


def read_image(path: pathlib.Path) -> np.ndarray | BadImageError:
    """An image as a viewer shows it, uint8 (H, W, 3) BGR, or the error if it cannot be read."""
    try:
        return decode_upright(regular_file(path).read_bytes(), printable(path))
    except OSError as error:
        return BadImageError(f"{printable(path)}: cannot be read ({error.strerror})")
    except BadImageError as error:
        return error
    except UserError as error:
        return BadImageError(str(error))


def as_entry(
    path: pathlib.Path, image: np.ndarray, result: Result, *, folder: pathlib.Path, picture: pathlib.PurePath
) -> dict:
    """The json's entry for the image at `path`; `picture` is relative to the json, ``file`` to `folder`."""
    return {
        "file": path.relative_to(folder).as_posix(),
        "path": path.as_posix(),
        "picture": picture.as_posix(),
        "width": image.shape[1],
        "height": image.shape[0],
        "boxes": np.round(result.boxes.astype(np.float64), 3).tolist(),
        "scores": np.round(result.scores.astype(np.float64), 5).tolist(),
        "classes": result.classes.tolist(),
        "names": list(result.names),
        **({} if result.rles is None else {"masks": list(result.rles)}),
    }


def as_json(entries: list[dict], unreadable: list[str]) -> str:
    """The json: one object, with a line for each image."""
    lines = ",\n".join(map(json.dumps, entries))
    return f'{{"images": [\n{lines}\n],\n"unreadable": {json.dumps(unreadable)}}}\n'
