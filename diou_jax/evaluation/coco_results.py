"""Detections as a COCO results file, and their scores by pycocotools."""

import dataclasses
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from absl import logging
from pycocotools import mask as coco_mask

from diou_jax.analysis.matches import Matches, make_matches
from diou_jax.data.annotations import id_key, id_rank
from diou_jax.errors import UserError
from diou_jax.evaluation import cocoeval
from diou_jax.evaluation.coco_truth import GroundTruth, read_ground_truth, with_masks
from diou_jax.files import replacing
from diou_jax.masks import Rle
from diou_jax.structures import Array

# COCOeval's kinds of overlap: that of boxes and that of masks. By kind, the original's name of the task.
TASKS = {"bbox": "box", "segm": "mask"}

# COCOeval's twelve numbers, in its order: over IoU 0.50 to 0.95, at one IoU, by size, by detections per image.
STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

# COCOeval's limit of detections per image and class.
MAX_DETS = 100

# For each of `STATISTICS`: precision or recall, IoU (None: all), size, index of the limit of detections.
_PARTS = (
    ("precision", None, "all", 2),
    ("precision", 0.5, "all", 2),
    ("precision", 0.75, "all", 2),
    ("precision", None, "small", 2),
    ("precision", None, "medium", 2),
    ("precision", None, "large", 2),
    ("recall", None, "all", 0),
    ("recall", None, "all", 1),
    ("recall", None, "all", 2),
    ("recall", None, "small", 2),
    ("recall", None, "medium", 2),
    ("recall", None, "large", 2),
)


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """AP and AP50 of a class, NaN without ground truth, and the number of its objects without regions to ignore."""

    name: str
    ap: float
    ap50: float
    objects: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The scores by COCOeval.

    Attributes:
      statistics: the numbers named in `STATISTICS`, in [0, 1], -1 without ground truth of the kind; another limit of
        detections replaces the 100 in the name AR100.
      lines: the twelve lines that pycocotools prints.
      classes: results by class, in ascending order of category ids.
      kind: "bbox" or "segm", whether boxes or masks were compared.
      matches: which detection was matched with which object, if `evaluate` was asked for it.
    """

    statistics: dict[str, float]
    lines: tuple[str, ...]
    classes: tuple[ClassResult, ...]
    kind: str = "bbox"
    matches: Matches | None = dataclasses.field(default=None, repr=False, compare=False)

    def metrics(self) -> dict[str, float]:
        """Metrics for the log, NaN without ground truth.

        For boxes ``eval/AP``, the other statistics and ``eval/AP/<class>``, for masks ``eval/segm/AP`` and so on.
        """
        prefix = "eval" if self.kind == "bbox" else f"eval/{self.kind}"
        numbers = {f"{prefix}/{name}": value if value >= 0 else math.nan for name, value in self.statistics.items()}
        return numbers | {f"{prefix}/AP/{row.name}": row.ap for row in self.classes}

    def table(self) -> list[str]:
        """COCO's lines and a table of classes."""
        width = max(len(name) for name in ["class", *(row.name for row in self.classes)])
        counted = "boxes" if self.kind == "bbox" else "masks"
        table = [f" {'class':{width}}  {'AP':>6}  {'AP50':>6}  {counted:>7}"]
        table += [f" {row.name:{width}}  {row.ap:6.3f}  {row.ap50:6.3f}  {row.objects:7d}" for row in self.classes]
        return [*self.lines, "", *table, ""]

    def copypaste(self) -> list[str]:
        """The original's ``copypaste`` lines of this task."""
        names = STATISTICS[:6]
        return [
            f"copypaste: Task: {TASKS[self.kind]}",
            "copypaste: " + ",".join(names),
            "copypaste: " + ",".join(f"{self.statistics[name]:.4f}" for name in names),
        ]


def report(dataset: str, summaries: Sequence[Summary]) -> str:
    """COCO's lines and the classes of each summary, and the original's ``copypaste`` lines for the named data set."""
    tables = [line for summary in summaries for line in summary.table()]
    copypaste = [line for summary in summaries for line in summary.copypaste()]
    return "\n".join([*tables, f"copypaste: Dataset: {dataset}", *copypaste])


