"""Detection in image files: pictures and a json."""

import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from diou_jax import visualize
from diou_jax.compilation import cache_compilations
from diou_jax.data.dataset import BadImageError
from diou_jax.data.transforms import decode_upright
from diou_jax.errors import UserError
from diou_jax.logging import say
from diou_jax.open_options import settle
from diou_jax.predictor import Detector, Result

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RESULTS_FILE = "detections.json"

# Images in memory at once.
CHUNK = 16


def predict(
    config: ConfigDict,
    workdir: str | os.PathLike,
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    draw_threshold: float = 0.5,
) -> None:
    """Runs the newest checkpoint of `workdir` over an image or a folder of them.

    Args:
      config: of the network.
      workdir: of its run.
      source: an image, or a folder that is searched with those below it.
      output: folder for a picture of each image, under its name below `source`, and for ``detections.json``: boxes in
        inclusive pixels, scores, classes and names of all detections, and the files that could not be read.
      draw_threshold: pictures show higher scores only.

    Raises:
      UserError: there is no checkpoint, no image, or `output` cannot be written or would overwrite the images.
    """
    source, output = pathlib.Path(source), pathlib.Path(output)
    files = find_images(source)
    folder = source if source.is_dir() else source.parent
    if output.resolve() == folder.resolve():
        raise UserError(f"--output {output} is where the images are; they would be overwritten")
    cache_compilations(config.log.compilation_cache)
    detector = Detector.from_checkpoint(workdir, settle(config, workdir))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from None

    def show(path, image, result):
        shown = result.scores > draw_threshold
        picture = visualize.draw(
            image,
            result.boxes[shown],
            result.classes[shown],
            result.scores[shown],
            class_names=detector.class_names,
        )
        visualize.write_image(output / path.relative_to(folder).with_suffix(f"{path.suffix}.png"), picture)

    entries, unreadable = [], []
    try:
        with ThreadPoolExecutor() as pool, tqdm(total=len(files), unit="image") as progress:
            for start in range(0, len(files), CHUNK):
                paths = files[start : start + CHUNK]
                found = dict(zip(paths, pool.map(read_image, paths)))
                images = {path: image for path, image in found.items() if isinstance(image, np.ndarray)}
                unreadable += [str(error) for error in found.values() if isinstance(error, BadImageError)]
                results = detector(list(images.values()))
                list(pool.map(show, images, images.values(), results))
                names = [path.relative_to(folder).as_posix() for path in images]
                entries += map(as_entry, names, images.values(), results)
                progress.update(len(paths))
    finally:
        # Also what was found until somebody stopped it.
        (output / RESULTS_FILE).write_text(as_json(entries, unreadable))
    say(f"{len(entries)} images, {sum(len(entry['scores']) for entry in entries)} detections: {output / RESULTS_FILE}")
    for line in unreadable:
        say(f"not read: {line}")


def find_images(source: pathlib.Path) -> list[pathlib.Path]:
    """The image files that `source` is or holds, sorted; raises UserError where there are none."""
    if not source.exists():
        raise UserError(f"--input {source} does not exist")
    files = (
        sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if source.is_dir()
        else [source]
    )
    if not files:
        raise UserError(f"--input {source} holds no image files ({', '.join(SUFFIXES)})")
    return files


def read_image(path: pathlib.Path) -> np.ndarray | BadImageError:
    """An image as its viewer shows it, uint8 (H, W, 3) BGR, or what is wrong with the file."""
    try:
        return decode_upright(path.read_bytes(), str(path))
    except OSError as error:
        return BadImageError(f"{path}: cannot be read ({error.strerror})")
    except BadImageError as error:
        return error


def as_entry(name: str, image: np.ndarray, result: Result) -> dict:
    """What the json says of one image."""
    return {
        "file": name,
        "width": image.shape[1],
        "height": image.shape[0],
        "boxes": np.round(result.boxes.astype(np.float64), 3).tolist(),
        "scores": np.round(result.scores.astype(np.float64), 5).tolist(),
        "classes": result.classes.tolist(),
        "names": list(result.names),
    }


def as_json(entries: list[dict], unreadable: list[str]) -> str:
    """One object, with a line for each image."""
    lines = ",\n".join(map(json.dumps, entries))
    return f'{{"images": [\n{lines}\n],\n"unreadable": {json.dumps(unreadable)}}}\n'
