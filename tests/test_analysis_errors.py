"""Each kind of error alone, with a known loss of AP; all of them against COCOeval on data in which they are mended."""

import math

import numpy as np
import pytest
from coco_scenes import draw_scene, match, score, thing
from conftest import slow

from diou_jax.analysis.errors import ERRORS, Kind, find_errors, gains

CUP, CAT = 1, 2
FIRST, SECOND = (0, 0, 100, 100), (200, 0, 100, 100)
# IoU with FIRST or SECOND: 0.4 and 2 / 3.
FOURTH_OF_FIRST, FOURTH_OF_SECOND, TWO_THIRDS_OF_FIRST = (0, 0, 100, 40), (200, 0, 100, 40), (20, 0, 100, 100)
NOWHERE = (400, 400, 50, 50)

# The first of two objects is found, then something wrong comes, then the second: 51 of 101 recalls read a precision of
# 1, the others of 2 / 3.
WRONG_BETWEEN = 1 - (51 + 50 * 2 / 3) / 101

# For a kind: objects, detections by descending score, the gain by class.
ALONE = {
    Kind.MISSED: (
        [(CUP, FIRST), (CUP, SECOND), (CUP, (0, 200, 50, 50)), (CUP, (200, 200, 50, 50)), (CAT, NOWHERE)],
        [(CUP, FIRST), (CUP, SECOND), (CUP, (0, 200, 50, 50)), (CAT, NOWHERE)],
        (25 / 101, 0),
    ),
    Kind.DUPLICATE: (
        [(CUP, FIRST), (CUP, SECOND), (CAT, NOWHERE)],
        [(CUP, FIRST), (CUP, FIRST), (CUP, SECOND), (CAT, NOWHERE)],
        (WRONG_BETWEEN, 0),
    ),
    Kind.BACKGROUND: (
        [(CUP, FIRST), (CUP, SECOND), (CAT, (300, 0, 9, 9))],
        [(CUP, FIRST), (CUP, NOWHERE), (CUP, SECOND), (CAT, (300, 0, 9, 9))],
        (WRONG_BETWEEN, 0),
    ),
    Kind.PLACE: (
        [(CUP, FIRST), (CUP, SECOND), (CAT, NOWHERE)],
        [(CUP, FIRST), (CUP, FOURTH_OF_SECOND), (CAT, NOWHERE)],
        (50 / 101, 0),
    ),
    Kind.CLASS: ([(CUP, FIRST), (CAT, SECOND)], [(CAT, SECOND), (CAT, FIRST)], (1, 0)),
    Kind.BOTH: (
        [(CUP, FIRST), (CAT, SECOND)],
        [(CUP, FIRST), (CAT, FOURTH_OF_FIRST), (CAT, SECOND)],
        (0, 0.5),
    ),
}


def scene(folder, objects, found):
    """Objects and detections of an image, as class and box, by descending score."""
    objects = [thing(1, *one) for one in objects]
    results = [thing(1, *one, score=1 - place / 100) for place, one in enumerate(found)]
    return match(folder, objects, results, classes=("cup", "cat"))


def counts(matches, errors):
    """The number of errors at IoU 0.5, by kind."""
    kinds = np.concatenate([errors.found[0], errors.true[0][errors.true[0] == Kind.MISSED]])
    return {kind: int((kinds == kind).sum()) for kind in ERRORS if (kinds == kind).any()}


@pytest.mark.parametrize("kind", ALONE, ids=lambda kind: kind.name)
def test_each_kind_alone(tmp_path, kind):
    objects, found, by_class = ALONE[kind]
    matches = scene(tmp_path, objects, found)
    errors = find_errors(matches)
    assert counts(matches, errors) == {kind: 1}
    # The boxes of all objects found are exact, so that every IoU threshold sees the same.
    assert (errors.found == errors.found[0]).all() and (errors.true == errors.true[0]).all()
    result = gains(matches, errors)
    for other in ERRORS:
        wanted = np.array(by_class if other == kind else (0, 0), np.float64)
        for values in (result.class_ap[other], result.class_ap50[other]):
            np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-12)
        for value in (result.ap[other], result.ap50[other]):
            assert math.isclose(value, wanted.mean(), abs_tol=1e-12)
        assert result.counts[other].sum() == (other == kind)


