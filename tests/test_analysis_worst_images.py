"""Losses of images equal COCOeval's difference when an image is perfect."""

import numpy as np
import pytest
from coco_scenes import draw_scene, match, score, thing, truth

from diou_jax.analysis import worst_images
from diou_jax.analysis.errors import find_errors
from diou_jax.analysis.worst_images import image_losses


def perfect_in(image, content, results):
    """The results with an image in which all objects are found, and nothing else."""
    objects = [one for one in content["annotations"] if one["image_id"] == image and not one.get("iscrowd")]
    return [one for one in results if one["image_id"] != image] + [
        {name: one[name] for name in ("image_id", "category_id", "bbox")} | {"score": 2} for one in objects
    ]


@pytest.mark.parametrize(("block", "found"), [(1000, 12), (2, 12), (1000, 2)])
def test_a_loss_is_what_cocoeval_would_gain(tmp_path, monkeypatch, block, found):
    monkeypatch.setattr(worst_images, "BLOCK", block)
    content, results = draw_scene(2, images=8, found=found)
    summary = score(tmp_path, content, results)
    losses = image_losses(summary.matches)
    for image, loss in enumerate(losses.tolist(), start=1):
        after = score(tmp_path, content, perfect_in(image, content, results))
        assert loss == pytest.approx(after.statistics["AP"] - summary.statistics["AP"], rel=0, abs=1e-12)
    # The first one has no detections.
    assert losses[0] > 0


def test_images_with_one_wrong_detection_cost_the_same_between_the_same_others(tmp_path):
    box = (0, 0, 50, 50)
    results = [thing(1, 1, box, score=0.9), thing(2, 1, box, score=0.5), thing(3, 1, box, score=0.1)]
    results += [thing(image, 1, box, score=value) for image, value in enumerate((0.95, 0.8, 0.7, 0.6, 0.05), start=4)]
    content = truth([thing(image, 1, box) for image in (1, 2, 3)], images=range(1, 9))
    summary = score(tmp_path, content, results)
    losses = image_losses(summary.matches)
    assert losses[4] == losses[5] == losses[6] > 0 == losses[7] and losses[3] > losses[4]
    for image, loss in enumerate(losses.tolist(), start=1):
        after = score(tmp_path, content, perfect_in(image, content, results))
        assert loss == pytest.approx(after.statistics["AP"] - summary.statistics["AP"], rel=0, abs=1e-12)


def test_worst_images_come_first_with_their_errors(tmp_path):
    box, other = (0, 0, 100, 100), (200, 200, 50, 50)
    objects = [thing(image, 1, box) for image in ("a", "b", "c")] + [thing("b", 1, other)]
    results = [
        thing("a", 1, box, score=0.9),
        thing("b", 1, (300, 300, 9, 9), score=0.95),
        thing("b", 1, (400, 300, 9, 9), score=0.97),
        thing("b", 1, box, score=0.7),
        thing("b", 1, box, score=0.6),
        thing("c", 1, box, score=0.8),
        thing("c", 2, box, score=0.85),
    ]
    matches = match(tmp_path, objects, results, images=("a", "b", "c", "d"), classes=("cup", "cat"))
    errors = find_errors(matches)
    found = worst_images.worst_images(matches, errors)
    # Nothing is wrong in "a", though its score is low beside those of "b", and nothing at all is in "d".
    assert [one.image_id for one in found] == ["b", "c"]
    worst = found[0]
    assert worst.image == 1 and worst.loss == image_losses(matches)[1]
    known = matches.found.results
    assert known[worst.right].tolist() == [3] and known[worst.duplicates].tolist() == [4]
    assert known[worst.false].tolist() == [2, 1] and worst.missed.tolist() == [3]

    losses = np.array([0.1, 0.3, 0.2, 0])
    found = worst_images.worst_images(matches, errors, count=2, losses=losses)
    assert [(one.image_id, one.loss) for one in found] == [("b", 0.3), ("c", 0.2)]
    assert known[found[1].false].tolist() == [6]


@pytest.mark.parametrize(("objects", "results"), [(0, 0), (0, 1), (1, 0)])
def test_nothing_found_and_nothing_there(tmp_path, objects, results):
    box = (0, 0, 50, 50)
    matches = match(tmp_path, [thing(1, 1, box)] * objects, [thing(1, 1, box, score=0.5)] * results)
    assert image_losses(matches).tolist() == [float(objects)]
    assert len(worst_images.worst_images(matches, find_errors(matches))) == objects
