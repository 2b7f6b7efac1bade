"""Matches hold the outcome of COCOeval's own run."""

import dataclasses
import json

import numpy as np
import pytest
from coco_scenes import draw_scene, match, score, thing
from pycocotools import mask as coco_mask

from diou_jax.analysis.matches import LEAST_IOU
from diou_jax.evaluation.coco_results import evaluate


def test_a_detection_an_object_and_a_crowd(tmp_path):
    objects = [
        thing(7, 2, (10, 10, 20, 20)),
        thing(7, 1, (100, 100, 50, 50), iscrowd=1),
        thing(9, 2, (0, 0, 200, 200)),
    ]
    found = [
        thing(9, 2, (0, 0, 200, 160), score=0.5),
        thing(7, 1, (110, 110, 10, 10), score=0.25),
        thing(7, 2, (10, 10, 20, 20), score=0.75),
        thing(7, 2, (11, 10, 20, 20), score=0.25),
    ]
    matches = match(tmp_path, objects, found, images=(7, 8, 9), classes=("cup", "cat"))
    assert matches.image_ids == (7, 8, 9) and matches.class_names == ("cup", "cat")
    assert matches.category_ids == (1, 2) and matches.kind == "bbox" and matches.max_dets == (1, 10, 100)
    mine, half, last = matches.found, matches.threshold(0.5), matches.threshold(0.95)
    # By class, then by descending score.
    assert mine.results.tolist() == [1, 2, 0, 3]
    assert mine.classes.tolist() == [0, 1, 1, 1] and mine.images.tolist() == [0, 0, 2, 0]
    assert mine.ranks.tolist() == [0, 0, 0, 1] and mine.scores.tolist() == [0.25, 0.75, 0.5, 0.25]
    assert mine.boxes[2].tolist() == [0, 0, 200, 160] and mine.areas.tolist() == [100, 400, 32000, 400]
    assert mine.matched[0, half].tolist() == [1, 0, 2, -1]
    assert mine.matched[0, last].tolist() == [1, 0, -1, -1]
    assert mine.ignored[0, half].tolist() == [True, False, False, False]
    assert matches.right()[half].tolist() == [False, True, True, False]
    assert matches.wrong()[last].tolist() == [False, False, True, True]
    assert matches.objects().tolist() == [0, 2]

    true = matches.true
    assert true.crowd.tolist() == [False, True, False] and true.areas.tolist() == [400, 2500, 40000]
    assert true.matched[0, half].tolist() == [1, -1, 2] and true.matched[0, last].tolist() == [1, -1, -1]
    small, large = matches.area_names.index("small"), matches.area_names.index("large")
    assert true.ignored[small].tolist() == [False, True, True]
    assert true.ignored[large].tolist() == [True, True, False]
    assert [matches.rows(row) for row in (0, 1)] == [slice(0, 1), slice(1, 4)]


def test_overlaps_are_of_all_classes_and_at_least_a_tenth(tmp_path):
    content, results = draw_scene(3)
    matches = score(tmp_path, content, results).matches
    found, true, overlaps = matches.found, matches.true, matches.overlaps
    ious = coco_mask.iou(found.boxes, true.boxes, true.crowd.astype(np.uint8))
    ious[found.images[:, None] != true.images] = 0
    rows, columns = np.nonzero(ious >= LEAST_IOU)
    np.testing.assert_array_equal(overlaps.found, rows)
    np.testing.assert_array_equal(overlaps.true, columns)
    np.testing.assert_array_equal(overlaps.ious, ious[rows, columns])
    assert 0 < matches.same_class().sum() < len(overlaps.ious)

    largest, target = matches.largest_overlap(matches.same_class())
    ious[found.classes[:, None] != true.classes] = 0
    best = ious.max(1)
    np.testing.assert_array_equal(largest, np.where(best >= LEAST_IOU, best, 0))
    np.testing.assert_array_equal(target, np.where(best >= LEAST_IOU, ious.argmax(1), -1))


