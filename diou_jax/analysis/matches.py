"""Which detection COCOeval matched with which object: the outcome of its run as flat arrays."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval, Params

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
      kind: "bbox" or "segm", whether boxes or masks were compared.
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
        rows = np.flatnonzero(np.isclose(self.iou_thresholds, iou, rtol=0, atol=1e-9))
        if not len(rows):
            raise ValueError(f"IoU {iou} was not evaluated, only {self.iou_thresholds.round(2).tolist()}")
        return int(rows[0])

    def right(self, area: int = 0) -> np.ndarray:
        """Which detections, bool (T, D), are right in an area range."""
        return (self.found.matched[area] >= 0) & ~self.found.ignored[area]

    def wrong(self, area: int = 0) -> np.ndarray:
        """Which detections, bool (T, D), are wrong in an area range."""
        return (self.found.matched[area] < 0) & ~self.found.ignored[area]

    def objects(self, area: int = 0) -> np.ndarray:
        """int64 (N,): objects of each class that count in an area range."""
        return np.bincount(self.true.classes[~self.true.ignored[area]], minlength=len(self.class_names))

    def rows(self, row: int) -> slice:
        """The detections of a class, given as a row of `class_names`."""
        start, end = np.searchsorted(self.found.classes, [row, row + 1])
        return slice(int(start), int(end))

    def largest_overlap(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of some `overlaps`, bool (P,), the largest IoU of each detection, float64 (D,), and its object, int32 (D,).

        Without any these are 0 and -1; of equal ones the first object in the order of the annotations.
        """
        found, true, ious = (part[chosen] for part in (self.overlaps.found, self.overlaps.true, self.overlaps.ious))
        order = np.lexsort((true, -ious, found))
        rows, first = np.unique(found[order], return_index=True)
        largest, target = np.zeros(len(self.found)), np.full(len(self.found), -1, np.int32)
        largest[rows], target[rows] = ious[order][first], true[order][first]
        return largest, target

    def same_class(self) -> np.ndarray:
        """Which `overlaps`, bool (P,), are of a detection and an object of one class."""
        return self.found.classes[self.overlaps.found] == self.true.classes[self.overlaps.true]


def found_objects(evaluation: COCOeval) -> FoundObjects:
    """The detections of a COCOeval on which ``evaluate`` has run, with ids of annotations and detections from 1.

    Their `results` are the ids less 1.
    """
    params = evaluation.params
    shape = len(params.catIds), len(params.areaRng), len(params.imgIds)
    # COCOeval's order: class by class, in it area range by area range, in it image by image; None without any entry.
    cells = [
        (row, image, evaluation.evalImgs[row * shape[1] * shape[2] + image])
        for row in range(shape[0])
        for image in range(shape[2])
    ]
    cells = [cell for cell in cells if cell[2] is not None and cell[2]["dtIds"]]
    counts = [len(cell["dtIds"]) for *_, cell in cells]
    classes = np.repeat(np.array([row for row, *_ in cells], np.int32), counts)
    images = np.repeat(np.array([image for _, image, _ in cells], np.int32), counts)
    ids = np.array([number for *_, cell in cells for number in cell["dtIds"]], np.int64)
    scores = np.array([score for *_, cell in cells for score in cell["dtScores"]], np.float64)
    ranks = np.array([rank for count in counts for rank in range(count)], np.int32)
    order = np.lexsort((-scores, classes))

    thresholds = len(params.iouThrs)
    matched = np.zeros((shape[1], thresholds, len(ids)), np.int32)
    ignored = np.zeros(matched.shape, bool)
    for area in range(shape[1]) if cells else ():
        mine = [evaluation.evalImgs[(row * shape[1] + area) * shape[2] + image] for row, image, _ in cells]
        # Ids count from 1, COCOeval's 0 is no match.
        matched[area] = (np.concatenate([cell["dtMatches"] for cell in mine], 1).astype(np.int32) - 1)[:, order]
        ignored[area] = np.concatenate([cell["dtIgnore"] for cell in mine], 1)[:, order]

    ids = ids[order]
    entries = [evaluation.cocoDt.anns[number] for number in ids.tolist()]
    if params.iouType == "bbox":
        boxes = np.array([entry["bbox"] for entry in entries], np.float64)
    else:
        boxes = coco_mask.toBbox([entry["segmentation"] for entry in entries]) if entries else np.zeros((0, 4))
    return FoundObjects(
        images=images[order],
        classes=classes[order],
        scores=scores[order],
        boxes=boxes.reshape(-1, 4),
        areas=np.array([entry["area"] for entry in entries], np.float64),
        ranks=ranks[order],
        results=ids - 1,
        matched=matched,
        ignored=ignored,
    )


