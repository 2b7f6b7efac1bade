"""Why AP is lost: the kind of each error, and the AP that mending all errors of a kind would give.

The kinds are those of Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors" (2020), and the
numbers are those of the published tool but for four points. In the tool a class error and a place error about one
object exclude each other, though only one kind is mended; here each kind is mended alone. The tool counts errors among
detections that crowds excuse, compares recall with hundredths that differ from COCOeval's in the last bit, and gives an
AP of 0 to a class that loses all its objects.
"""

import dataclasses
import enum

import numpy as np

from diou_jax.analysis.average_precision import read_precision
from diou_jax.analysis.matches import LEAST_IOU, Matches


class Kind(enum.IntEnum):
    """The kind of a detection, or of an object, at an IoU threshold."""

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


def find_errors(matches: Matches) -> Errors:
    """The kind of each detection and object at each IoU threshold t.

    A detection that COCOeval counts as wrong gets the first kind that fits. Crowds are no objects here.

    * PLACE: its largest IoU with an object of its class is at least 0.1 and below t.
    * CLASS: its largest IoU with an object of another class is at least t.
    * DUPLICATE: its largest IoU with an object of its class is at least t; a detection of higher score has the object.
    * BACKGROUND: its IoU with every object is below 0.1.
    * BOTH: the rest; it is near an object of another class, with an IoU below t.

    An object without a detection is MISSED, unless a CLASS or PLACE error is about it.
    """
    true, own = matches.true, matches.same_class()
    objects = ~true.ignored[0, matches.overlaps.true]
    own_iou, own_target = matches.largest_overlap(own & objects)
    other_iou, other_target = matches.largest_overlap(~own & objects)

    kinds = np.where(matches.right(), Kind.RIGHT, Kind.IGNORED).astype(np.int8)
    targets = np.full(kinds.shape, -1, np.int32)
    of_objects = np.where(true.ignored[0], Kind.IGNORED, Kind.MISSED).astype(np.int8)
    of_objects = np.repeat(of_objects[None], len(kinds), 0)
    for row, (threshold, wrong) in enumerate(zip(matches.iou_thresholds, matches.wrong(), strict=True)):
        rules = {
            Kind.PLACE: (own_iou >= LEAST_IOU) & (own_iou < threshold),
            Kind.CLASS: other_iou >= threshold,
            Kind.DUPLICATE: own_iou >= threshold,
            Kind.BACKGROUND: np.maximum(own_iou, other_iou) < LEAST_IOU,
        }
        kinds[row, wrong] = np.select(list(rules.values()), list(rules), Kind.BOTH)[wrong]
        own_error = np.isin(kinds[row], (Kind.PLACE, Kind.DUPLICATE))
        other_error = np.isin(kinds[row], (Kind.CLASS, Kind.BOTH))
        targets[row, own_error], targets[row, other_error] = own_target[own_error], other_target[other_error]
        for kind in (Kind.CLASS, Kind.PLACE):
            of_objects[row, targets[row, kinds[row] == kind]] = kind
        of_objects[row, (true.matched[0, row] >= 0) & ~true.ignored[0]] = Kind.RIGHT
    return Errors(kinds, targets, of_objects)


def gains(matches: Matches, errors: Errors) -> Gains:
    """The AP gained by mending all errors of a kind.

    * CLASS, PLACE: the detection gets the class or the box of its object and is right. If the object is found already,
      or if several such errors are about it, all but the one of the highest score are removed.
    * BOTH, DUPLICATE, BACKGROUND: the detections are removed.
    * MISSED: the objects are removed. A class that loses all its objects so has an AP of 1.
    """
    half, objects = matches.threshold(0.5), matches.objects()
    before = np.full((len(matches.iou_thresholds), len(objects)), np.nan)
    after = {kind: before.copy() for kind in ERRORS}
    placed, moved = _mended(matches, errors, Kind.PLACE), np.nonzero(_mended(matches, errors, Kind.CLASS))
    for row in np.flatnonzero(objects).tolist():
        mine = matches.rows(row)
        kinds = errors.found[:, mine]
        right, counted = kinds == Kind.RIGHT, kinds != Kind.IGNORED
        missed = (errors.true[:, matches.true.classes == row] == Kind.MISSED).sum(1)
        left = {kind: counted & (kinds != kind) for kind in ERRORS}
        cases = {
            Kind.CLASS: _with_moved(matches, errors, row, right=right, counted=left[Kind.CLASS], moved=moved),
            Kind.PLACE: (right | placed[:, mine], left[Kind.PLACE] | placed[:, mine]),
            Kind.BOTH: (right, left[Kind.BOTH]),
            Kind.DUPLICATE: (right, left[Kind.DUPLICATE]),
            Kind.BACKGROUND: (right, left[Kind.BACKGROUND]),
        }
        before[:, row] = _average_precision(matches, right, counted, objects[row])
        for kind, case in cases.items():
            after[kind][:, row] = _average_precision(matches, *case, objects[row])
        mended = _average_precision(matches, right, counted, objects[row] - missed)
        after[Kind.MISSED][:, row] = np.where(missed < objects[row], mended, 1)

    gained = {kind: values - before for kind, values in after.items()}
    return Gains(
        counts={kind: _count(matches, errors, kind, half) for kind in ERRORS},
        ap={kind: _mean(values) for kind, values in gained.items()},
        ap50={kind: _mean(values[half]) for kind, values in gained.items()},
        class_ap={kind: values.mean(0) for kind, values in gained.items()},
        class_ap50={kind: values[half] for kind, values in gained.items()},
    )


def _with_moved(
    matches: Matches, errors: Errors, row: int, *, right: np.ndarray, counted: np.ndarray, moved: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """The right and the counted detections of a class, with those of others that it gets at some thresholds.

    `moved` has the thresholds and the rows of all detections that get another class.
    """
    threshold, extra = moved
    here = matches.true.classes[errors.target[threshold, extra]] == row
    extra, place = np.unique(extra[here], return_inverse=True)
    new = np.zeros((len(right), len(extra)), bool)
    new[threshold[here], place] = True
    every = np.concatenate([np.arange(len(matches.found))[matches.rows(row)], extra])
    order = np.lexsort((matches.found.images[every], -matches.found.scores[every]))
    return np.concatenate([right, new], 1)[:, order], np.concatenate([counted, new], 1)[:, order]


def _mended(matches: Matches, errors: Errors, kind: Kind) -> np.ndarray:
    """Which errors of a kind become right, bool (T, D): for each object that is not found the one of highest score."""
    mended = np.zeros(errors.found.shape, bool)
    for row, kinds in enumerate(errors.found):
        mine = np.flatnonzero(kinds == kind)
        mine = mine[errors.true[row, errors.target[row, mine]] != Kind.RIGHT]
        order = np.lexsort((mine, -matches.found.scores[mine], errors.target[row, mine]))
        _, first = np.unique(errors.target[row, mine[order]], return_index=True)
        mended[row, mine[order][first]] = True
    return mended


def _average_precision(matches: Matches, right: np.ndarray, counted: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """AP (T,) of the right detections among those that are counted, both bool (T, n)."""
    return read_precision(
        np.cumsum(right, 1), np.cumsum(counted, 1), np.broadcast_to(objects, len(right)), recalls=matches.recalls
    )


def _count(matches: Matches, errors: Errors, kind: Kind, threshold: int) -> np.ndarray:
    if kind == Kind.MISSED:
        classes = matches.true.classes[errors.true[threshold] == kind]
    else:
        classes = matches.found.classes[errors.found[threshold] == kind]
    return np.bincount(classes, minlength=len(matches.class_names))


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan
