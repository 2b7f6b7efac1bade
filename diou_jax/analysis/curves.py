"""Curves over the score: precision and recall, the histogram of scores, and the score with the best F1."""

import dataclasses

import numpy as np

from diou_jax.analysis.matches import Matches


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """COCOeval's curve, made monotone and read at 101 recalls.

    Attributes:
      recalls: float64 (101,).
      precision: float64 (T, N, 101); NaN for a class without objects, 0 beyond the largest recall.
      scores: float64 (T, N, 101), the score at which the recall is reached; NaN where it is not.
    """

    recalls: np.ndarray
    precision: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class ScoreHistogram:
    """Detections by score.

    Attributes:
      edges: float64 (bins + 1,), from 0 to 1.
      right: int64 (N, bins), matched with an object.
      wrong: int64 (N, bins), not matched.
    """

    edges: np.ndarray
    right: np.ndarray
    wrong: np.ndarray


@dataclasses.dataclass(frozen=True)
class BestThreshold:
    """The score threshold with the largest F1, the harmonic mean of precision and recall.

    All values are NaN if there are no objects or no detection is right.

    Attributes:
      threshold: detections of at least this score are kept.
      f1: F1 of these detections.
      precision: their precision.
      recall: their recall.
    """

    threshold: float
    f1: float
    precision: float
    recall: float


def precision_recall(matches: Matches, *, area: int = 0) -> PrecisionRecall:
    """COCOeval's curves of all classes and IoU thresholds in an area range."""
    shape = len(matches.iou_thresholds), len(matches.class_names), len(matches.recalls)
    precision, scores = np.full(shape, np.nan), np.full(shape, np.nan)
    objects, right, wrong = matches.objects(area), matches.right(area), matches.wrong(area)
    for row in np.flatnonzero(objects).tolist():
        mine = matches.rows(row)
        for threshold in range(shape[0]):
            kept = np.flatnonzero(right[threshold, mine] | wrong[threshold, mine])
            hits = np.cumsum(right[threshold, mine][kept])
            envelope = np.maximum.accumulate((hits / np.arange(1, len(kept) + 1))[::-1])[::-1]
            first = np.searchsorted(hits / objects[row], matches.recalls)
            reached = first < len(kept)
            precision[threshold, row] = 0
            precision[threshold, row, reached] = envelope[first[reached]]
            scores[threshold, row, reached] = matches.found.scores[mine][kept[first[reached]]]
    return PrecisionRecall(matches.recalls, precision, scores)


def score_histogram(matches: Matches, *, iou: float = 0.5, bins: int = 50) -> ScoreHistogram:
    """Right and wrong detections of each class by score; those that COCOeval ignores are in neither."""
    edges, threshold = np.linspace(0, 1, bins + 1), matches.threshold(iou)
    place = np.clip(np.searchsorted(edges, matches.found.scores, side="right") - 1, 0, bins - 1)
    cells = matches.found.classes.astype(np.int64) * bins + place
    count = len(matches.class_names) * bins
    right, wrong = (
        np.bincount(cells[kept[threshold]], minlength=count).reshape(-1, bins)
        for kept in (matches.right(), matches.wrong())
    )
    return ScoreHistogram(edges, right, wrong)


def best_thresholds(matches: Matches, *, iou: float = 0.5) -> tuple[BestThreshold, ...]:
    """The threshold with the best F1 of each class; the largest one, if several are best."""
    threshold, objects = matches.threshold(iou), matches.objects().tolist()
    right, wrong, scores = matches.right()[threshold], matches.wrong()[threshold], matches.found.scores
    return tuple(
        _best_f1(scores[mine], right[mine], wrong[mine], objects[row])
        for row, mine in enumerate(map(matches.rows, range(len(objects))))
    )


def best_threshold(matches: Matches, *, iou: float = 0.5) -> BestThreshold:
    """The one threshold for all classes with the best F1 of all detections and objects together."""
    threshold, order = matches.threshold(iou), np.argsort(-matches.found.scores, kind="stable")
    right, wrong = matches.right()[threshold, order], matches.wrong()[threshold, order]
    objects = int(matches.objects().sum())
    return _best_f1(matches.found.scores[order], right, wrong, objects)


def _best_f1(scores: np.ndarray, right: np.ndarray, wrong: np.ndarray, objects: int) -> BestThreshold:
    """The best threshold of detections (n,) by descending score; those neither right nor wrong do not count."""
    kept = right | wrong
    scores, hits = scores[kept], np.cumsum(right[kept])
    # A threshold keeps all detections of equal score or none: F1 counts at the last of them.
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)[: len(scores)])
    scores, hits, found = scores[last], hits[last], last + 1
    f1 = 2 * hits / (found + objects)
    if not objects or not (f1 > 0).any():
        return BestThreshold(np.nan, np.nan, np.nan, np.nan)
    best = int(f1.argmax())  # the first of equal ones, which has the largest score
    return BestThreshold(*(float(values[best]) for values in (scores, f1, hits / found, hits / objects)))
