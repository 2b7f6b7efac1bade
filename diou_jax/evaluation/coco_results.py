"""Detections as a COCO results file, and their scores by pycocotools."""

import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from absl import logging
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diou_jax.data import annotations
from diou_jax.data.annotations import id_key, id_rank
from diou_jax.errors import UserError
from diou_jax.structures import Array

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
    """AP and AP50 of a class, NaN without ground truth, and the number of its boxes without crowds."""

    name: str
    ap: float
    ap50: float
    boxes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The scores by COCOeval.

    Attributes:
      statistics: the numbers named in `STATISTICS`, in [0, 1], -1 without ground truth of the kind; another limit of
        detections replaces the 100 in the name AR100.
      lines: the twelve lines that pycocotools prints.
      classes: results by class, in ascending order of category ids.
    """

    statistics: dict[str, float]
    lines: tuple[str, ...]
    classes: tuple[ClassResult, ...]

    def metrics(self) -> dict[str, float]:
        """Metrics for the log: ``eval/AP``, the other statistics and ``eval/AP/<class>``; NaN without ground truth."""
        numbers = {f"eval/{name}": value if value >= 0 else math.nan for name, value in self.statistics.items()}
        return numbers | {f"eval/AP/{row.name}": row.ap for row in self.classes}

    def report(self, dataset: str) -> str:
        """COCO's lines, a table of classes and the original's ``copypaste`` lines, for the named data set."""
        width = max(len(name) for name in ["class", *(row.name for row in self.classes)])
        table = [f" {'class':{width}}  {'AP':>6}  {'AP50':>6}  {'boxes':>7}"]
        table += [f" {row.name:{width}}  {row.ap:6.3f}  {row.ap50:6.3f}  {row.boxes:7d}" for row in self.classes]
        names = STATISTICS[:6]
        copypaste = [
            f"copypaste: Dataset: {dataset}",
            "copypaste: Task: box",
            "copypaste: " + ",".join(names),
            "copypaste: " + ",".join(f"{self.statistics[name]:.4f}" for name in names),
        ]
        return "\n".join([*self.lines, "", *table, "", *copypaste])


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


def write_results(path: str | os.PathLike, results: Iterable[Mapping]) -> None:
    """Writes a COCO results file atomically, one result per line, sorted by image; within an image the order stays."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(result, allow_nan=False) for result in sorted(results, key=lambda r: id_rank(r["image_id"]))]
    draft = path.with_name(path.name + ".tmp")
    draft.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    os.replace(draft, path)


def evaluate(
    results: Sequence[Mapping],
    annotation_files: Sequence[str | os.PathLike],
    image_ids: Collection | None = None,
    *,
    max_dets: int = MAX_DETS,
) -> Summary:
    """Scores boxes by pycocotools' COCOeval.

    Annotation files are read by `diou_jax.data.annotations`, as in training. As in COCOeval, ``ignore`` has no effect,
    and boxes without area or outside their image count. A warning is logged if `max_dets` leaves out boxes.

    Args:
      results: results of `to_results` or of a results file; may be empty.
      annotation_files: COCO json files, which are joined.
      image_ids: ids of the images that count; by default all images of the files.
      max_dets: number of detections per image and class that count; more than 10.

    Raises:
      UserError: if a file is not COCO json, two files share an image or disagree on a category, or a result names an
        image or a category that no file lists.
    """
    truth = _read_truth(annotation_files)
    _check_known(results, truth)
    counted = truth.images if image_ids is None else truth.images & set(map(id_key, image_ids))
    # COCOeval compares and sorts image ids. It gets their ranks, since ids may be strings or of mixed types.
    number = {image_id: rank for rank, image_id in enumerate(sorted(counted, key=id_rank), start=1)}
    boxes, found = _index(truth.boxes, number, truth.categories), _index(results, number, truth.categories)
    _report_limit(boxes, found, max_dets)
    evaluation = COCOeval(boxes, found, "bbox")
    evaluation.params.maxDets = [1, 10, max_dets]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    statistics, lines = _summarize(evaluation)
    return Summary(statistics, lines, tuple(_class_results(evaluation, truth.categories)))


@dataclasses.dataclass(frozen=True)
class _Truth:
    """The content of annotation files: keys of images, names by category id, and boxes with COCOeval's fields."""

    images: set
    categories: dict[int, str]
    boxes: list[dict]


