"""Greedy NMS and DIoU-NMS side by side, on hand-made cases with known answers."""

import json

import numpy as np
import pytest

from diou_jax.analysis.suppression import Verdict, side_by_side
from diou_jax.evaluation import coco_results

# Two objects beside each other, a crowd region and an object of another class; x, y, width, height.
LEFT, RIGHT, CROWD, OTHER = [10, 10, 40, 40], [30, 10, 40, 40], [200, 200, 60, 60], [100, 100, 30, 30]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The annotation file: image 1 has all objects, image 2 has none."""
    objects = [(LEFT, 1, 0), (RIGHT, 1, 0), (CROWD, 1, 1), (OTHER, 2, 0)]
    annotations = [
        {"id": i, "image_id": 1, "bbox": box, "category_id": c, "iscrowd": crowd, "area": box[2] * box[3]}
        for i, (box, c, crowd) in enumerate(objects, 1)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": 300, "width": 300} for i in (1, 2)]
    categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
    file = tmp_path_factory.mktemp("truth") / "truth.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


@pytest.fixture(scope="module")
def compared(truth):
    """``compared(greedy, diou)``: detections (box, score) or (box, score, class, image) of both, side by side."""

    def matches(found):
        results = []
        for box, score, *more in found:
            label, image = [*more, *[1, 1][len(more) :]]
            results.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
        return coco_results.evaluate(results, [truth], with_matches=True).matches

    return lambda greedy, diou, limit=100: side_by_side(matches(greedy), matches(diou), limit=limit)


def verdicts(kept):
    return [Verdict(number).name for number in kept.verdicts.tolist()]


BEST = (LEFT, 0.9)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ((RIGHT, 0.8), "RIGHT"),
        (([31, 11, 40, 40], 0.8), "RIGHT"),
        (([11, 10, 40, 40], 0.8), "DUPLICATE"),
        (([250, 10, 20, 20], 0.8), "BACKGROUND"),
        (([60, 10, 40, 40], 0.8), "BACKGROUND"),  # it meets an object, by an IoU of 1/7
        ((RIGHT, 0.8, 2), "BACKGROUND"),  # an object of another class
        ((OTHER, 0.8, 2), "RIGHT"),
        ((RIGHT, 0.8, 1, 2), "BACKGROUND"),  # an image without objects
        (([210, 210, 20, 20], 0.8), "IGNORED"),
    ],
)
def test_a_detection_that_one_kind_keeps_alone(compared, found, verdict):
    result = compared([BEST], [BEST, found])
    assert verdicts(result.only_diou) == [verdict] and verdicts(result.only_greedy) == [] and result.both == 1
    label = found[2] - 1 if len(found) > 2 else 0
    assert result.only_diou.counts[label, Verdict[verdict]] == result.only_diou.counts.sum() == 1
    (row,) = result.only_diou.rows
    assert result.diou.found.scores[row] == 0.8
    # The same question the other way round.
    mirrored = compared([BEST, found], [BEST])
    assert verdicts(mirrored.only_greedy) == [verdict] and verdicts(mirrored.only_diou) == []
    assert (mirrored.only_greedy.right, mirrored.only_greedy.wrong) == (
        int(verdict == "RIGHT"),
        int(verdict in ("DUPLICATE", "BACKGROUND")),
    )


@pytest.mark.parametrize(
    ("greedy", "diou"),
    [([BEST, (RIGHT, 0.8)], [BEST, ([31, 10, 40, 40], 0.7)]), ([BEST], [([11, 10, 40, 40], 0.9)])],
    ids=["the second object", "the first object"],
)
def test_the_same_object_by_another_detection_is_an_exchange(compared, greedy, diou):
    result = compared(greedy, diou)
    assert verdicts(result.only_greedy) == verdicts(result.only_diou) == ["EXCHANGED"]


def test_a_detection_that_takes_the_object_of_one_that_both_keep_is_a_duplicate(compared):
    """It has the higher score, so that COCOeval calls the other one wrong."""
    result = compared([(LEFT, 0.8)], [([11, 10, 40, 40], 0.9), (LEFT, 0.8)])
    assert verdicts(result.only_diou) == ["DUPLICATE"] and result.both == 1


def test_what_falls_behind_the_limit_is_no_decision_of_suppression(compared):
    greedy = [BEST, (OTHER, 0.5, 2)]
    diou = [BEST, (RIGHT, 0.8)]
    result = compared(greedy, diou, limit=2)
    assert verdicts(result.only_greedy) == ["LIMIT"] and verdicts(result.only_diou) == ["RIGHT"]
    assert verdicts(compared(greedy, diou, limit=3).only_greedy) == ["RIGHT"]


def test_equal_detections_are_counted(compared):
    result = compared([BEST, BEST], [BEST, BEST, BEST])
    assert result.both == 2 and verdicts(result.only_diou) == ["DUPLICATE"]


def test_nothing_found(compared):
    result = compared([], [])
    assert result.both == 0 and len(result.only_greedy.rows) == len(result.only_diou.rows) == 0
    result = compared([], [BEST])
    assert verdicts(result.only_diou) == ["RIGHT"]


def test_no_objects(tmp_path):
    file = tmp_path / "truth.json"
    file.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.png", "height": 9, "width": 9}],
                "annotations": [],
                "categories": [{"id": 1, "name": "disc"}],
            }
        )
    )
    one = [{"image_id": 1, "category_id": 1, "bbox": LEFT, "score": 0.9}]
    none, some = (coco_results.evaluate(results, [file], with_matches=True).matches for results in ([], one))
    result = side_by_side(none, some, limit=100)
    assert verdicts(result.only_diou) == ["BACKGROUND"]


def test_the_table_has_the_counts(compared):
    nothing = [250, 10, 20, 20]
    found = [BEST, (RIGHT, 0.8), ([11, 10, 40, 40], 0.7), (nothing, 0.6), (nothing, 0.6, 2)]
    lines = compared([BEST], found).lines()
    assert "1 detections are kept by greedy NMS and by DIoU-NMS" in lines[0]
    head, greedy, diou = (line.split() for line in lines[1:])
    assert dict(zip(head, diou[1:], strict=True)) == {
        "AP": "0.500",
        "AP50": "0.500",
        "only": "4",
        "right": "1",
        "exchanged": "0",
        "duplicate": "1",
        "background": "2",
        "ignored": "0",
        "limit": "0",
    }
    assert np.sum([int(text) for text in greedy[4:]]) == 0
