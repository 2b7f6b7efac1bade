"""Curves over the score, by hand and beside COCOeval's."""

import math

import numpy as np
import pytest
from coco_scenes import draw_scene, match, score, thing

from diou_jax.analysis import curves

BOX, OTHER, NOWHERE = (0, 0, 50, 50), (100, 0, 50, 50), (300, 300, 50, 50)


def three_found(folder, scores=(0.9, 0.8, 0.7)):
    """Two objects; a right, a wrong and a right detection; one in a crowd, which does not count."""
    objects = [thing(1, 1, BOX), thing(1, 1, OTHER), thing(1, 1, (200, 0, 50, 50), iscrowd=1)]
    results = [thing(1, 1, box, score=value) for box, value in zip((BOX, NOWHERE, OTHER), scores, strict=True)]
    results.append(thing(1, 1, (210, 0, 20, 20), score=0.95))
    return match(folder, objects, results, classes=("cup", "cat"))


def test_precision_at_101_recalls(tmp_path):
    found = curves.precision_recall(three_found(tmp_path))
    np.testing.assert_array_equal(found.recalls, np.linspace(0, 1, 101))
    for threshold in (0, 9):
        np.testing.assert_allclose(found.precision[threshold, 0], [1] * 51 + [2 / 3] * 50)
        np.testing.assert_array_equal(found.scores[threshold, 0], [0.9] * 51 + [0.7] * 50)
    assert np.isnan(found.precision[:, 1]).all() and np.isnan(found.scores[:, 1]).all()


def test_their_mean_is_ap(tmp_path):
    summary = score(tmp_path, *draw_scene(4, images=12))
    matches = summary.matches
    for area, name in enumerate(("AP", "APs", "APm", "APl")):
        precision = curves.precision_recall(matches, area=area).precision
        assert math.isclose(np.nanmean(precision), summary.statistics[name], abs_tol=1e-12)
    found = curves.precision_recall(matches)
    # Precision is 0 exactly where the recall, and so its score, is not reached.
    known = ~np.isnan(found.precision)
    np.testing.assert_array_equal((found.precision == 0)[known], np.isnan(found.scores)[known])


def test_histograms_of_scores(tmp_path):
    found = curves.score_histogram(three_found(tmp_path, scores=(1.0, 0.8, 0.0)), bins=5)
    np.testing.assert_allclose(found.edges, [0, 0.2, 0.4, 0.6, 0.8, 1])
    # A bin includes its lower edge, the last one its upper edge, too.
    assert found.right.tolist() == [[1, 0, 0, 0, 1], [0] * 5] and found.wrong.tolist() == [[0, 0, 0, 0, 1], [0] * 5]


def test_the_best_threshold(tmp_path):
    matches = three_found(tmp_path)
    cup, cat = curves.best_thresholds(matches)
    # Keeping all gives precision 2 / 3 and recall 1, keeping the first one precision 1 and recall 1 / 2.
    assert (cup.threshold, cup.recall) == (0.7, 1) and math.isclose(cup.precision, 2 / 3) and math.isclose(cup.f1, 0.8)
    assert all(math.isnan(value) for value in (cat.threshold, cat.f1, cat.precision, cat.recall))
    assert curves.best_threshold(matches) == cup


def test_a_threshold_keeps_all_detections_of_a_score(tmp_path):
    cup, _ = curves.best_thresholds(three_found(tmp_path, scores=(0.9, 0.9, 0.1)))
    assert (cup.threshold, cup.recall) == (0.1, 1)
    objects = [thing(1, 1, BOX), thing(1, 1, OTHER)]
    right, wrong = thing(1, 1, BOX, score=0.5), thing(1, 1, NOWHERE, score=0.5)
    (one,) = curves.best_thresholds(match(tmp_path, objects, [right, wrong]))
    assert (one.threshold, one.precision, one.recall, one.f1) == (0.5, 0.5, 0.5, 0.5)


def test_the_largest_of_equally_good_thresholds(tmp_path):
    # Of eight objects, two detections find two and seven find three: F1 is 2 * 2 / (2 + 8) and 2 * 3 / (7 + 8).
    objects = [thing(1, 1, (60 * place, 0, 50, 50)) for place in range(8)]
    found = [objects[0]["bbox"], objects[1]["bbox"], *[NOWHERE] * 4, objects[2]["bbox"]]
    results = [thing(1, 1, box, score=(9 - place) / 10) for place, box in enumerate(found)]
    (one,) = curves.best_thresholds(match(tmp_path, objects, results))
    assert (one.threshold, one.f1, one.precision, one.recall) == (0.8, 0.4, 1, 0.25)


@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_no_threshold_is_better(tmp_path, iou):
    matches = score(tmp_path, *draw_scene(6, images=12)).matches
    threshold, objects = matches.threshold(iou), matches.objects()
    right, wrong = matches.right()[threshold], matches.wrong()[threshold]

    def f1(cut, classes):
        mine = (matches.found.scores >= cut) & np.isin(matches.found.classes, classes)
        return 2 * (right & mine).sum() / ((right & mine).sum() + (wrong & mine).sum() + objects[classes].sum())

    found = [
        *zip(curves.best_thresholds(matches, iou=iou), ([0], [1])),
        (curves.best_threshold(matches, iou=iou), None),
    ]
    for best, row in found:
        classes = np.arange(3) if row is None else np.array(row)
        assert math.isclose(best.f1, f1(best.threshold, classes))
        assert math.isclose(best.f1, max(f1(cut, classes) for cut in matches.found.scores))


@pytest.mark.parametrize(("objects", "results"), [(0, 0), (0, 1), (1, 0)])
def test_nothing_found_and_nothing_there(tmp_path, objects, results):
    matches = match(tmp_path, [thing(1, 1, BOX)] * objects, [thing(1, 1, NOWHERE, score=0.5)] * results)
    found = curves.precision_recall(matches)
    assert (found.precision == 0).all() if objects else np.isnan(found.precision).all()
    assert curves.score_histogram(matches).wrong.sum() == results
    assert math.isnan(curves.best_threshold(matches).threshold) and math.isnan(curves.best_thresholds(matches)[0].f1)
