"""The average recall of proposals; pycocotools itself is the oracle."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diou_jax.data.proposals import make_table
from diou_jax.evaluation.proposal_recall import LIMITS, measure


def write(path, annotations, images):
    content = {"images": [{"id": image} for image in images], "categories": [{"id": 1, "name": "a"}]}
    content["categories"].append({"id": 2, "name": "b"})
    rows = [{"id": number, **row} for number, row in enumerate(annotations, start=1)]
    path.write_text(json.dumps(content | {"annotations": rows}))
    return str(path)


def annotation(image, xywh, *, category=1, crowd=0, area=None):
    area = xywh[2] * xywh[3] if area is None else area
    return {"image_id": image, "category_id": category, "bbox": list(xywh), "area": area, "iscrowd": crowd}


def corners(xywh):
    """COCO's x, y, width, height as inclusive corners."""
    x, y, w, h = xywh
    return [x, y, x + w - 1, y + h - 1]


def table_of(image_ids, *rows):
    """A table of (boxes as x, y, width, height; scores) of each image."""
    return make_table(
        image_ids, [(np.float32([corners(box) for box in boxes]).reshape(-1, 4), np.float32(s)) for boxes, s in rows]
    )


def by_pycocotools(file, table):
    """COCOeval's recall of each size, over the images of the table, and limit."""
    found = []
    for index, image in enumerate(table.image_ids.tolist()):
        for box, score in zip(*table.of(index)):
            x1, y1, x2, y2 = box.astype(np.float64).tolist()
            result = annotation(image, [x1, y1, x2 - x1 + 1, y2 - y1 + 1]) | {"score": float(score)}
            found.append(result | {"id": len(found) + 1})
    with contextlib.redirect_stdout(io.StringIO()):
        truth, results = COCO(file), COCO()
        results.dataset = {**truth.dataset, "annotations": found}
        results.createIndex()
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(LIMITS)
        evaluation.params.imgIds = table.image_ids.tolist()
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"]  # IoU, class, size, limit
    wanted = {}
    for row, letter in enumerate(("", "s", "m", "l")):
        for column, limit in enumerate(LIMITS):
            values = recall[:, 0, row, column]
            wanted[f"AR{letter}@{limit}"] = float(values[values > -1].mean()) if (values > -1).any() else -1.0
    return wanted


@pytest.mark.parametrize("seed", range(4))
def test_recall_equals_cocoeval_to_the_last_bit(tmp_path, seed):
    """Coordinates and scores lie on coarse grids, so that overlaps and scores are often equal."""
    rng = np.random.default_rng(seed)
    images = [9, 3, 70, 11, 5]
    annotations, rows = [], []
    for image in images:
        objects = []
        for _ in range(rng.integers(0, 12)):
            xywh = [float(value) for value in (*rng.integers(0, 40, 2) * 4, *rng.integers(1, 40, 2) * 4)]
            area = None if rng.random() < 0.5 else float(rng.choice([0, 32**2, 96**2, 500, 5000]))
            objects.append(
                annotation(image, xywh, category=int(rng.integers(1, 3)), crowd=int(rng.random() < 0.2), area=area)
            )
        annotations += objects
        boxes = [np.float64(one["bbox"]) + rng.integers(-2, 3, 4) * 2 for one in objects for _ in range(8)]
        boxes += [
            np.float64([*rng.integers(0, 160, 2), *rng.integers(4, 160, 2)]) for _ in range(rng.integers(0, 1200))
        ]
        boxes = [np.maximum(boxes[i], [0, 0, 1, 1]) for i in rng.permutation(len(boxes))]
        rows.append((boxes, rng.integers(0, 60, len(boxes)) / 64))
    rng.shuffle(annotations)
    file = write(tmp_path / "truth.json", annotations, images)
    table = table_of(images, *rows)
    assert measure(table, [file]).values == by_pycocotools(file, table)
    some = table_of(images[1:3], *rows[1:3])
    assert measure(some, [file]).values == by_pycocotools(file, some), "images outside the table do not count"


