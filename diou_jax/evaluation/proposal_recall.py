"""The average recall of proposals, counted as pycocotools does for boxes of no class.

The numbers equal those of ``COCOeval`` with ``useCats=0`` and `LIMITS` as ``maxDets``. Its loops in Python visit every
pair of a proposal and an object once for each IoU and size; the rule for recall alone needs far fewer steps.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np
from pycocotools import mask
from pycocotools.cocoeval import Params

from diou_jax.data import annotations
from diou_jax.data.annotations import id_key
from diou_jax.data.proposals import ProposalTable

# Numbers of proposals per image that count, best first.
LIMITS = (10, 100, 300, 1000)

# The rank of a proposal that does not exist, for an object that no proposal covers.
_NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Recall:
    """The average recall of the proposals of a data set.

    Attributes:
      values: AR by name, in [0, 1], -1 without objects of the size: ``AR@100`` counts the best 100 proposals of each
        image, ``ARs@100``, ``ARm@100`` and ``ARl@100`` only objects of COCO's small, medium and large areas.
      lines: the lines that pycocotools prints for these numbers.
      objects: number of objects without crowds.
      most: largest number of proposals of an image.
    """

    values: dict[str, float]
    lines: tuple[str, ...]
    objects: int
    most: int

    def metrics(self) -> dict[str, float]:
        """Metrics for the log, ``eval/AR@100`` and so on; NaN without objects of the size."""
        return {f"eval/{name}": value if value >= 0 else math.nan for name, value in self.values.items()}

    def report(self, dataset: str) -> str:
        """COCO's lines and the ``copypaste`` lines of Detectron, for the named data set."""
        names = [name for name in self.values if name.endswith(f"@{LIMITS[-1]}")]
        return "\n".join(
            [
                f"proposals of any class, at most {self.most} an image, for {self.objects} objects without crowds",
                *self.lines,
                "",
                f"copypaste: Dataset: {dataset}",
                "copypaste: Task: box_proposal",
                f"copypaste: {','.join(names)}",
                f"copypaste: {','.join(f'{self.values[name]:.4f}' for name in names)}",
            ]
        )


def measure(table: ProposalTable, annotation_files: Sequence[str | os.PathLike]) -> Recall:
    """The average recall over IoU 0.50 to 0.95 of the objects in a table's images.

    An object is recalled if a proposal is matched with it. In each image and at each IoU, proposals choose in the order
    of their scores: each takes the object that it overlaps most among those that are still free and overlap it at least
    so much. Crowds are no objects here. Objects are those of the annotation files, clipped or filtered in no way, as in
    COCOeval.

    Args:
      table: the proposals of the images that count; objects of an image without proposals count as missed.
      annotation_files: COCO json files.

    Raises:
      UserError: if a file is not COCO json.
    """
    params = Params("bbox")
    thresholds = np.minimum(params.iouThrs, 1 - 1e-10)
    objects = _objects(table, annotation_files)
    matched: dict[str, list[np.ndarray]] = {size: [np.zeros((len(thresholds), 0))] for size in params.areaRngLbl}
    for index, (xywh, areas) in objects.items():
        overlaps = _overlaps(*table.of(index), xywh)
        for size, (low, high) in zip(params.areaRngLbl, params.areaRng):
            matched[size].append(_ranks(overlaps[:, (areas >= low) & (areas <= high)], thresholds))
    values, lines = {}, []
    for size, parts in matched.items():
        ranks = np.concatenate(parts, 1)
        for limit in LIMITS:
            recalled = (ranks < limit).sum(1) / ranks.shape[1] if ranks.shape[1] else np.array([-1.0])
            value = float(recalled.mean())
            values[f"AR{'' if size == 'all' else size[0]}@{limit}"] = value
            span = f"{params.iouThrs[0]:0.2f}:{params.iouThrs[-1]:0.2f}"
            lines.append(
                f" Average Recall     (AR) @[ IoU={span} | area={size:>6s} | maxDets={limit:>4d} ] = {value:0.3f}"
            )
    count = sum(len(areas) for _, areas in objects.values())
    return Recall(values, tuple(lines), count, int((table.stops - table.starts).max(initial=0)))


def _objects(table, annotation_files) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The objects of the table's images that have any, by row: boxes (G, 4), x, y, width, height, and areas (G,)."""
    row = {id_key(image): index for index, image in enumerate(table.image_ids.tolist())}
    found: dict[int, tuple[list, list]] = {}
    for file in annotation_files:
        boxes = annotations.read(file).boxes
        for number in np.flatnonzero(~boxes.crowd).tolist():
            if (index := row.get(boxes.images[number])) is not None:
                xywh, areas = found.setdefault(index, ([], []))
                xywh.append(boxes.xywh[number])
                areas.append(boxes.areas[number])
    return {index: (np.array(xywh), np.array(areas)) for index, (xywh, areas) in found.items()}


def _overlaps(boxes, scores, xywh):
    """The IoU (D, G) of an image's best proposals, in the order of COCOeval, with its objects."""
    best = np.argsort(-scores, kind="stable")[: LIMITS[-1]]
    boxes = boxes[best].astype(np.float64)
    proposals = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], 1)
    if not len(proposals):
        return np.zeros((0, len(xywh)))
    return mask.iou(proposals, xywh, np.zeros(len(xywh), np.uint8))


def _ranks(overlaps, thresholds):
    """The rank of the proposal that each object is matched with, (T, G), from the IoU (D, G) and T thresholds."""
    ranks = np.full((len(thresholds), overlaps.shape[1]), _NEVER)
    row, last = np.arange(len(thresholds)), overlaps.shape[1] - 1
    for rank in np.flatnonzero((overlaps >= thresholds[0]).any(1)):
        eligible = (ranks == _NEVER) & (overlaps[rank] >= thresholds[:, None])
        # Of equal overlaps COCOeval takes the last.
        best = last - np.where(eligible, overlaps[rank], -1.0)[:, ::-1].argmax(1)
        taken = eligible[row, best]
        ranks[row[taken], best[taken]] = rank
    return ranks