def make_matches(
    found: FoundObjects,
    params: Params,
    *,
    objects: Sequence[Mapping],
    detections: Sequence[Mapping],
    class_names: Sequence[str],
    image_ids: Sequence[int | str],
    results: np.ndarray,
) -> Matches:
    """The matches of an evaluation by COCOeval.

    Args:
      found: the detections of all classes, see `found_objects`.
      params: the evaluation's parameters.
      objects: its ground truth, in the order of ids.
      detections: its detections, in the order of ids.
      class_names: N names in ascending order of category ids.
      image_ids: ids of the images for people, in ascending order of the evaluation's ids.
      results: int64, the row of each detection in the results that the caller knows.
    """
    true = _true_objects(objects, params)
    masks = params.iouType == "segm"
    return Matches(
        kind=params.iouType,
        image_ids=tuple(image_ids),
        class_names=tuple(class_names),
        category_ids=tuple(int(category_id) for category_id in params.catIds),
        iou_thresholds=np.array(params.iouThrs),
        recalls=np.array(params.recThrs),
        area_names=tuple(params.areaRngLbl),
        area_ranges=np.array(params.areaRng, np.float64),
        max_dets=tuple(params.maxDets),
        found=dataclasses.replace(found, results=results[found.results]),
        true=dataclasses.replace(true, matched=_matched_objects(found, true)),
        overlaps=_overlaps(
            found,
            true,
            [detections[row]["segmentation"] for row in found.results.tolist()] if masks else None,
            [entry["segmentation"] for entry in objects] if masks else None,
        ),
    )


def _true_objects(objects: Sequence[Mapping], params: Params) -> TrueObjects:
    """The objects, without their matches."""
    image_row = {image_id: row for row, image_id in enumerate(params.imgIds)}
    class_row = {category_id: row for row, category_id in enumerate(params.catIds)}
    areas = np.array([entry["area"] for entry in objects], np.float64)
    crowd = np.array([bool(entry["iscrowd"]) for entry in objects], bool)
    ranges = np.array(params.areaRng, np.float64)[:, :, None]
    return TrueObjects(
        images=np.array([image_row[entry["image_id"]] for entry in objects], np.int32),
        classes=np.array([class_row[entry["category_id"]] for entry in objects], np.int32),
        boxes=np.array([entry["bbox"] for entry in objects], np.float64).reshape(-1, 4),
        areas=areas,
        crowd=crowd,
        ignored=crowd | (areas < ranges[:, 0]) | (areas > ranges[:, 1]),
        matched=np.zeros((0, 0, len(objects)), np.int32),
    )


def _matched_objects(found: FoundObjects, true: TrueObjects) -> np.ndarray:
    """The detections of the objects, int32 (A, T, G)."""
    matched = np.full((*found.matched.shape[:2], len(true)), -1, np.int32)
    area, threshold, row = np.nonzero(found.matched >= 0)
    target = found.matched[area, threshold, row]
    single = ~true.crowd[target]
    matched[area[single], threshold[single], target[single]] = row[single]
    return matched


def _overlaps(
    found: FoundObjects, true: TrueObjects, found_masks: list[dict] | None, true_masks: list[dict] | None
) -> Overlaps:
    """The pairs of one image with an IoU of at least `LEAST_IOU`; of the masks, where there are any."""
    images = np.intersect1d(found.images, true.images)
    parts: list[tuple] = []
    for mine, theirs in zip(_rows_by_image(found.images, images), _rows_by_image(true.images, images), strict=True):
        if found_masks is None or true_masks is None:
            boxes = found.boxes[mine], true.boxes[theirs]
        else:
            boxes = [found_masks[row] for row in mine.tolist()], [true_masks[row] for row in theirs.tolist()]
        ious = coco_mask.iou(*boxes, true.crowd[theirs].astype(np.uint8))
        row, column = np.nonzero(ious >= LEAST_IOU)
        parts.append((mine[row], theirs[column], ious[row, column]))
    pairs = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.zeros(0)] * 3
    order = np.lexsort((pairs[1], pairs[0]))
    return Overlaps(pairs[0][order].astype(np.int32), pairs[1][order].astype(np.int32), pairs[2][order])


def _rows_by_image(rows: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """The places at which each image stands in `rows`."""
    order = np.argsort(rows, kind="stable")
    ends = (np.searchsorted(rows[order], images, side=side).tolist() for side in ("left", "right"))
    return [order[start:end] for start, end in zip(*ends, strict=True)]