def test_an_object_counts_from_the_rank_of_its_proposal_on(tmp_path):
    file = write(tmp_path / "truth.json", [annotation(1, [50, 50, 20, 20])], [1])
    boxes = [[0, 0, 10, 10]] * 150 + [[50, 50, 20, 20]]
    recall = measure(table_of([1], (boxes, np.linspace(1, 0.5, 151))), [file])
    assert {name: value for name, value in recall.values.items() if "s" not in name and value >= 0} == {
        "AR@10": 0,
        "AR@100": 0,
        "AR@300": 1,
        "AR@1000": 1,
    }
    assert recall.values["ARs@1000"] == 1 and math.isnan(recall.metrics()["eval/ARl@1000"])
    assert recall.objects == 1 and recall.most == 151
    assert " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets= 300 ] = 1.000" in recall.lines
    lines = recall.report("val").splitlines()
    assert lines[-4:-1] == [
        "copypaste: Dataset: val",
        "copypaste: Task: box_proposal",
        "copypaste: AR@1000,ARs@1000,ARm@1000,ARl@1000",
    ]
    assert lines[-1] == "copypaste: 1.0000,1.0000,-1.0000,-1.0000"


def test_the_overlap_decides_at_how_many_thresholds_an_object_is_found(tmp_path):
    file = write(tmp_path / "truth.json", [annotation(1, [0, 0, 100, 100])], [1])
    recall = measure(table_of([1], ([[0, 0, 100, 72]], [0.9])), [file])  # IoU 0.72: 0.50, 0.55, 0.60, 0.65, 0.70
    assert recall.values["AR@10"] == pytest.approx(0.5)


def test_proposals_choose_in_the_order_of_their_scores(tmp_path):
    """The best proposal takes the object it covers most, and the second one finds nothing but the other object.

    Detectron's rule, which matches the best pairs first, would recall both objects at IoU 0.5.
    """
    file = write(tmp_path / "truth.json", [annotation(1, [0, 0, 100, 100]), annotation(1, [0, 30, 100, 100])], [1])
    boxes = [[0, 10, 100, 100], [0, 0, 100, 100]]  # the first covers both objects, the second the first object only
    recall = measure(table_of([1], (boxes, [0.9, 0.8])), [file])
    # IoU of the first proposal: 0.818 and 0.667; of the second: 1 and 0.538. Up to 0.80 the first object is taken, the
    # second proposal finds the second object at 0.50 only; at 0.85 to 0.95 it finds the first one.
    assert recall.values["AR@10"] == pytest.approx((2 + 6 * 1 + 3 * 1) / 20)


def test_an_image_without_proposals_counts_and_a_crowd_does_not(tmp_path):
    truth = [annotation(1, [0, 0, 50, 50]), annotation(2, [0, 0, 50, 50]), annotation(2, [0, 0, 90, 90], crowd=1)]
    file = write(tmp_path / "truth.json", truth, [1, 2, 3])
    table = table_of([1, 2, 3], ([[0, 0, 50, 50]], [0.5]), ([], []), ([[0, 0, 9, 9]], [0.5]))
    recall = measure(table, [file])
    assert recall.values["AR@10"] == 0.5 and recall.objects == 2
    nothing = measure(table_of([3], ([[0, 0, 9, 9]], [0.5])), [file])
    assert set(nothing.values.values()) == {-1.0} and nothing.objects == 0


def test_ids_may_be_texts(tmp_path):
    file = write(tmp_path / "truth.json", [annotation("a", [0, 0, 50, 50]), annotation("7", [0, 0, 50, 50])], ["a", 7])
    table = table_of(["a", "7"], ([[0, 0, 50, 50]], [0.5]), ([[0, 0, 50, 50]], [0.5]))
    assert measure(table, [file]).values["AR@10"] == 1