def test_masks_are_compared_as_masks(tmp_path):
    def rle(x, y, width, height):
        mask = np.zeros((40, 40), np.uint8)
        mask[y : y + height, x : x + width] = 1
        encoded = coco_mask.encode(np.asfortranarray(mask))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}

    content = {
        "images": [{"id": "a", "height": 40, "width": 40}],
        "categories": [{"id": 3, "name": "cup"}],
        "annotations": [
            # The box says one thing, the mask another.
            thing("a", 3, (0, 0, 40, 40), id=1, segmentation=rle(2, 2, 10, 10)),
            thing("a", 3, (0, 20, 10, 10), id=2, segmentation=None),
        ],
    }
    results = [
        {"image_id": "a", "category_id": 3, "segmentation": rle(2, 2, 10, 8), "score": 0.5},
        {"image_id": "a", "category_id": 3, "segmentation": rle(2, 22, 5, 5), "score": 0.25},
    ]
    matches = score(tmp_path, content, results, kind="segm").matches
    assert matches.kind == "segm" and matches.image_ids == ("a",)
    assert matches.found.matched[0, 0].tolist() == [0, 1] and matches.true.crowd.tolist() == [False, True]
    assert matches.found.boxes.tolist() == [[2, 2, 10, 8], [2, 22, 5, 5]] and matches.found.areas.tolist() == [80, 25]
    assert matches.overlaps.ious.tolist() == [0.8, 1]


def test_only_images_that_count_and_detections_within_the_limit(tmp_path):
    content, _ = draw_scene(0, images=3)
    results = [thing(2, 1, (10 * place, 0, 5, 5), score=place / 20) for place in range(1, 16)]
    results += [thing(1, 1, (0, 0, 5, 5), score=0.5)]
    matches = score(tmp_path, content, results, image_ids=[2], max_dets=12).matches
    assert matches.image_ids == (2,) and matches.max_dets == (1, 10, 12)
    assert matches.found.results.tolist() == list(range(14, 2, -1)) and matches.found.ranks.tolist() == list(range(12))
    assert set(matches.true.images.tolist()) == {0}


def test_image_ids_of_any_kind_keep_their_order(tmp_path):
    objects = [thing("b", 1, (0, 0, 9, 9)), thing(10, 1, (0, 0, 9, 9)), thing("a", 1, (0, 0, 9, 9))]
    matches = match(tmp_path, objects, [thing("a", 1, (0, 0, 9, 9), score=1)], images=("b", 10, "a", 9))
    assert matches.image_ids == (9, 10, "a", "b")
    assert matches.true.images.tolist() == [3, 1, 2] and matches.found.images.tolist() == [2]


@pytest.mark.parametrize(("things", "results"), [(0, 0), (0, 3), (2, 0)])
def test_nothing_found_and_nothing_there(tmp_path, things, results):
    objects = [thing(1, 1, (50 * place, 0, 20, 20)) for place in range(things)]
    found = [thing(1, 1, (60 * place, 0, 20, 20), score=0.5) for place in range(results)]
    matches = match(tmp_path, objects, found)
    assert (len(matches.true), len(matches.found)) == (things, results)
    assert matches.found.matched.shape == (4, 10, results) and matches.true.matched.shape == (4, 10, things)
    assert matches.found.boxes.shape == (results, 4) and matches.true.boxes.shape == (things, 4)
    assert len(matches.overlaps.ious) == 0
    assert (matches.largest_overlap(matches.same_class())[1] == -1).all()


def test_a_summary_holds_matches_if_asked(tmp_path):
    content, results = draw_scene(0)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    without, with_matches = (
        evaluate(results, [tmp_path / "truth.json"], with_matches=wanted) for wanted in (False, True)
    )
    assert without.matches is None and with_matches.matches is not None
    assert without.statistics == with_matches.statistics and dataclasses.asdict(without).keys() >= {"matches"}
    assert "matches" not in repr(with_matches)


def test_an_iou_that_was_not_evaluated(tmp_path):
    matches = match(tmp_path, [], [])
    assert [matches.threshold(iou) for iou in (0.5, 0.75, 0.95)] == [0, 5, 9]
    with pytest.raises(ValueError, match=r"IoU 0\.42 was not evaluated"):
        matches.threshold(0.42)
