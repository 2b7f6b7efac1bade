"""AP of weighted images equals COCOeval's of images that are really repeated."""

import itertools

import numpy as np
import pytest
from coco_scenes import draw_scene, match, score, thing, truth
from conftest import slow
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.analysis import average_precision
from diou_jax.analysis.average_precision import ClassRows, read_precision, recalls_reached
from diou_jax.evaluation.coco_results import STATISTICS

RECALLS = np.linspace(0, 1, 101)


def assert_equal(summary, scores, place=0):
    """All twelve numbers and both numbers of each class agree with COCOeval's, which has -1 for none."""
    assert tuple(scores.statistics) == tuple(summary.statistics)
    mine = [values[place] for values in scores.statistics.values()]
    wanted = [value if value > -1 else np.nan for value in summary.statistics.values()]
    np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-12)
    for name, values in (("ap", scores.class_ap), ("ap50", scores.class_ap50)):
        np.testing.assert_allclose(values[place], [getattr(row, name) for row in summary.classes], rtol=0, atol=1e-12)


def repeat(content, results, weights):
    """A data set and results with copies of images, side by side in their order."""
    copies = {image["id"]: range(count) for image, count in zip(content["images"], weights, strict=True)}
    pairs = [(image, copy) for image in copies for copy in copies[image]]
    number = {pair: place for place, pair in enumerate(pairs, start=1)}

    def copied(entries):
        return [
            entry | {"image_id": number[entry["image_id"], copy]}
            for entry in entries
            for copy in copies[entry["image_id"]]
        ]

    objects = [one | {"id": place} for place, one in enumerate(copied(content["annotations"]), start=1)]
    return content | {"images": [{"id": place} for place in number.values()], "annotations": objects}, copied(results)


@pytest.mark.parametrize("seed", range(4))
def test_equal_weights_give_cocos_numbers(tmp_path, seed):
    summary = score(tmp_path, *draw_scene(seed, images=15, classes=5, found=20))
    scores = average_precision.score(summary.matches)
    assert tuple(scores.statistics) == STATISTICS
    assert_equal(summary, scores)


def weights_repeat_images(folder, seed, weights, max_dets):
    content, results = draw_scene(seed, found=30)
    summary = score(folder, content, results, max_dets=max_dets)
    # Two sets together, so that they cannot mix unseen.
    scores = average_precision.score(summary.matches, np.array([[1] * 6, weights]))
    assert_equal(summary, scores, 0)
    assert_equal(score(folder, *repeat(content, results, weights), max_dets=max_dets), scores, 1)


@pytest.mark.parametrize("examples", [8, slow(100)])
def test_weights_repeat_images(tmp_path, examples):
    values = {"seed": st.integers(0, 10**6), "max_dets": st.sampled_from([11, 100])}
    weights = st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(any)
    quick = settings(deadline=None, max_examples=examples, database=None)
    quick(given(folder=st.just(tmp_path), weights=weights, **values)(weights_repeat_images))()


def test_equal_scores_in_different_images_keep_cocos_order(tmp_path):
    objects = [thing(image, 1, (0, 0, 50, 50)) for image in (1, 2, 3)]
    results = [thing(1, 1, (200, 0, 50, 50), score=0.5), *(one | {"score": 0.5} for one in objects[1:])]
    content, weights = truth(objects, images=(1, 2, 3)), (2, 1, 2)
    scores = average_precision.score(score(tmp_path, content, results).matches, np.array([weights]))
    assert_equal(score(tmp_path, *repeat(content, results, weights)), scores)


def test_more_sets_than_a_block(tmp_path, monkeypatch):
    matches = score(tmp_path, *draw_scene(5)).matches
    weights = np.random.default_rng(0).integers(0, 3, (7, 6))
    whole = average_precision.score(matches, weights)
    monkeypatch.setattr(average_precision, "BLOCK", 3)
    parts = average_precision.score(matches, weights)
    for name, values in whole.statistics.items():
        np.testing.assert_array_equal(parts.statistics[name], values)


def test_without_sizes(tmp_path):
    matches = score(tmp_path, *draw_scene(5)).matches
    whole, part = (average_precision.score(matches, areas=areas) for areas in (True, False))
    assert tuple(part.statistics) == ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
    assert all(values == whole.statistics[name] for name, values in part.statistics.items())


@pytest.mark.parametrize(("things", "results", "ap"), [(0, 0, np.nan), (0, 2, np.nan), (2, 0, 0.0)])
def test_nothing_found_and_nothing_there(tmp_path, things, results, ap):
    objects = [thing(1, 1, (60 * place, 0, 20, 20)) for place in range(things)]
    found = [thing(1, 1, (60 * place, 0, 20, 20), score=0.5) for place in range(results)]
    scores = average_precision.score(match(tmp_path, objects, found))
    np.testing.assert_array_equal(scores.statistics["AP"], [ap])
    np.testing.assert_array_equal(scores.class_ap, [[ap]])


def test_an_image_that_is_never_drawn_takes_its_class_along(tmp_path):
    objects = [thing(1, 1, (0, 0, 20, 20)), thing(2, 2, (0, 0, 20, 20))]
    found = [objects[0] | {"score": 0.5}]
    matches = match(tmp_path, objects, found, images=(1, 2), classes=("cup", "cat"))
    scores = average_precision.score(matches, np.array([[1, 1], [2, 0], [0, 2]]))
    np.testing.assert_array_equal(scores.class_ap, [[1, 0], [1, np.nan], [np.nan, 0]])
    np.testing.assert_array_equal(scores.statistics["AP"], [0.5, 1, 0])


def test_recalls_are_compared_as_cocoeval_does():
    hits, objects = np.array(list(itertools.combinations_with_replacement(range(301), 2))).T
    recall = hits[objects > 0] / objects[objects > 0]
    np.testing.assert_array_equal(recalls_reached(recall, RECALLS), np.searchsorted(RECALLS, recall, side="right"))


def test_both_ways_to_read_precision_agree(tmp_path):
    matches = score(tmp_path, *draw_scene(8, images=12)).matches
    for row in (0, 1):
        one, mine = ClassRows.of(matches, row), matches.rows(row)
        objects = np.array([float(len(one.object_images))])
        right, wrong = matches.right()[:, mine], matches.wrong()[:, mine]
        plain = read_precision(right.cumsum(1), (right | wrong).cumsum(1), np.repeat(objects, 10), recalls=RECALLS)
        walked = one.average_precision(np.ones((12, 1)), objects)[:, 0]
        np.testing.assert_allclose(walked, plain, rtol=0, atol=1e-14)
        assert 0 < plain[0] < 1
