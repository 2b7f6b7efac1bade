"""Which detection COCOeval matched with which object: the outcome of its run as flat arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from pycocotools.cocoeval import COCOeval

# Pairs of a detection and an object are kept from this IoU on. Below it a detection is on background, see `errors`.
LEAST_IOU = 0.1


@dataclasses.dataclass(frozen=True)
class FoundObjects:
    """The detections that count, at most ``max_dets`` for an image and class.

    They are sorted by class, within a class by descending score, detections of equal score by image: COCOeval's order.

    Attributes:
      images: int32 (D,), rows of `Matches.image_ids`.
      classes: int32 (D,), rows of `Matches.class_names`.
      scores: float64 (D,).
      boxes: float64 (D, 4), COCO's x, y, width, height in pixels of the image file.
      areas: float64 (D,), pixels; of the box, or of the mask for the kind "segm".
      ranks: int32 (D,), place by score among the detections of the image and class, from 0.
      results: int64 (D,), rows of the results that were evaluated.
      matched: int32 (A, T, D), the object's row, which may be a region to ignore; -1 without a match.
      ignored: bool (A, T, D), neither right nor wrong: matched with an object that does not count, or unmatched and
        outside the area range.
    """

    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    ranks: np.ndarray
    results: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True)
class TrueObjects:
    """The objects and regions to ignore of the annotation files, in their order.

    Attributes:
      images: int32 (G,), rows of `Matches.image_ids`.
      classes: int32 (G,), rows of `Matches.class_names`.
      boxes: float64 (G, 4), COCO's x, y, width, height in pixels of the image file.
      areas: float64 (G,), pixels, as the annotation states them.
      crowd: bool (G,), regions to ignore.
      ignored: bool (A, G), objects that do not count: crowds, and objects outside the area range.
      matched: int32 (A, T, G), the detection's row, -1 for an object that was missed; -1 for crowds, which several
        detections may match.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    matched: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """Pairs of a detection and an object of one image, of any classes, whose IoU is at least `LEAST_IOU`.

    Attributes:
      found: int32 (P,), rows of `FoundObjects`, ascending.
      true: int32 (P,), rows of `TrueObjects`.
      ious: float64 (P,), IoU of boxes or masks; with a crowd, the part of the detection that the crowd covers.
    """

    found: np.ndarray
    true: np.ndarray
    ious: np.ndarray


@dataclasses.dataclass(frozen=True)
class Matches:
    """The outcome of one run of COCOeval over a data set.

    Attributes:
      kind: "bbox" or "segm", what was compared.
      image_ids: I ids of images as in the annotation files, integers and strings.
      class_names: N names, in ascending order of category ids.
      category_ids: N category ids.
      iou_thresholds: float64 (T,), 0.50 to 0.95.
      recalls: float64 (101,), the recalls at which COCOeval reads precision.
      area_names: A names: "all", "small", "medium", "large".
      area_ranges: float64 (A, 2), least and largest area in pixels, both included.
      max_dets: the limits of detections per image and class, ascending: 1, 10, 100.
      found: the detections.
      true: the objects.
      overlaps: pairs of both, of any classes.
    """

    kind: str
    image_ids: tuple[int | str, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    iou_thresholds: np.ndarray
    recalls: np.ndarray
    area_names: tuple[str, ...]
    area_ranges: np.ndarray
    max_dets: tuple[int, ...]
    found: FoundObjects
    true: TrueObjects
    overlaps: Overlaps

    def threshold(self, iou: float) -> int:
        """The row of `iou_thresholds` that holds an IoU.

        Raises:
          ValueError: if COCOeval did not evaluate this IoU.
        """
        raise NotImplementedError

    def right(self, area: int = 0) -> np.ndarray:
        """Which detections, bool (T, D), are right in an area range."""
        raise NotImplementedError

    def wrong(self, area: int = 0) -> np.ndarray:
        """Which detections, bool (T, D), are wrong in an area range."""
        raise NotImplementedError

    def objects(self, area: int = 0) -> np.ndarray:
        """int64 (N,): objects of each class that count in an area range."""
        raise NotImplementedError


def from_cocoeval(
    evaluation: COCOeval,
    *,
    class_names: Sequence[str],
    image_ids: Sequence[int | str],
    results: Sequence[int] | None = None,
) -> Matches:
    """The matches of a COCOeval on which ``evaluate`` has run, with ids of annotations and detections from 1.

    Args:
      evaluation: the evaluation.
      class_names: N names in ascending order of category ids.
      image_ids: ids of the images for people, in ascending order of the evaluation's ids.
      results: the row of each detection in the results that the caller knows; by default its id less 1.
    """
    raise NotImplementedError
