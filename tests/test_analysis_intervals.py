"""Bootstrap intervals: seeded, around their number, and narrow where two evaluations share their images."""

import math

import numpy as np
import pytest
from coco_scenes import draw_scene, match, score, thing
from conftest import slow

from diou_jax.analysis.average_precision import score as weighted
from diou_jax.analysis.intervals import bootstrap, draw_weights, paired_bootstraps
from diou_jax.errors import UserError


def objects_found(objects):
    """A detection of each object, with its box."""
    return [one | {"score": 0.3} for one in objects]


def test_weights_draw_as_many_images_as_there_are():
    weights = draw_weights(50, 200, seed=3)
    assert weights.shape == (200, 50) and (weights.sum(1) == 50).all() and (weights >= 0).all()
    # An image is missing from a resample with a probability of (1 - 1/50)^50.
    assert math.isclose((weights == 0).mean(), 0.98**50, abs_tol=0.02)
    np.testing.assert_array_equal(weights, draw_weights(50, 200, seed=3))
    assert (weights != draw_weights(50, 200, seed=4)).any()


def test_ends_are_percentiles_moved_to_the_number(tmp_path):
    matches = score(tmp_path, *draw_scene(1, images=20)).matches
    found = bootstrap(matches, resamples=80, seed=5, level=0.8)
    value, drawn = weighted(matches), weighted(matches, draw_weights(20, 80, seed=5))
    assert found.level == 0.8 and tuple(found.statistics) == tuple(value.statistics)
    for name, one in found.statistics.items():
        values = drawn.statistics[name][~np.isnan(drawn.statistics[name])]
        ends = np.percentile(values, [10, 90]) - values.mean() + value.statistics[name][0]
        assert one.value == value.statistics[name][0] and one.resamples == len(values) > 70
        np.testing.assert_allclose([one.low, one.high], ends.clip(0, 1), rtol=0, atol=1e-12)
        assert 0 <= one.low < one.value < one.high <= 1
    for row, one in enumerate(found.classes[:2]):
        assert one.value == value.class_ap[0, row] and one.low < one.value < one.high
    assert [one.value for one in found.classes50[:2]] == value.class_ap50[0, :2].tolist()


def test_a_class_without_objects_has_no_interval(tmp_path):
    matches = score(tmp_path, *draw_scene(1)).matches
    last = bootstrap(matches, resamples=10).classes[-1]
    assert last.resamples == 0 and all(map(math.isnan, (last.value, last.low, last.high)))


def test_objects_in_two_images_give_no_interval(tmp_path):
    objects = [thing(image, 1 + (image > 2), (0, 0, 50, 50)) for image in (1, 2, 3, 4, 5)]
    matches = match(tmp_path, objects, objects_found(objects[::2]), images=range(1, 21), classes=("cup", "cat"))
    cup, cat = bootstrap(matches, resamples=1000).classes
    assert math.isclose(cup.value, 51 / 101) and math.isnan(cup.low) and math.isnan(cup.high)
    # An image is missing from a resample of 20 images with a probability of 0.95^20, and so on.
    np.testing.assert_allclose([cup.resamples, cat.resamples], [1000 - 1000 * 0.9**20, 1000 - 1000 * 0.85**20], atol=20)
    assert cat.low < cat.value < cat.high
    # Small objects are in two images, medium ones in three.
    objects[0]["area"] = objects[1]["area"] = 10
    sizes = bootstrap(
        match(tmp_path, objects, [], images=range(1, 21), classes=("cup", "cat")), resamples=50
    ).statistics
    assert [math.isnan(sizes[name].low) for name in ("AP", "APs", "ARs", "APm", "ARm")] == [
        False,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("images", [0, 1])
def test_nothing_found_and_nothing_there(tmp_path, images):
    found = bootstrap(match(tmp_path, [], [], images=range(1, images + 1)), resamples=10).statistics["AP"]
    assert found.resamples == 0 and all(map(math.isnan, (found.value, found.low, found.high)))


def test_a_perfect_detector_is_sure(tmp_path):
    objects = [thing(image, 1, (0, 0, 50, 50 + image)) for image in range(1, 8)]
    matches = match(tmp_path, objects, objects_found(objects), images=range(1, 8))
    found = bootstrap(matches, resamples=50)
    assert (found.statistics["AP"].low, found.statistics["AP"].high) == (1, 1)
    assert found.classes[0].resamples == 50


def test_equal_evaluations_do_not_differ(tmp_path):
    matches = score(tmp_path, *draw_scene(1, images=20)).matches
    (found,) = paired_bootstraps(matches, [matches], resamples=20)
    assert all((one.value, one.low, one.high) == (0, 0, 0) for one in found.statistics.values())


def test_a_small_difference_that_all_images_share_is_sure(tmp_path):
    content, results = draw_scene(1, images=30)
    first = score(tmp_path, content, results).matches
    # A false detection of the first class above all others in every image.
    wrong = [thing(image, 1, (450, 450, 20, 20), score=1.5 + image / 100) for image in range(1, 31)]
    second = score(tmp_path, content, [*results, *wrong]).matches
    (found,) = paired_bootstraps(second, [first], resamples=100)
    difference, alone = found.statistics["AP"], bootstrap(first, resamples=100).statistics["AP"]
    assert 0 < difference.low < difference.value < difference.high
    assert difference.high - difference.low < alone.high - alone.low
    assert found.classes[0].low > 0 and (found.classes[1].low, found.classes[1].high) == (0, 0)
    back = paired_bootstraps(first, [second], resamples=100)[0].statistics["AP"]
    np.testing.assert_allclose([back.value, back.low], [-difference.value, -difference.high], atol=1e-12)
    both = paired_bootstraps(second, [first, second], resamples=100)
    assert both[0].statistics == found.statistics and both[1].statistics["AP"].high == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (1, 2, 3)}, r"of 2 and of 3 images, of which 3 is not in both"),
        ({"classes": ("cup", "dog")}, r"of 2 and of 2 classes, of which 'cat' is not in both"),
        ({"classes": ("cat", "cup")}, r"of 2 and of 2 classes, whose order differs"),
        ({"objects": [thing(1, 1, (0, 0, 6, 5))]}, "their annotations differ"),
    ],
)
def test_evaluations_that_cannot_be_compared(tmp_path, change, message):
    usual = {"objects": [thing(1, 1, (0, 0, 5, 5))], "results": [], "images": (1, 2), "classes": ("cup", "cat")}
    first, second = (match(tmp_path, **(usual | other)) for other in ({}, change))
    with pytest.raises(UserError, match=message):
        paired_bootstraps(first, [second], resamples=2)


@pytest.mark.parametrize("seeds", [slow(60)])
def test_intervals_contain_the_expected_ap_as_often_as_they_say(tmp_path, seeds):
    """Data sets of 20 images of one source: 95 % of their intervals should contain the mean of their AP."""
    found = [
        bootstrap(
            score(tmp_path, *draw_scene(seed, images=20, classes=9, objects=3, found=12)).matches,
            resamples=200,
            seed=seed,
        ).statistics["AP"]
        for seed in range(seeds)
    ]
    mean = np.mean([one.value for one in found])
    # Percentiles that are not moved contain it in 53 of 60.
    assert sum(one.low <= mean <= one.high for one in found) >= 55
