"""The json that prediction writes: an entry for each image, each video and each frame of a video."""

import json
import pathlib
from typing import Any

import numpy as np

from diou_jax.errors import UserError
from diou_jax.files import printable, reason, replacing
from diou_jax.prediction.result import Result

RESULTS_FILE = "detections.json"


def detections(result: Result) -> dict[str, Any]:
    """The detections of an image or a frame."""
    return {
        "boxes": np.round(result.boxes.astype(np.float64), 3).tolist(),
        "scores": np.round(result.scores.astype(np.float64), 5).tolist(),
        "classes": result.classes.tolist(),
        "names": list(result.names),
        **({} if result.rles is None else {"masks": list(result.rles)}),
    }


def image_entry(path: pathlib.Path, result: Result, *, name: pathlib.PurePath, picture: pathlib.PurePath) -> dict:
    """The entry of the image at `path`; `picture` is relative to the json, `name` to the folder of all inputs."""
    height, width = result.size
    about = {"file": name.as_posix(), "path": path.as_posix(), "picture": picture.as_posix()}
    return {**about, "width": width, "height": height, **detections(result)}


def write_results(path: pathlib.Path, images: list[dict], *, videos: list[dict], unreadable: list[str]) -> None:
    """Writes the json atomically: one object, with a line for each image and video; raises UserError."""
    parts = [
        f'"{name}": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]"
        for name, entries in (("images", images), ("videos", videos))
    ]
    try:
        with replacing(path) as draft:
            draft.write_text("{" + ",\n".join([*parts, f'"unreadable": {json.dumps(unreadable)}']) + "}\n")
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be written: {reason(error)}; name another --output") from None