def _read_truth(annotation_files: Sequence[str | os.PathLike]) -> _Truth:
    listed_in: dict[int | str, str | os.PathLike] = {}
    categories: dict[int, str] = {}
    boxes: list[dict] = []
    for file in annotation_files:
        read = annotations.read(file)
        for key in read.images:
            if key in listed_in:
                raise UserError(f"image {key!r} is in {listed_in[key]} and in {file}; evaluate one at a time")
            listed_in[key] = file
        for category, name in read.categories.items():
            if categories.setdefault(category, name) != name:
                raise UserError(
                    f"{file}: category {category} is {name!r}, elsewhere it is {categories[category]!r}; "
                    "each category id must have one name"
                )
        columns = read.boxes
        boxes += [
            {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
            for image, category, box, area, crowd in zip(
                columns.images,
                columns.categories.tolist(),
                columns.xywh.tolist(),
                columns.areas.tolist(),
                columns.crowd.astype(int).tolist(),
                strict=True,
            )
        ]
    return _Truth(set(listed_in), categories, boxes)


def _check_known(results: Sequence[Mapping], truth: _Truth) -> None:
    """Raises UserError for a result of an image or category that is not in the annotation files."""
    for kind, known in (("image", truth.images), ("category", truth.categories)):
        unknown = [result[f"{kind}_id"] for result in results if id_key(result[f"{kind}_id"]) not in known]
        if unknown:
            raise UserError(
                f"results: {len(unknown)} are of a {kind} that the annotation files do not list, the first of "
                f"{kind} {unknown[0]!r}; evaluate against the annotations of the data set they were made on"
            )


def _index(entries: Iterable[Mapping], number: Mapping, categories: Mapping[int, str]) -> COCO:
    """The index of pycocotools for those annotations or results whose images have a `number`.

    Unlike ``COCO.loadRes`` this accepts an empty list. Entries are numbered from 1, since COCOeval takes a match with
    annotation 0 for no match, and files may count from 0.
    """
    index = COCO()
    chosen = [(number[key], entry) for entry in entries if (key := id_key(entry["image_id"])) in number]
    index.dataset = {
        "images": [{"id": image_id} for image_id in number.values()],
        "categories": [{"id": category_id} for category_id in categories],
        "annotations": [
            {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
            | dict(entry)
            | {"id": position, "image_id": image_id, "category_id": id_key(entry["category_id"])}
            for position, (image_id, entry) in enumerate(chosen, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def _report_limit(boxes: COCO, found: COCO, max_dets: int) -> None:
    """Warns of images that have more than `max_dets` objects or detections of a class."""
    for what, index in (("objects", boxes), ("detections", found)):
        counts = Counter((a["image_id"], a["category_id"]) for a in index.dataset["annotations"] if not a["iscrowd"])
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


def _summarize(evaluation: COCOeval) -> tuple[dict[str, float], tuple[str, ...]]:
    """The twelve numbers by name, and their lines; pycocotools' own summary only supports the limit 100."""
    params, statistics, lines = evaluation.params, {}, []
    for name, (kind, iou, size, limit) in zip(STATISTICS, _PARTS, strict=True):
        # Precision is (IoU thresholds, recalls, classes, sizes, limits), recall lacks the second axis.
        values = evaluation.eval[kind][..., params.areaRngLbl.index(size), limit]
        values = values if iou is None else values[params.iouThrs == iou]
        value = float(np.mean(values[values > -1])) if (values > -1).any() else -1.0
        title = "Average Precision  (AP)" if kind == "precision" else "Average Recall     (AR)"
        span = f"{params.iouThrs[0]:0.2f}:{params.iouThrs[-1]:0.2f}" if iou is None else f"{iou:0.2f}"
        lines.append(
            f" {title} @[ IoU={span:<9} | area={size:>6s} | maxDets={params.maxDets[limit]:>3d} ] = {value:0.3f}"
        )
        statistics[f"AR{params.maxDets[2]}" if name == "AR100" else name] = value
    return statistics, tuple(lines)


def _class_results(evaluation: COCOeval, categories: Mapping[int, str]) -> Iterable[ClassResult]:
    """The result of each category, in the order of COCOeval."""
    boxes = Counter(a["category_id"] for a in evaluation.cocoGt.dataset["annotations"] if not a["iscrowd"])
    # (IoU thresholds, recalls, classes, areas, limits of detections); -1 without ground truth.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for column, category_id in enumerate(evaluation.params.catIds):
        ap, ap50 = (
            float(part[part >= 0].mean()) if (part >= 0).any() else math.nan
            for part in (precision[:, :, column], precision[0, :, column])
        )
        yield ClassResult(categories[category_id], ap, ap50, boxes[category_id])
