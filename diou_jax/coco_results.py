"""Detections as a COCO results file, and pycocotools' verdict on them."""

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
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diou_jax.data.coco import read_json
from diou_jax.errors import UserError

# COCOeval's twelve numbers, in its order: over IoU 0.50 to 0.95, at one IoU, by size, by detections per image.
STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """AP and AP50 of a class, NaN where it has no ground truth, and the number of its boxes that are no crowd."""

    name: str
    ap: float
    ap50: float
    boxes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """What COCOeval found.

    Attributes:
      statistics: the numbers named by `STATISTICS`, in [0, 1]; -1 where there is no ground truth of that kind.
      lines: the twelve lines that pycocotools prints of them.
      classes: by rising category id.
    """

    statistics: dict[str, float]
    lines: tuple[str, ...]
    classes: tuple[ClassResult, ...]

    def metrics(self) -> dict[str, float]:
        """For the log: ``eval/AP``, the other statistics and ``eval/AP/<class>``; NaN without ground truth."""
        numbers = {f"eval/{name}": value if value >= 0 else math.nan for name, value in self.statistics.items()}
        return numbers | {f"eval/AP/{row.name}": row.ap for row in self.classes}

    def report(self, dataset: str) -> str:
        """COCO's lines, the table of classes and the ``copypaste`` lines of the original, for the named data set."""
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
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    *,
    image_id: int | str,
    category_ids: Sequence[int],
) -> list[dict]:
    """The COCO results of one image, plain Python values, in the order of the detections.

    Args:
      boxes: float32 (D, 4), inclusive pixels of the original image. They become COCO's x, y, width, height with both
        border pixels counted, in double precision, as the original writes them.
      scores: float32 (D,).
      classes: int (D,), 1 to K - 1.
      image_id: as in the annotation file.
      category_ids: K ids by class.
    """
    boxes = np.asarray(boxes, np.float64)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], 1)
    return [
        {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": score}
        for box, score, label in zip(xywh.tolist(), np.asarray(scores).tolist(), classes, strict=True)
    ]


def write_results(path: str | os.PathLike, results: Iterable[Mapping]) -> None:
    """Writes a COCO results file, whole or not at all: a result a line, by image, an image's in the order given."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(result, allow_nan=False) for result in sorted(results, key=lambda r: _rank(r["image_id"]))]
    draft = path.with_name(path.name + ".tmp")
    draft.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    os.replace(draft, path)


def evaluate(
    results: Sequence[Mapping], annotation_files: Sequence[str | os.PathLike], image_ids: Collection | None = None
) -> Summary:
    """Judges boxes by pycocotools' COCOeval.

    Fields that annotation files may lack and pycocotools needs are filled in: no ``iscrowd`` is no crowd, no ``area``
    is the box's, ids may be strings or repeat from file to file. Annotations without a box, or of images and categories
    that the files do not list, do not count.

    Args:
      results: as `to_results` makes them, or read from a results file; possibly none.
      annotation_files: COCO json files, read as one.
      image_ids: the images that count; by default all that the files list.

    Raises:
      UserError: a file is not COCO json, two files share an image or disagree on a category, or a result names an image
        or a category that no file lists.
    """
    truth = _read_truth(annotation_files)
    _check_known(results, truth)
    counted = truth.images if image_ids is None else truth.images & set(image_ids)
    # COCOeval compares and sorts image ids; their ranks serve where the ids themselves are strings, or mixed.
    number = {image_id: rank for rank, image_id in enumerate(sorted(counted, key=_rank), start=1)}
    boxes = _index(truth.annotations, number, truth.categories)
    evaluation = COCOeval(boxes, _index(results, number, truth.categories), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation.summarize()
    return Summary(
        statistics=dict(zip(STATISTICS, map(float, evaluation.stats), strict=True)),
        lines=tuple(line for line in printed.getvalue().splitlines() if line.strip()),
        classes=tuple(_class_results(evaluation, truth.categories)),
    )


@dataclasses.dataclass(frozen=True)
class _Truth:
    """What annotation files say: the ids of their images, names by category id, annotations with all their fields."""

    images: set
    categories: dict[int, str]
    annotations: list[dict]


def _read_truth(annotation_files: Sequence[str | os.PathLike]) -> _Truth:
    listed_in, categories, annotations = {}, {}, []
    for file in annotation_files:
        content = read_json(file)
        for image_id in _ids(content, "images", file):
            if image_id in listed_in:
                raise UserError(f"image {image_id!r} is in {listed_in[image_id]} and in {file}; evaluate one at a time")
            listed_in[image_id] = file
        for category_id, category in _ids(content, "categories", file).items():
            name = str(category.get("name", category_id))
            if categories.setdefault(category_id, name) != name:
                raise UserError(
                    f"{file}: category {category_id} is {name!r}, elsewhere it is {categories[category_id]!r}; "
                    "each category id must have one name"
                )
        annotations += content["annotations"]
    complete = [_complete(annotation, listed_in, categories) for annotation in annotations]
    return _Truth(set(listed_in), categories, [annotation for annotation in complete if annotation])


def _ids(content: Mapping, kind: str, file: str | os.PathLike) -> dict:
    """The images or categories of a file by their id, the first where several have the same."""
    entries = {}
    for entry in content[kind]:
        if not isinstance(entry.get("id"), (int, str)):
            raise UserError(f"{file}: one of its {kind} has the id {entry.get('id')!r}; it must be an integer")
        entries.setdefault(entry["id"], entry)
    return entries


def _complete(annotation: Mapping, images: Collection, categories: Collection) -> dict | None:
    """The fields that COCOeval reads, or None for an annotation that cannot count."""
    try:
        box = [float(value) for value in annotation["bbox"]]
        _, _, width, height = box
        known = annotation["image_id"] in images and annotation["category_id"] in categories
        if not known or not all(map(math.isfinite, box)):
            return None
        return {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": box,
            "area": width * height if annotation.get("area") is None else float(annotation["area"]),
            "iscrowd": int(bool(annotation.get("iscrowd", 0))),
        }
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _check_known(results: Sequence[Mapping], truth: _Truth) -> None:
    """Raises UserError for a result of an image or category that is not in the annotation files."""
    for kind, known in (("image", truth.images), ("category", truth.categories)):
        unknown = [result[f"{kind}_id"] for result in results if result[f"{kind}_id"] not in known]
        if unknown:
            raise UserError(
                f"results: {len(unknown)} are of a {kind} that the annotation files do not list, the first of "
                f"{kind} {unknown[0]!r}; evaluate against the annotations of the data set they were made on"
            )


def _index(entries: Iterable[Mapping], number: Mapping, categories: Mapping[int, str]) -> COCO:
    """What pycocotools reads: the annotations or results whose images have a number.

    Unlike ``COCO.loadRes`` it bears an empty list. Entries are numbered from 1: COCOeval takes a match with an
    annotation 0 for no match, and files may number from 0.
    """
    index = COCO()
    chosen = [entry for entry in entries if entry["image_id"] in number]
    index.dataset = {
        "images": [{"id": image_id} for image_id in number.values()],
        "categories": [{"id": category_id} for category_id in categories],
        "annotations": [
            {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
            | dict(entry)
            | {"id": position, "image_id": number[entry["image_id"]]}
            for position, entry in enumerate(chosen, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def _class_results(evaluation: COCOeval, categories: Mapping[int, str]) -> Iterable[ClassResult]:
    """Each category's row, in the order of COCOeval's."""
    annotations = evaluation.cocoGt.dataset["annotations"]
    boxes = Counter(a["category_id"] for a in annotations if not a["iscrowd"])
    shared = {name for name, count in Counter(categories.values()).items() if count > 1}
    # (IoU thresholds, recalls, classes, areas, limits of detections); -1 without ground truth.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for column, category_id in enumerate(evaluation.params.catIds):
        name = categories[category_id]
        ap, ap50 = (
            float(part[part >= 0].mean()) if (part >= 0).any() else math.nan
            for part in (precision[:, :, column], precision[0, :, column])
        )
        yield ClassResult(f"{name} ({category_id})" if name in shared else name, ap, ap50, boxes[category_id])


def _rank(image_id: int | str) -> tuple:
    """What image ids are sorted by: integers before strings, as in `diou_jax.data.coco`."""
    return isinstance(image_id, str), image_id
