"""Golden file: nms (soft-NMS)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.detection.rules import SoftNmsRules
from diou_jax.detection.soft_nms import METHODS, soft_nms

compiled = jax.jit(soft_nms, static_argnames=("rules", "most"))


@pytest.mark.parametrize("size", ["n1", slow("n17"), "n300", slow("n1000"), slow("n2000")])
def test_every_golden_case(golden, size):
    data = golden("nms.npz")
    boxes, scores = data[f"{size}/dets"][:, :4], data[f"{size}/dets"][:, 4]
    tried = 0
    for name, order in data.items():
        match = re.fullmatch(rf"{size}/softnms_(\w+)_t([\d.]+)_s([\d.]+)_keep", name)
        if not match:
            continue
        method, threshold, score_thresh = match[1], float(match[2]), float(match[3])
        left, keep = compiled(boxes, scores, threshold, rules=SoftNmsRules(method), score_thresh=score_thresh)
        np.testing.assert_array_equal(np.flatnonzero(keep), np.sort(order), name)
        theirs = data[name.replace("_keep", "_dets")]
        np.testing.assert_allclose(left[order], theirs[:, 4], rtol=0, atol=2e-7, err_msg=name)
        assert (np.diff(left[order]) <= 0).all(), "the original lists them as they are taken, best first"
        tried += 1
    assert tried == 6


def oracle(boxes, scores, threshold, *, method, sigma, beta1, score_thresh=1e-4):
    """One box after the other, in float64."""
    boxes, scores = np.float64(boxes), np.float64(scores)
    waiting, taken = set(range(len(scores))), []
    while waiting:
        best = min(waiting, key=lambda i: (-scores[i], i))
        waiting.remove(best)
        taken.append(best)
        a = boxes[best]
        for i in sorted(waiting):
            b = boxes[i]
            sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1
            if (sides <= 0).any():
                continue
            shared = sides.prod()
            overlap = shared / ((a[2:] - a[:2] + 1).prod() + (b[2:] - b[:2] + 1).prod() - shared)
            around = np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]) + 1
            apart = ((a[:2] + a[2:] - b[:2] - b[2:]) / 2) @ ((a[:2] + a[2:] - b[:2] - b[2:]) / 2)
            overlap -= (apart / (around @ around)) ** beta1 if apart else 0
            if method == "gaussian":
                scores[i] *= np.exp(-(overlap**2) / sigma)
            elif overlap > threshold:
                scores[i] *= 1 - overlap if method == "linear" else 0
            if scores[i] < score_thresh:
                waiting.remove(i)
    return scores, taken


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    method=st.sampled_from(METHODS),
    beta1=st.sampled_from([0.8, 1.5, float("inf")]),
    most=st.sampled_from([None, 1, 7]),
)
def test_it_is_what_the_definition_says(seed, method, beta1, most):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (20, 2))
    boxes = np.float32(np.concatenate([corner, corner + rng.uniform(1, 40, (20, 2))], 1))
    scores = np.float32(rng.permutation(20) + 1) / 20
    rules = {"method": method, "sigma": 0.3, "beta1": beta1}
    wanted, taken = oracle(boxes, scores, 0.4, **rules)
    left, keep = compiled(boxes, scores, 0.4, rules=SoftNmsRules(**rules), most=most)
    assert set(np.flatnonzero(keep)) == set(taken[:most])
    np.testing.assert_allclose(left[keep], wanted[np.flatnonzero(keep)], rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_problems_are_apart_and_what_is_not_valid_is_not_there(seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (2, 3, 20, 2))
    boxes = np.float32(np.concatenate([corner, corner + rng.uniform(1, 40, (2, 3, 20, 2))], -1))
    scores = np.float32(rng.uniform(0, 1, (2, 3, 20)).round(1))
    valid = rng.permuted(np.broadcast_to(np.arange(20) < 14, (2, 3, 20)), axis=-1)
    scores[~valid & (rng.random(valid.shape) < 0.5)] = np.nan
    boxes[~valid & (rng.random(valid.shape) < 0.5)] = np.nan
    left, keep = compiled(boxes, scores, 0.4, rules=SoftNmsRules("linear"), valid=valid)
    assert not keep[~valid].any()
    for place in np.ndindex(2, 3):
        exists = valid[place]
        alone, stays = compiled(boxes[place][exists], scores[place][exists], 0.4, rules=SoftNmsRules("linear"))
        np.testing.assert_array_equal(keep[place][exists], stays)
        np.testing.assert_array_equal(left[place][exists], alone)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_choose_from_and_boxes_beyond_measure(method):
    left, keep = soft_nms(jnp.zeros((3, 0, 4)), jnp.zeros((3, 0)), 0.5, rules=SoftNmsRules(method))
    assert left.shape == keep.shape == (3, 0)
    boxes = np.float32([[0, 0, 1e30, 1e30], [0, 0, 1e30, 1e30], [5, 5, 4, 4], [0, 0, 0, 0], [0, 0, 0, 0]])
    left, keep = soft_nms(boxes, np.float32([0.9, 0.8, 0.7, np.nan, 0.6]), 0.5, rules=SoftNmsRules(method))
    assert np.isfinite(left[keep]).all() and not keep[3] and keep[0]


def test_another_method_is_refused():
    with pytest.raises(ValueError, match="linear, gaussian, hard"):
        soft_nms(np.zeros((1, 4)), np.zeros(1), 0.5, rules=SoftNmsRules("cubic"))
