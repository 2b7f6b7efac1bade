"""Why AP is lost: the kind of each error, and the AP that mending all errors of a kind would give.

The kinds are those of Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors" (2020).
"""

import dataclasses
import enum

import numpy as np

from diou_jax.analysis.matches import LEAST_IOU, Matches


class Kind(enum.IntEnum):
    """What a detection, or an object, is at an IoU threshold."""

    RIGHT = 0
    IGNORED = 1
    CLASS = 2
    PLACE = 3
    BOTH = 4
    DUPLICATE = 5
    BACKGROUND = 6
    MISSED = 7


# The kinds that are errors; the last one is of objects, the others are of detections.
ERRORS = (Kind.CLASS, Kind.PLACE, Kind.BOTH, Kind.DUPLICATE, Kind.BACKGROUND, Kind.MISSED)


@dataclasses.dataclass(frozen=True)
class Errors:
    """The kinds of all detections and objects, area range "all".

    Attributes:
      found: int8 (T, D), the `Kind` of each detection, all but MISSED.
      target: int32 (T, D), the object that a CLASS, PLACE, BOTH or DUPLICATE error is about; else -1.
      true: int8 (T, G): RIGHT for a found object, IGNORED for a crowd, CLASS or PLACE for an object that was not found
        but that such an error is about, else MISSED.
    """

    found: np.ndarray
    target: np.ndarray
    true: np.ndarray


@dataclasses.dataclass(frozen=True)
class Gains:
    """AP gained by mending all errors of one kind, the others left as they are; the gains of kinds do not add up.

    Attributes:
      counts: int64 (N,) by error, at IoU 0.5: detections by their own class, objects for MISSED.
      ap: gain of AP by error, mean over classes and IoU thresholds, where the kinds are those of each threshold.
      ap50: gain of AP50 by error.
      class_ap: float64 (N,) by error, gain of each class's AP; NaN without objects.
      class_ap50: likewise of AP50.
    """

    counts: dict[Kind, np.ndarray]
    ap: dict[Kind, float]
    ap50: dict[Kind, float]
    class_ap: dict[Kind, np.ndarray]
    class_ap50: dict[Kind, np.ndarray]


def find_errors(matches: Matches, *, background_iou: float = LEAST_IOU) -> Errors:
    """The kind of each detection and object at each IoU threshold t.

    A detection that COCOeval counts as wrong gets the first kind that fits. Crowds are no objects here.

    * PLACE: its largest IoU with an object of its class is at least `background_iou` and below t.
    * CLASS: its largest IoU with an object of another class is at least t.
    * DUPLICATE: its largest IoU with an object of its class is at least t; a detection of higher score has the object.
    * BACKGROUND: its IoU with every object is below `background_iou`.
    * BOTH: the rest; it is near an object of another class, with an IoU below t.

    An object without a detection is MISSED, unless a CLASS or PLACE error is about it.
    """
    raise NotImplementedError


def gains(matches: Matches, errors: Errors) -> Gains:
    """What mending all errors of a kind gives.

    * CLASS, PLACE: the detection gets the class or the box of its object and is right. If the object is found already,
      or if several such errors are about it, all but the one of the highest score are removed.
    * BOTH, DUPLICATE, BACKGROUND: the detections are removed.
    * MISSED: the objects are removed. A class that loses all its objects so has an AP of 1.
    """
    raise NotImplementedError
