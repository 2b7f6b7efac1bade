"""The score thresholds with the best F1 of each class, which an evaluation leaves for prediction."""

import json
import math
import os

import numpy as np

from diou_jax.analysis.curves import best_thresholds
from diou_jax.analysis.matches import Matches
from diou_jax.files import replacing


def write_thresholds(path: str | os.PathLike, matches: Matches) -> None:
    """Writes ``{class name: threshold}`` as JSON, atomically, for ``--score_threshold`` of a prediction.

    Detections with higher scores than the threshold have the best F1 at IoU 0.5. A class without objects, or of which
    no detection is right, has none and is left out.
    """
    thresholds = {
        # A detection whose score is the threshold itself counts: prediction compares float32 and wants more.
        name: float(np.nextafter(np.float32(best.threshold), np.float32(0)))
        for name, best in zip(matches.class_names, best_thresholds(matches), strict=True)
        if not math.isnan(best.threshold)
    }
    with replacing(path) as draft:
        draft.write_text(json.dumps(thresholds, indent=2) + "\n")
