"""Results by size and crowdedness, and the IoU of matches, by hand."""

import math

import numpy as np
import pytest
from coco_scenes import draw_scene, match, score, thing

from diou_jax.analysis import crowding

LEFT, HALF_BESIDE, FAR = (0, 0, 100, 100), (50, 0, 100, 100), (300, 300, 40, 40)


def test_crowdedness_is_of_the_nearest_object_of_the_class(tmp_path):
    objects = [
        thing(1, 1, LEFT),
        thing(1, 1, HALF_BESIDE),
        thing(1, 2, LEFT),
        thing(2, 1, LEFT),
        thing(1, 1, FAR),
        thing(1, 1, (100, 0, 100, 100)),
        thing(1, 1, (0, 0, 100, 90), iscrowd=1),
    ]
    matches = match(tmp_path, objects, [], images=(1, 2), classes=("cup", "cat"))
    np.testing.assert_allclose(crowding.crowdedness(matches), [1 / 3, 1 / 3, 0, 0, 0, 1 / 3, 0])


def test_bins_of_objects(tmp_path):
    objects = [thing(1, 1, LEFT), thing(1, 1, HALF_BESIDE), thing(1, 1, FAR), thing(1, 2, (400, 0, 50, 50))]
    objects.append(thing(1, 1, (330, 300, 100, 100), iscrowd=1))
    found = [
        thing(1, 1, LEFT, score=0.9),
        # A duplicate of the first, and near no other object by more.
        thing(1, 1, (0, 0, 100, 98), score=0.8),
        thing(1, 1, FAR, score=0.7),
        # Near FAR, but in the crowd.
        thing(1, 1, (330, 300, 40, 40), score=0.99),
        # Near no object.
        thing(1, 1, (200, 450, 20, 20), score=0.95),
    ]
    bins = crowding.by_crowdedness(match(tmp_path, objects, found, classes=("cup", "cat")))
    assert bins.objects.tolist() == [2, 0, 0, 2, 0] and bins.edges.tolist() == list(crowding.CROWDEDNESS_EDGES)
    empty = [1, 2, 4]
    for name in ("ap", "ap50", "recall", "recall50", "duplicates"):
        assert np.isnan(getattr(bins, name)[empty]).all()
    # Alone: the cup is found, the cat is not. Crowded: one of two cups, above its duplicate.
    np.testing.assert_allclose(bins.ap50[[0, 3]], [0.5, 51 / 101])
    np.testing.assert_allclose(bins.recall50[[0, 3]], [0.5, 0.5])
    np.testing.assert_allclose(bins.duplicates[[0, 3]], [0, 0.5])
    np.testing.assert_allclose(bins.ap, bins.ap50)
    np.testing.assert_allclose(bins.recall, bins.recall50)


def test_one_bin_for_all_is_ap_where_every_detection_is_near_an_object(tmp_path):
    content, results = draw_scene(9, images=12, crowd=0)
    matches = score(tmp_path, content, results).matches
    near = matches.largest_overlap(matches.same_class())[1] >= 0
    kept = [results[place] for place in matches.found.results[near].tolist()]
    summary = score(tmp_path, content, kept)
    bins = crowding.by_property(summary.matches, np.zeros(len(matches.true)), np.array([0, 1]))
    assert math.isclose(bins.ap[0], summary.statistics["AP"], abs_tol=1e-12)
    assert math.isclose(bins.ap50[0], summary.statistics["AP50"], abs_tol=1e-12)
    assert bins.objects.tolist() == [len(matches.true)]
    assert crowding.by_property(matches, np.zeros(len(matches.true)), np.array([0, 1])).ap[0] == pytest.approx(
        bins.ap[0]
    )


def test_sizes(tmp_path):
    sides = (10, 16, 40, 100, 250)
    objects = [thing(1, 1, (0, 0, side, side)) for side in sides]
    bins = crowding.by_size(match(tmp_path, objects, [objects[3] | {"score": 0.5}]))
    assert bins.objects.tolist() == [1, 1, 1, 0, 1, 1]
    np.testing.assert_array_equal(bins.recall, [0, 0, 0, np.nan, 1, 0])


def test_the_iou_of_matches(tmp_path):
    objects = [thing(1, 1, LEFT), thing(1, 1, (200, 0, 100, 100)), thing(1, 1, (0, 200, 100, 100), iscrowd=1)]
    found = [
        thing(1, 1, (0, 0, 100, 60), score=0.9),
        thing(1, 1, LEFT, score=0.8),
        thing(1, 1, (200, 0, 100, 100), score=0.7),
        thing(1, 1, (0, 200, 50, 50), score=0.7),
    ]
    histogram = crowding.iou_histogram(match(tmp_path, objects, found, classes=("cup", "cat")), bins=5)
    np.testing.assert_allclose(histogram.edges, [0.5, 0.6, 0.7, 0.8, 0.9, 1])
    # The one of higher score takes the object, though its box is worse.
    assert histogram.counts.tolist() == [[0, 1, 0, 0, 1], [0] * 5]
    np.testing.assert_allclose(histogram.mean, [0.8, np.nan])


@pytest.mark.parametrize(("objects", "results"), [(0, 0), (0, 1), (1, 0)])
def test_nothing_found_and_nothing_there(tmp_path, objects, results):
    matches = match(tmp_path, [thing(1, 1, LEFT)] * objects, [thing(1, 1, FAR, score=0.5)] * results)
    for bins in (crowding.by_size(matches), crowding.by_crowdedness(matches)):
        assert bins.objects.sum() == objects and np.isnan(bins.ap).sum() == len(bins.ap) - objects
        assert bins.ap[bins.objects > 0].tolist() == [0] * objects
    histogram = crowding.iou_histogram(matches)
    assert histogram.counts.sum() == 0 and np.isnan(histogram.mean).all()
