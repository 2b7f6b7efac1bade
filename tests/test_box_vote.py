"""Golden file: nms (box voting)."""

import re

import jax
import numpy as np
import pytest
from conftest import slow

from diou_jax.detection.box_vote import SCORING_METHODS, box_vote
from diou_jax.detection.rules import BoxVoteRules

compiled = jax.jit(box_vote, static_argnames=("rules",))


@pytest.mark.parametrize("size", ["n1", slow("n17"), "n300", slow("n1000"), slow("n2000")])
def test_every_golden_case(golden, size):
    data = golden("nms.npz")
    boxes, scores = data[f"{size}/dets"][:, :4], data[f"{size}/dets"][:, 4]
    kept, everyone = data[f"{size}/keep_nms_t0.5"], np.ones(len(scores), bool)
    tried = 0
    for name, theirs in data.items():
        match = re.fullmatch(rf"{size}/vote_([A-Z_]+?)(_t0.5)?(_beta2)?", name)
        if not match:
            continue
        # The case with another exponent was made with the lower threshold.
        rules = BoxVoteRules(0.5 if match[2] or match[3] else 0.8, match[1], 2.0 if match[3] else 1.0)
        moved, score = compiled(boxes, scores, scores, valid=everyone, rules=rules)
        np.testing.assert_allclose(moved[kept], theirs[:, :4], rtol=4e-7, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(score[kept], theirs[:, 4], rtol=0, atol=3e-7, err_msg=name)
        tried += 1
    assert tried == 9


# The effect of `scoring_method_beta` on three votes of 0.9, 0.6 and 0.2; no golden file has it.
SCORES = np.float32([0.9, 0.6, 0.2])
BY_HAND = {
    "ID": 0.9,
    "AVG": 1.7 / 3,
    "IOU_AVG": 1.7 / 3,
    "TEMP_AVG": (0.9**2 / (0.9**2 + 0.1**2) + 0.6**2 / (0.6**2 + 0.4**2) + 0.2**2 / (0.2**2 + 0.8**2)) / 3,
    "GENERALIZED_AVG": ((0.9**0.5 + 0.6**0.5 + 0.2**0.5) / 3) ** 2,
    "QUASI_SUM": 1.7 / 3**0.5,
}


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_scores_with_an_exponent(method):
    boxes = np.tile(np.float32([10, 20, 30, 40]), (4, 1))
    valid = np.array([True, True, True, False])
    scores = np.float32([*SCORES, np.nan])
    moved, score = compiled(boxes, scores, scores, valid=valid, rules=BoxVoteRules(0.8, method, 0.5))
    np.testing.assert_array_equal(moved, boxes)
    np.testing.assert_allclose(score[0], BY_HAND[method], rtol=1e-6)


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_problems_are_apart_and_what_is_not_valid_has_no_vote(method):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (2, 3, 30, 2))
    boxes = np.float32(np.concatenate([corner, corner + rng.uniform(20, 40, (2, 3, 30, 2))], -1))
    scores, valid = np.float32(rng.uniform(0, 1, (2, 3, 30))), np.arange(30) < 21
    valid = rng.permuted(np.broadcast_to(valid, scores.shape), axis=-1)
    left = scores * np.float32(0.5)
    boxes[~valid & (rng.random(valid.shape) < 0.5)] = np.nan
    rules = BoxVoteRules(0.5, method, 2.0)
    moved, score = compiled(boxes, scores, left, valid=valid, rules=rules)
    for place in np.ndindex(2, 3):
        exists = valid[place]
        alone, value = compiled(
            *(x[place][exists] for x in (boxes, scores, left)), valid=np.ones(exists.sum(), bool), rules=rules
        )
        np.testing.assert_allclose(moved[place][exists], alone, rtol=1e-6)
        np.testing.assert_allclose(score[place][exists], value, rtol=1e-6)
        hull = boxes[place][exists]
        assert (moved[place][exists] >= hull.min(0)).all() and (moved[place][exists] <= hull.max(0)).all()


@pytest.mark.slow
def test_nobody_to_vote_and_scores_at_the_ends():
    boxes, scores = np.tile(np.float32([0, 0, 5, 5]), (2, 1)), np.float32([1.0, 0.0])
    for method in SCORING_METHODS:
        rules = BoxVoteRules(0.8, method, 3.0)
        moved, score = box_vote(boxes, scores, scores, valid=np.ones(2, bool), rules=rules)
        assert np.isfinite(moved).all() and np.isfinite(score).all()
        untouched = box_vote(boxes, scores, scores, valid=np.zeros(2, bool), rules=rules)
        np.testing.assert_array_equal(untouched[0], boxes)
        np.testing.assert_array_equal(untouched[1], scores)
        moved, score = box_vote(boxes[:0], scores[:0], scores[:0], valid=np.ones(0, bool), rules=rules)
        assert moved.shape == (0, 4) and score.shape == (0,)


def test_another_method_is_refused():
    box = np.zeros((1, 4)), np.zeros(1), np.zeros(1)
    with pytest.raises(ValueError, match="ID, TEMP_AVG, AVG"):
        box_vote(*box, valid=np.ones(1, bool), rules=BoxVoteRules(0.8, "MAX"))
