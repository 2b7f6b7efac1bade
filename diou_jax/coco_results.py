"""Detections as COCO results, and pycocotools' verdict on them."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diou_jax.data.coco import read_json

STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """AP and AP50 of a class, in [0, 1], NaN where it has no ground truth, and how many boxes it has."""

    name: str
    ap: float
    ap50: float
    boxes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """What COCOeval found.

    Attributes:
      statistics: the twelve numbers by the names of `STATISTICS`; -1 where there is no ground truth of that kind.
      lines: the twelve lines as pycocotools prints them.
      classes: each class's.
    """

    statistics: dict[str, float]
    lines: tuple[str, ...]
    classes: tuple[ClassResult, ...]

    def metrics(self) -> dict[str, float]:
        """For the log: ``eval/AP`` and so on, and ``eval/AP/<class>``."""
        numbers = {f"eval/{name}": value for name, value in self.statistics.items()}
        return numbers | {f"eval/AP/{row.name}": row.ap for row in self.classes}

    def report(self, dataset: str) -> str:
        """The twelve lines, AP by class, and the original's ``copypaste`` lines."""
        width = max((len(row.name) for row in self.classes), default=0)
        table = [f"{'class':{width}}  {'AP':>6}  {'AP50':>6}  {'boxes':>7}"]
        table += [f"{row.name:{width}}  {row.ap:6.3f}  {row.ap50:6.3f}  {row.boxes:7d}" for row in self.classes]
        names = STATISTICS[:6]
        copypaste = [
            f"copypaste: Dataset: {dataset}",
            "copypaste: Task: box",
            "copypaste: " + ",".join(names),
            "copypaste: " + ",".join(f"{self.statistics[name]:.4f}" for name in names),
        ]
        return "\n".join([*self.lines, *table, *copypaste])


def to_results(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    *,
    image_id: int | str,
    category_ids: Sequence[int],
) -> list[dict]:
    """COCO results of one image.

    Args:
      boxes: float32 (N, 4), pixels of the original image; widths count both border pixels, as the original writes them.
      scores: float32 (N,).
      classes: int (N,), 1 to K - 1.
      image_id: as in the annotation file.
      category_ids: K ids by class.
    """
    boxes = np.asarray(boxes, np.float64)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], 1)
    return [
        {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": float(score)}
        for box, score, label in zip(xywh.tolist(), scores, classes, strict=True)
    ]


def write_results(path: str | os.PathLike, results: Iterable[Mapping]) -> None:
    """Writes a COCO results file, whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(list(results)))
    os.replace(draft, path)


def evaluate(results: Sequence[Mapping], annotation_files: Sequence[str], image_ids: Sequence) -> Summary:
    """COCOeval of boxes against annotation files that are read as one.

    Args:
      results: of `to_results`.
      annotation_files: COCO json files.
      image_ids: the images that count.
    """
    truth = _ground_truth(annotation_files)
    # pycocotools sorts ids and looks them up in dictionaries: any that compare will do.
    evaluation = COCOeval(truth, _load_results(truth, results), "bbox")
    evaluation.params.imgIds = sorted(image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation.summarize()
    lines = tuple(line for line in printed.getvalue().splitlines() if line.strip())
    statistics = dict(zip(STATISTICS, (float(value) for value in evaluation.stats), strict=True))
    return Summary(statistics, lines, tuple(_class_results(truth, evaluation)))


def _class_results(truth: COCO, evaluation: COCOeval):
    # precision: (IoU thresholds, recalls, classes, areas, limits of detections)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    wanted = set(evaluation.params.imgIds)
    for column, category in enumerate(evaluation.params.catIds):
        boxes = sum(
            a["image_id"] in wanted and not a["iscrowd"] for a in truth.loadAnns(truth.getAnnIds(catIds=category))
        )
        values = precision[:, :, column]
        ap, ap50 = (
            float(part[part > -1].mean()) if (part > -1).any() else float("nan") for part in (values, values[0])
        )
        yield ClassResult(str(truth.cats[category]["name"]), ap, ap50, boxes)


def _ground_truth(annotation_files: Sequence[str]) -> COCO:
    """The union of the files, with the fields that pycocotools needs and a file may lack."""
    merged = {"images": [], "annotations": [], "categories": []}
    for file in annotation_files:
        content = read_json(file)
        merged["images"] += content["images"]
        merged["annotations"] += content["annotations"]
        merged["categories"] = content["categories"]
    for number, annotation in enumerate(merged["annotations"], start=1):
        # COCOeval takes a match with annotation 0 for no match, and files may number from 0, or each from 1.
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    truth = COCO()
    truth.dataset = merged
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def _load_results(truth: COCO, results: Sequence[Mapping]) -> COCO:
    """As `COCO.loadRes`, which fails without any result."""
    annotations = [
        {**result, "id": number, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
        for number, result in enumerate(results, start=1)
    ]
    found = COCO()
    found.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"]}
    found.dataset["annotations"] = annotations
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found
