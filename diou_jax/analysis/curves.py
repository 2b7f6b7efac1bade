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
class RawCurve:
    """Precision and recall after each detection of one class at one IoU, by descending score; empty without any.

    Attributes:
      scores: float64 (n,).
      precision: float64 (n,), not made monotone.
      recall: float64 (n,); NaN without objects.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


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
    raise NotImplementedError


def raw_curve(matches: Matches, row: int, *, iou: float = 0.5) -> RawCurve:
    """The curve of a class, given as a row of `Matches.class_names`, as it is."""
    raise NotImplementedError


def score_histogram(matches: Matches, *, iou: float = 0.5, bins: int = 50) -> ScoreHistogram:
    """Right and wrong detections of each class by score; those that COCOeval ignores are in neither."""
    raise NotImplementedError


def best_thresholds(matches: Matches, *, iou: float = 0.5) -> tuple[BestThreshold, ...]:
    """The threshold with the best F1 of each class; the largest one, if several are best."""
    raise NotImplementedError


def best_threshold(matches: Matches, *, iou: float = 0.5) -> BestThreshold:
    """The one threshold for all classes with the best F1 of all detections and objects together."""
    raise NotImplementedError
