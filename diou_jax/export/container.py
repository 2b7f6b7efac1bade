"""The file of an exported detector: a zip of its programs, their weights and a description, readable without diou-jax.

``metadata.json``
    Classes, images, thresholds and versions, see `describe` and docs/export.md.
``weights.npz``
    The arrays that every program takes, once for all.
``programs/HEIGHTxWIDTH.bin``
    One program for each size of images, as ``jax.export`` serialises it.
"""

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

import diou_jax
from diou_jax.data.view import Size
from diou_jax.errors import UserError
from diou_jax.export.program import ImageRules
from diou_jax.files import printable, reason, replacing

# The arrangement of the file; a reader refuses numbers that it does not know.
FORMAT = 1


def describe(
    programs: Mapping[Size, export.Exported],
    rules: ImageRules,
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """The entries of ``metadata.json`` on images, programs and versions; JSON values."""
    first = next(iter(programs.values()))
    return {
        "format": FORMAT,
        "versions": {
            "diou_jax": diou_jax.__version__,
            "jax": jax.__version__,
            "calling_convention": first.calling_convention_version,
        },
        "platforms": list(first.platforms),
        "class_names": list(class_names),
        "category_ids": list(category_ids),
        "batch": rules.batch,
        "channels": "RGB" if rules.rgb else "BGR",
        "takes_sizes": rules.any_size,
        "boxes": "x1, y1, x2, y2 in pixels of the image; the corner pixels belong to the box",
        "programs": [{"file": _name(size), "height": size[0], "width": size[1]} for size in programs],
    }


def write(
    path: str | os.PathLike,
    programs: Mapping[Size, export.Exported],
    weights: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, Any],
) -> None:
    """Writes the file atomically.

    Args:
      path: the file; one that exists is replaced.
      programs: programs by height and width of their images.
      weights: the arrays that they take.
      metadata: JSON values, at least those of `describe`.

    Raises:
      UserError: if it cannot be written.
    """
    path = pathlib.Path(path)
    try:
        # Entries without a time of day, so that equal contents give equal files.
        with replacing(path) as draft, zipfile.ZipFile(draft, "w") as file:
            text = json.dumps(metadata, indent=1, allow_nan=False)
            file.writestr(zipfile.ZipInfo("metadata.json"), text, zipfile.ZIP_DEFLATED)
            # Weights are as good as random: the entry is stored, since compression would only take time.
            with file.open(zipfile.ZipInfo("weights.npz"), "w", force_zip64=True) as arrays:
                np.savez(arrays, allow_pickle=False, **weights)
            for size, program in programs.items():
                file.writestr(zipfile.ZipInfo(_name(size)), bytes(program.serialize()), zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise UserError(f"--output {printable(path)} cannot be written: {reason(error)}; name another") from None


def _name(size):
    return "programs/{}x{}.bin".format(*size)
