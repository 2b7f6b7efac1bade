"""The confusion matrix by hand, and its sums."""

import numpy as np
import pytest
from coco_scenes import draw_scene, match, score, thing

from diou_jax.analysis.confusion import confusion

CUP, CAT = 1, 2
BOX, LOWER, OTHER, NOWHERE = (0, 0, 100, 100), (0, 20, 100, 100), (200, 0, 100, 100), (400, 400, 50, 50)


def counts(folder, objects, found, **options):
    """The matrix for objects and detections of an image, detections as class, box and score."""
    results = [thing(1, label, box, score=value) for label, box, value in found]
    matches = match(folder, [thing(1, *one) for one in objects], results, classes=("cup", "cat"))
    return confusion(matches, **options).counts.tolist()


def test_right_confused_false_and_missed(tmp_path):
    objects = [(CUP, BOX), (CAT, OTHER), (CAT, (0, 300, 50, 50))]
    found = [(CUP, BOX, 0.9), (CUP, OTHER, 0.8), (CAT, NOWHERE, 0.7)]
    assert counts(tmp_path, objects, found) == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_the_higher_score_takes_the_object(tmp_path):
    found = [(CAT, LOWER, 0.9), (CUP, BOX, 0.8)]
    assert counts(tmp_path, [(CUP, BOX)], found) == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_a_detection_takes_the_nearest_object_of_any_class(tmp_path):
    objects = [(CUP, LOWER), (CAT, BOX)]
    assert counts(tmp_path, objects, [(CUP, BOX, 0.9)]) == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    # A second one has to take the one that is left.
    found = [(CUP, BOX, 0.9), (CAT, BOX, 0.8)]
    assert counts(tmp_path, objects, found) == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_thresholds_are_included(tmp_path):
    found = [(CUP, (0, 0, 100, 50), 0.5)]
    assert counts(tmp_path, [(CUP, BOX)], found)[0] == [1, 0, 0]
    assert counts(tmp_path, [(CUP, BOX)], found, score_threshold=0.51) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert counts(tmp_path, [(CUP, BOX)], found, iou=0.55) == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_crowds_excuse_detections_of_their_class(tmp_path):
    objects = [thing(1, CUP, BOX, iscrowd=1), thing(1, CUP, OTHER)]
    inside = (10, 10, 30, 30)
    results = [thing(1, label, box, score=0.9) for label, box in ((CUP, inside), (CAT, inside), (CUP, OTHER))]
    found = confusion(match(tmp_path, objects, results, classes=("cup", "cat")))
    assert found.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert found.class_names == ("cup", "cat") and (found.score_threshold, found.iou) == (0.5, 0.5)


def test_every_object_and_detection_is_counted_once(tmp_path):
    content, results = draw_scene(7, images=12, crowd=0)
    matches = score(tmp_path, content, results).matches
    matrix = confusion(matches, score_threshold=0.3).counts
    np.testing.assert_array_equal(matrix[:-1].sum(1), matches.objects())
    kept = matches.found.classes[matches.found.scores >= 0.3]
    np.testing.assert_array_equal(matrix[:, :-1].sum(0), np.bincount(kept, minlength=3))
    assert matrix[-1, -1] == 0 and (matrix[:-1, :-1].sum(), matrix.trace()) > (0, 0)


@pytest.mark.parametrize(("objects", "found"), [([], []), ([], [(CUP, BOX, 0.9)]), ([(CUP, BOX)], [])])
def test_nothing_found_and_nothing_there(tmp_path, objects, found):
    assert counts(tmp_path, objects, found) == [[0, 0, len(objects)], [0, 0, 0], [len(found), 0, 0]]