def to_results(
    boxes: Array,
    scores: Array,
    classes: Array,
    *,
    image_id: int | str,
    category_ids: Sequence[int],
) -> list[dict]:
    """The COCO results of one image as plain Python values, in the order of the detections.

    Args:
      boxes: float32 (D, 4), inclusive pixels of the original image. As in the original they become COCO's x, y, width,
        height in double precision, with both border pixels counted.
      scores: float32 (D,).
      classes: int (D,), 1 to K - 1.
      image_id: id of the image in the annotation file.
      category_ids: K category ids by class.
    """
    boxes = np.asarray(boxes, np.float64)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], 1)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(xywh.tolist(), np.asarray(scores).tolist(), classes, strict=True)
    ]


def to_mask_results(
    rles: Sequence[Rle],
    scores: Array,
    classes: Array,
    *,
    image_id: int | str,
    category_ids: Sequence[int],
) -> list[dict]:
    """As `to_results`, with D masks in place of boxes; the score is that of the box."""
    return [
        {"image_id": image_id, "category_id": category_ids[label], "segmentation": rle, "score": score}
        for rle, score, label in zip(rles, np.asarray(scores).tolist(), classes, strict=True)
    ]


def write_results(path: str | os.PathLike, results: Iterable[Mapping]) -> None:
    """Writes a COCO results file atomically, one result per line, sorted by image; within an image the order stays.

    Raises:
      OSError: if it cannot be written.
    """
    lines = [json.dumps(result, allow_nan=False) for result in sorted(results, key=lambda r: id_rank(r["image_id"]))]
    with replacing(path) as draft:
        draft.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def evaluate(
    results: Sequence[Mapping],
    annotation_files: Sequence[str | os.PathLike],
    image_ids: Collection | None = None,
    *,
    kind: str = "bbox",
    max_dets: int = MAX_DETS,
    sizes: Mapping[int | str, tuple[int, int]] | None = None,
    with_matches: bool = False,
) -> Summary:
    """Scores boxes or masks by pycocotools' COCOeval.

    Annotation files are read by `diou_jax.data.annotations`, as in training. As in COCOeval, ``ignore`` has no effect,
    boxes without area or outside their image count, and the range of an object's size follows its ``area``. A warning
    is logged if `max_dets` leaves out boxes.

    An object without a usable mask counts as a region to ignore in the evaluation of masks, as a crowd that fills its
    box: a detection inside is neither right nor wrong. Such objects are counted in one warning.

    Args:
      results: results of `to_results`, `to_mask_results` or of a results file; may be empty.
      annotation_files: COCO json files, which are joined.
      image_ids: ids of the images that count; by default all images of the files.
      kind: "bbox" compares boxes, "segm" masks.
      max_dets: number of detections per image and class that count; more than 10.
      sizes: height and width of the images that count by id, for masks; by default as the files state them.
      with_matches: whether the summary shall hold the matches, for `diou_jax.analysis`.

    Raises:
      UserError: if a file is not COCO json, two files share an image or disagree on a category, a result names an
        image or a category that no file lists, or, for masks, the size of an image with objects is unknown.
    """
    truth = read_ground_truth(annotation_files, segmentations=kind == "segm")
    _check_known(results, truth)
    counted = truth.images.keys() if image_ids is None else truth.images.keys() & set(map(id_key, image_ids))
    # COCOeval compares and sorts image ids. It gets their ranks, since ids may be strings or of mixed types.
    number = {image_id: rank for rank, image_id in enumerate(sorted(counted, key=id_rank), start=1)}
    entries = [entry for entry in truth.objects if entry["image_id"] in number]
    rows = [row for row, result in enumerate(results) if id_key(result["image_id"]) in number]
    results = [results[row] for row in rows]
    if kind == "segm":
        given = truth.images if sizes is None else {id_key(key): size for key, size in sizes.items()}
        entries = with_masks(entries, given, annotation_files)
    objects = _numbered(entries, number)
    detections = _numbered(_with_areas(results, kind), number)
    _report_limit(objects, detections, max_dets)
    task = cocoeval.Task(
        kind,
        image_ids=list(number.values()),
        category_ids=list(truth.categories),
        objects=objects,
        detections=detections,
        max_dets=max_dets,
        with_found=with_matches,
    )
    scored = cocoeval.score(task)
    statistics, lines = _summarize(scored)
    classes = tuple(_class_results(scored, objects, truth.categories))
    matches = None
    if scored.found is not None:
        matches = make_matches(
            scored.found,
            scored.params,
            objects=objects,
            detections=detections,
            class_names=[row.name for row in classes],
            image_ids=list(number),
            results=np.array(rows, np.int64),
        )
    return Summary(statistics, lines, classes, kind, matches)


