"""Which class is taken for which: the confusion matrix of a detector."""

import dataclasses

import numpy as np

from diou_jax.analysis.matches import Matches


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A confusion matrix with a background.

    Attributes:
      counts: int64 (N + 1, N + 1), rows are true classes, columns classes of detections; the last row is false
        detections, the last column missed objects, their corner 0.
      class_names: N names.
      score_threshold: the least score of the detections.
      iou: the least IoU of a match.
    """

    counts: np.ndarray
    class_names: tuple[str, ...]
    score_threshold: float
    iou: float


def confusion(matches: Matches, *, score_threshold: float = 0.5, iou: float = 0.5) -> Confusion:
    """Counts detections of at least `score_threshold` by their class and that of the object they match.

    Matching is COCOeval's, but over all classes together: by descending score each detection takes, among the objects
    of its image that are free and overlap it by `iou` or more, the one with the largest IoU, of whatever class. A
    detection without an object that lies in a crowd of its own class, by `iou` of its area or more, is not counted;
    crowds are not either.
    """
    raise NotImplementedError
