"""All that a report says about the detections of one kind in one test set, computed once."""

import dataclasses

import numpy as np

from diou_jax.analysis.confusion import Confusion, confusion
from diou_jax.analysis.crowding import Bins, IouHistogram, by_crowdedness, by_size, iou_histogram
from diou_jax.analysis.curves import (
    BestThreshold,
    PrecisionRecall,
    ScoreHistogram,
    best_threshold,
    best_thresholds,
    precision_recall,
    score_histogram,
)
from diou_jax.analysis.errors import Errors, Gains, find_errors, gains
from diou_jax.analysis.intervals import Intervals, bootstrap
from diou_jax.analysis.matches import Matches
from diou_jax.analysis.worst_images import ImageErrors, worst_images

# The number of images that a report shows.
WORST = 12

# The score from which detections count in a confusion matrix where no threshold is best, as nothing is right.
USUAL_THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True)
class Findings:
    """The analysis of the detections in a test set.

    Attributes:
      matches: the outcome of COCOeval.
      intervals: its numbers, with bootstrap intervals.
      precision_recall: curves of all classes and IoU thresholds.
      scores: right and wrong detections by score at IoU 0.5.
      threshold: the best score threshold for all classes together.
      thresholds: the best ones of each class, N.
      confusion: which class is taken for which, at `threshold`.
      sizes: results by size.
      crowdedness: results by crowdedness.
      errors: the kind of each error.
      gains: AP that mending a kind would give.
      ious: matches by IoU.
      worst: the images with the largest losses.
    """

    matches: Matches
    intervals: Intervals
    precision_recall: PrecisionRecall
    scores: ScoreHistogram
    threshold: BestThreshold
    thresholds: tuple[BestThreshold, ...]
    confusion: Confusion
    sizes: Bins
    crowdedness: Bins
    errors: Errors
    gains: Gains
    ious: IouHistogram
    worst: list[ImageErrors]

    @property
    def by_objects(self) -> list[int]:
        """Rows of the classes, those with most objects first."""
        return np.argsort(-self.matches.objects(), kind="stable").tolist()

    @property
    def shown_from(self) -> float:
        """The score from which on detections are shown."""
        return self.threshold.threshold if np.isfinite(self.threshold.threshold) else USUAL_THRESHOLD


def analyse(matches: Matches, *, seed: int = 0, worst: int = WORST) -> Findings:
    """The whole analysis of one kind of detections; `seed` is that of the bootstrap."""
    threshold = best_threshold(matches)
    errors = find_errors(matches)
    finite = np.isfinite(threshold.threshold)
    return Findings(
        matches=matches,
        intervals=bootstrap(matches, seed=seed),
        precision_recall=precision_recall(matches),
        scores=score_histogram(matches, bins=20),
        threshold=threshold,
        thresholds=best_thresholds(matches),
        confusion=confusion(matches, score_threshold=threshold.threshold if finite else USUAL_THRESHOLD),
        sizes=by_size(matches),
        crowdedness=by_crowdedness(matches),
        errors=errors,
        gains=gains(matches, errors),
        ious=iou_histogram(matches),
        worst=worst_images(matches, errors, count=worst),
    )