def _with_areas(results: Iterable[Mapping], kind: str) -> Iterator[dict]:
    """Results with their areas in pixels, by which COCOeval leaves out unmatched ones of other sizes.

    As in pycocotools, an area or a crowd flag that a results file states does not count.
    """

    def area(result):
        return int(coco_mask.area(result["segmentation"])) if kind == "segm" else result["bbox"][2] * result["bbox"][3]

    return ({**result, "area": area(result), "iscrowd": 0} for result in results)


def _check_known(results: Sequence[Mapping], truth: GroundTruth) -> None:
    """Raises UserError for a result of an image or category that is not in the annotation files."""
    known: Collection
    for kind, of_one, known in (("image", "an image", truth.images), ("category", "a category", truth.categories)):
        unknown = [result[f"{kind}_id"] for result in results if id_key(result[f"{kind}_id"]) not in known]
        if unknown:
            some = ", ".join(map(repr, itertools.islice(known, 3))) + (", …" if len(known) > 3 else "")
            raise UserError(
                f"results: {len(unknown)} are of {of_one} that the annotation files do not list, the first of "
                f"{kind} {unknown[0]!r}; the files list {some or 'none'}: evaluate against the annotations of the "
                "data set that the results were made on"
            )


def _numbered(entries: Iterable[Mapping], number: Mapping) -> list[dict]:
    """Annotations or results of the images that have a `number`, which becomes their image's id.

    Their own ids count from 1, since COCOeval takes a match with annotation 0 for no match, and files may count from 0.
    """
    return [
        dict(entry)
        | {
            "id": position,
            "image_id": number[id_key(entry["image_id"])],
            "category_id": id_key(entry["category_id"]),
        }
        for position, entry in enumerate(entries, start=1)
    ]


def _report_limit(objects: Sequence[Mapping], detections: Sequence[Mapping], max_dets: int) -> None:
    """Warns of images that have more than `max_dets` objects or detections of a class."""
    for what, entries in (("objects", objects), ("detections", detections)):
        counts = Counter((a["image_id"], a["category_id"]) for a in entries if not a["iscrowd"])
        images = {image_id for (image_id, _), count in counts.items() if count > max_dets}
        if images:
            logging.warning(
                "%d images have up to %d %s of a class; test.max_dets=%d limits the detections that count to %d",
                len(images),
                max(counts.values()),
                what,
                max_dets,
                max_dets,
            )


def _summarize(scored: cocoeval.Scored) -> tuple[dict[str, float], tuple[str, ...]]:
    """The twelve numbers by name, and their lines; pycocotools' own summary only supports the limit 100."""
    params, statistics, lines = scored.params, {}, []
    for name, (kind, iou, size, limit) in zip(STATISTICS, _PARTS, strict=True):
        # Precision is (IoU thresholds, recalls, classes, sizes, limits), recall lacks the second axis.
        values = getattr(scored, kind)[..., params.areaRngLbl.index(size), limit]
        values = values if iou is None else values[params.iouThrs == iou]
        value = float(np.mean(values[values > -1])) if (values > -1).any() else -1.0
        title = "Average Precision  (AP)" if kind == "precision" else "Average Recall     (AR)"
        span = f"{params.iouThrs[0]:0.2f}:{params.iouThrs[-1]:0.2f}" if iou is None else f"{iou:0.2f}"
        lines.append(
            f" {title} @[ IoU={span:<9} | area={size:>6s} | maxDets={params.maxDets[limit]:>3d} ] = {value:0.3f}"
        )
        statistics[f"AR{params.maxDets[2]}" if name == "AR100" else name] = value
    return statistics, tuple(lines)


def _class_results(
    scored: cocoeval.Scored, objects: Sequence[Mapping], categories: Mapping[int, str]
) -> Iterable[ClassResult]:
    """The result of each category, in the order of COCOeval."""
    counts = Counter(entry["category_id"] for entry in objects if not entry["iscrowd"])
    precision = scored.precision[:, :, :, 0, -1]
    for column, category_id in enumerate(scored.params.catIds):
        ap, ap50 = (
            float(part[part >= 0].mean()) if (part >= 0).any() else math.nan
            for part in (precision[:, :, column], precision[0, :, column])
        )
        yield ClassResult(categories[category_id], ap, ap50, counts[category_id])
