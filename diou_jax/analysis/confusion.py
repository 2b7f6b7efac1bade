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
    found, true, overlaps = matches.found, matches.true, matches.overlaps
    background = len(matches.class_names)
    kept = found.scores >= score_threshold
    strong = kept[overlaps.found] & (overlaps.ious >= iou)
    free = strong & ~true.crowd[overlaps.true]
    rows, targets, ious = overlaps.found[free], overlaps.true[free], overlaps.ious[free]
    order = np.lexsort((targets, -ious, rows, -found.scores[rows]))
    taken: dict[int, int] = {}
    done: set[int] = set()
    for row, target in zip(rows[order].tolist(), targets[order].tolist(), strict=True):
        if row not in done and target not in taken:
            taken[target] = row
            done.add(row)

    matched = np.zeros(len(found), bool)
    matched[list(done)] = True
    crowded = strong & true.crowd[overlaps.true] & (found.classes[overlaps.found] == true.classes[overlaps.true])
    in_crowd = np.zeros(len(found), bool)
    in_crowd[overlaps.found[crowded]] = True
    missed = ~true.crowd
    missed[list(taken)] = False

    counts = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(counts, (true.classes[list(taken)], found.classes[list(taken.values())]), 1)
    counts[-1, :-1] = np.bincount(found.classes[kept & ~matched & ~in_crowd], minlength=background)
    counts[:-1, -1] = np.bincount(true.classes[missed], minlength=background)
    return Confusion(counts, matches.class_names, score_threshold, iou)