def test_every_kind_at_once(tmp_path):
    objects = [(CUP, FIRST), (CUP, SECOND), (CAT, (0, 200, 50, 50)), (CUP, (200, 200, 50, 50)), (CAT, (300, 200, 9, 9))]
    found = [
        (CUP, FIRST),
        (CUP, TWO_THIRDS_OF_FIRST),
        (CUP, FOURTH_OF_SECOND),
        (CUP, (0, 200, 50, 50)),
        (CAT, FOURTH_OF_FIRST),
        (CAT, NOWHERE),
        (CAT, (300, 200, 9, 9)),
    ]
    matches = scene(tmp_path, objects, found)
    errors = find_errors(matches)
    kinds = dict(zip(matches.found.results.tolist(), errors.found[0].tolist(), strict=True))
    wanted = [Kind.RIGHT, Kind.DUPLICATE, Kind.PLACE, Kind.CLASS, Kind.BOTH, Kind.BACKGROUND, Kind.RIGHT]
    assert [kinds[place] for place in range(7)] == wanted
    targets = dict(zip(matches.found.results.tolist(), errors.target[0].tolist(), strict=True))
    assert [targets[place] for place in range(7)] == [-1, 0, 1, 2, 0, -1, -1]
    assert errors.true[0].tolist() == [Kind.RIGHT, Kind.PLACE, Kind.CLASS, Kind.MISSED, Kind.RIGHT]
    # From IoU 0.7 on the duplicate is one no longer: its box is too far off.
    row = matches.found.results.tolist().index(1)
    assert errors.found[:, row].tolist() == [Kind.DUPLICATE] * 4 + [Kind.PLACE] * 6


def test_a_loose_box_costs_ap_at_large_ious_alone(tmp_path):
    matches = scene(tmp_path, [(CUP, FIRST)], [(CUP, TWO_THIRDS_OF_FIRST)])
    result = gains(matches, find_errors(matches))
    assert math.isclose(result.ap[Kind.PLACE], 0.6) and result.ap50[Kind.PLACE] == 0
    assert result.counts[Kind.PLACE].sum() == 0
    assert all(result.ap[kind] == 0 for kind in ERRORS if kind != Kind.PLACE)


def test_of_several_errors_about_an_object_the_best_is_mended_and_the_others_go(tmp_path):
    below = (200, 50, 100, 40)
    matches = scene(tmp_path, [(CUP, SECOND), (CUP, NOWHERE)], [(CUP, FOURTH_OF_SECOND), (CUP, below), (CUP, NOWHERE)])
    errors = find_errors(matches)
    assert counts(matches, errors) == {Kind.PLACE: 2}
    # Wrong, wrong, right becomes right, right.
    before = 51 * (1 / 3) / 101
    assert math.isclose(gains(matches, errors).ap50[Kind.PLACE], 1 - before)


def test_an_error_about_an_object_that_is_found_goes(tmp_path):
    matches = scene(tmp_path, [(CUP, FIRST), (CUP, SECOND)], [(CUP, FIRST), (CUP, FOURTH_OF_FIRST), (CUP, SECOND)])
    errors = find_errors(matches)
    assert counts(matches, errors) == {Kind.PLACE: 1} and (errors.true == Kind.RIGHT).all()
    assert math.isclose(gains(matches, errors).ap[Kind.PLACE], WRONG_BETWEEN)


def test_a_class_that_is_missed_as_a_whole(tmp_path):
    matches = scene(tmp_path, [(CUP, FIRST), (CAT, SECOND)], [(CUP, FIRST), (CAT, NOWHERE)])
    result = gains(matches, find_errors(matches))
    assert result.class_ap50[Kind.MISSED].tolist() == [0, 1] and result.ap50[Kind.MISSED] == 0.5


def test_crowds_excuse_detections_and_are_no_objects(tmp_path):
    objects = [thing(1, CUP, FIRST), thing(1, CUP, SECOND, iscrowd=1)]
    found = [(CUP, FIRST), (CUP, (210, 10, 20, 20)), (CUP, (250, 50, 20, 20)), (CAT, (210, 10, 20, 20))]
    results = [thing(1, *one, score=1 - place / 100) for place, one in enumerate(found)]
    matches = match(tmp_path, objects, results, classes=("cup", "cat"))
    errors = find_errors(matches)
    assert errors.found[0].tolist() == [Kind.RIGHT, Kind.IGNORED, Kind.IGNORED, Kind.BACKGROUND]
    assert errors.true[0].tolist() == [Kind.RIGHT, Kind.IGNORED]
    result = gains(matches, errors)
    assert all(value == 0 for value in result.ap.values())
    # There are no cats: their AP is undefined, and no gain of theirs a number.
    assert all(math.isnan(values[1]) for values in result.class_ap.values())


