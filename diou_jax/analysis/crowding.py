"""AP by size and by crowdedness of objects, and how well matched boxes lie."""

import dataclasses

import numpy as np

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
    raise NotImplementedError


def by_property(matches: Matches, values: np.ndarray, edges: np.ndarray) -> Bins:
    """Results by bins of a property of the objects, float64 (G,).

    As with COCO's sizes, the objects of other bins are ignored, and so are the detections matched with them. A wrong
    detection belongs to the bin of the object of its class that it overlaps most, by an IoU of 0.1 or more; wrong
    detections elsewhere belong to no bin. So a bin's AP says how well objects like these are told apart and placed.
    """
    raise NotImplementedError


def by_size(matches: Matches) -> Bins:
    """Results by the square root of the objects' areas, in pixels."""
    raise NotImplementedError


def by_crowdedness(matches: Matches) -> Bins:
    """Results by `crowdedness`."""
    raise NotImplementedError


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
    raise NotImplementedError
