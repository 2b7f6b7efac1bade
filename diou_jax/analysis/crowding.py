"""AP by size and by crowdedness of objects, and how well matched boxes lie."""

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

from diou_jax.analysis.average_precision import read_precision
from diou_jax.analysis.errors import Kind, find_errors
from diou_jax.analysis.matches import Matches

# Sides of a square of the object's area, in pixels: COCO's small, medium and large, each halved.
SIZE_EDGES = (0.0, 16.0, 32.0, 64.0, 96.0, 192.0, float("inf"))

# Largest IoU of an object's box with that of another object of its class. The first bin holds objects that touch none.
CROWDEDNESS_EDGES = (0.0, 1e-9, 0.1, 0.3, 0.5, float("inf"))


@dataclasses.dataclass(frozen=True)
class Bins:
    """Results by a property of the objects, in bins that include their lower edge.

    Attributes:
      edges: float64 (bins + 1,).
      objects: int64 (bins,), objects without crowds.
      ap: float64 (bins,), mean over IoU thresholds and classes with objects in the bin; NaN without objects.
      ap50: likewise at IoU 0.5.
      recall: float64 (bins,), part of the objects that are found, mean over IoU thresholds; NaN without objects.
      recall50: likewise at IoU 0.5.
      duplicates: float64 (bins,), duplicates for each object at IoU 0.5; NaN without objects.
    """

    edges: np.ndarray
    objects: np.ndarray
    ap: np.ndarray
    ap50: np.ndarray
    recall: np.ndarray
    recall50: np.ndarray
    duplicates: np.ndarray


def crowdedness(matches: Matches) -> np.ndarray:
    """float64 (G,): the largest IoU of each object's box with that of another object of its class and image.

    Boxes are compared for masks, too, since suppression compares boxes. Crowds do not count, theirs is 0.
    """
    true, largest = matches.true, np.zeros(len(matches.true))
    order = np.lexsort((true.classes, true.images))
    order = order[~true.crowd[order]]
    group = true.images[order].astype(np.int64) * len(matches.class_names) + true.classes[order]
    for mine in np.split(order, np.flatnonzero(np.diff(group)) + 1):
        if len(mine) > 1:
            ious = coco_mask.iou(true.boxes[mine], true.boxes[mine], np.zeros(len(mine), np.uint8))
            np.fill_diagonal(ious, 0)
            largest[mine] = ious.max(1)
    return largest


def by_property(matches: Matches, values: np.ndarray, edges: np.ndarray) -> Bins:
    """Results by bins of a property of the objects, float64 (G,).

    As with COCO's sizes, the objects of other bins are ignored, and so are the detections matched with them. A wrong
    detection belongs to the bin of the object of its class that it overlaps most, by an IoU of 0.1 or more; wrong
    detections elsewhere belong to no bin. So a bin's AP says how well objects like these are told apart and placed.
    """
    edges, found, true = np.asarray(edges, np.float64), matches.found, matches.true
    bins, half = len(edges) - 1, matches.threshold(0.5)
    objects = ~true.ignored[0]
    # Values outside all bins, and objects that do not count, are in the bin -1.
    place = np.where(objects, np.searchsorted(edges, values, side="right") - 1, -1)
    place[place >= bins] = -1
    _, near = matches.largest_overlap(matches.same_class() & objects[matches.overlaps.true])
    right = matches.right()
    target = np.where(right, found.matched[0], near)
    of_found = np.where(target >= 0, place[target], -1) if len(true) else np.full(target.shape, -1)
    of_found[~right & ~matches.wrong()] = -1

    precision, recall = np.full((bins, len(right)), np.nan), np.full((bins, len(right)), np.nan)
    counts, duplicates = np.bincount(place[place >= 0], minlength=bins), np.full(bins, np.nan)
    second = find_errors(matches).found[half] == Kind.DUPLICATE
    for row in np.flatnonzero(counts).tolist():
        rows = np.flatnonzero((of_found == row).any(0))
        counted, classes = of_found[:, rows] == row, found.classes[rows]
        hits = right[:, rows] & counted
        objects_of = np.bincount(true.classes[place == row], minlength=len(matches.class_names))
        precision[row] = np.mean(
            [
                read_precision(
                    np.cumsum(hits[:, classes == name], 1),
                    np.cumsum(counted[:, classes == name], 1),
                    np.full(len(right), objects_of[name]),
                    recalls=matches.recalls,
                )
                for name in np.flatnonzero(objects_of).tolist()
            ],
            axis=0,
        )
        recall[row] = hits.sum(1) / counts[row]
        duplicates[row] = (second[rows] & counted[half]).sum() / counts[row]
    return Bins(edges, counts, precision.mean(1), precision[:, half], recall.mean(1), recall[:, half], duplicates)


def by_size(matches: Matches) -> Bins:
    """Results by the square root of the objects' areas, in pixels."""
    return by_property(matches, np.sqrt(matches.true.areas), np.array(SIZE_EDGES))


def by_crowdedness(matches: Matches) -> Bins:
    """Results by `crowdedness`."""
    return by_property(matches, crowdedness(matches), np.array(CROWDEDNESS_EDGES))


@dataclasses.dataclass(frozen=True)
class IouHistogram:
    """Matches at IoU 0.5 by their IoU.

    Attributes:
      edges: float64 (bins + 1,), from 0.5 to 1.
      counts: int64 (N, bins).
      mean: float64 (N,), NaN without matches.
    """

    edges: np.ndarray
    counts: np.ndarray
    mean: np.ndarray


def iou_histogram(matches: Matches, *, bins: int = 20) -> IouHistogram:
    """How well boxes, or masks, of right detections lie."""
    edges, count = np.linspace(0.5, 1, bins + 1), len(matches.class_names)
    matched = np.where(matches.right()[matches.threshold(0.5)], matches.found.matched[0, matches.threshold(0.5)], -1)
    mine = matched[matches.overlaps.found] == matches.overlaps.true
    ious, classes = matches.overlaps.ious[mine], matches.found.classes[matches.overlaps.found[mine]]
    place = np.clip(np.searchsorted(edges, ious, side="right") - 1, 0, bins - 1)
    counts = np.bincount(classes.astype(np.int64) * bins + place, minlength=count * bins).reshape(count, bins)
    total, sums = np.bincount(classes, minlength=count), np.bincount(classes, ious, minlength=count)
    mean = np.divide(sums, total, out=np.full(count, np.nan), where=total > 0)
    return IouHistogram(edges, counts, mean)