@pytest.mark.parametrize(("objects", "found"), [([], []), ([], [(CUP, FIRST)]), ([(CUP, FIRST)], [])])
def test_nothing_found_and_nothing_there(tmp_path, objects, found):
    matches = scene(tmp_path, objects, found)
    errors = find_errors(matches)
    result = gains(matches, errors)
    assert result.counts[Kind.BACKGROUND].sum() == len(found) and result.counts[Kind.MISSED].sum() == len(objects)
    missed = result.ap[Kind.MISSED]
    assert missed == 1 if objects else math.isnan(missed)


# Counts at IoU 0.5 and 0.75, and gains of AP50, of tidecv 1.0.1 for the scene of seed 12; the gains from its mean over
# all three classes to that over the two with objects.
TIDE = {
    Kind.CLASS: (11, 7, 0.004837764363028772),
    Kind.PLACE: (31, 68, 0.06749813635527767),
    Kind.BOTH: (11, 15, 0.03369924677549243),
    Kind.DUPLICATE: (51, 18, 0.046747816671277656),
    Kind.BACKGROUND: (50, 50, 0.051012312757022095),
    Kind.MISSED: (4, 4, 0.05394710662328132),
}


def test_kinds_and_gains_are_those_of_the_published_tool(tmp_path):
    content, results = draw_scene(12, images=12, found=16, crowd=0)
    matches = score(tmp_path, content, results).matches
    errors = find_errors(matches)
    result = gains(matches, errors)
    for kind, (half, three_quarters, gain) in TIDE.items():
        found = errors.true if kind == Kind.MISSED else errors.found
        assert [(found[matches.threshold(iou)] == kind).sum() for iou in (0.5, 0.75)] == [half, three_quarters]
        assert math.isclose(result.ap50[kind], gain, abs_tol=1e-9)


def mended(content, results, matches, errors, kind):
    """The data set and the results in which all errors of a kind at IoU 0.5 are mended."""
    if kind == Kind.MISSED:
        left = [one for one, is_a in zip(content["annotations"], errors.true[0], strict=True) if is_a != kind]
        return content | {"annotations": left}, results
    best = {}
    for row in np.flatnonzero(errors.found[0] == kind).tolist():
        target = int(errors.target[0, row])
        if kind in (Kind.CLASS, Kind.PLACE) and matches.true.matched[0, 0, target] < 0:
            rival = best.setdefault(target, row)
            best[target] = max(row, rival, key=lambda row: matches.found.scores[row])
    changed = {int(matches.found.results[row]): content["annotations"][target] for target, row in best.items()}
    gone = set(matches.found.results[errors.found[0] == kind].tolist()) - changed.keys()
    copied = ("category_id",) if kind == Kind.CLASS else ("bbox",)
    return content, [
        result | {name: changed[place][name] for name in copied if place in changed}
        for place, result in enumerate(results)
        if place not in gone
    ]


@pytest.mark.parametrize("seed", [0, 1, *map(slow, range(2, 40))])
def test_gains_are_cocoevals_on_mended_data(tmp_path, seed):
    content, results = draw_scene(seed, images=12, found=16)
    summary = score(tmp_path, content, results)
    errors = find_errors(summary.matches)
    result = gains(summary.matches, errors)
    before = np.array([row.ap50 for row in summary.classes])
    assert seed > 1 or all(result.counts[kind].any() for kind in ERRORS)
    for kind in ERRORS:
        after = score(tmp_path, *mended(content, results, summary.matches, errors, kind))
        gained = np.array([row.ap50 for row in after.classes]) - before
        np.testing.assert_allclose(result.class_ap50[kind], gained, rtol=0, atol=1e-12)
        assert math.isclose(result.ap50[kind], after.statistics["AP50"] - summary.statistics["AP50"], abs_tol=1e-12)
