"""Golden file: boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.boxes import MAX_LOG_RATIO, area, clip, decode, encode, flip, xywh_to_xyxy, xyxy_to_xywh

HEAD = (10.0, 10.0, 5.0, 5.0)
WEIGHTS = {"w10": HEAD, "w1": (1.0, 1.0, 1.0, 1.0)}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decoding_equals_the_original(golden, weights):
    data = golden("boxes.npz")
    ours = decode(data["boxes"], jnp.asarray(data["deltas"]), weights=WEIGHTS[weights])
    np.testing.assert_allclose(ours, data[f"bbox_transform_{weights}"], rtol=2e-6, atol=1e-4)
    classwise = decode(data["boxes"][:, None], data["deltas_K"].reshape(200, -1, 4), weights=WEIGHTS[weights])
    np.testing.assert_allclose(
        np.reshape(classwise, (200, -1)), data[f"bbox_transform_K_{weights}"], rtol=2e-6, atol=1e-4
    )


@pytest.mark.parametrize("weights", WEIGHTS)
def test_encoding_equals_the_original(golden, weights):
    data = golden("boxes.npz")
    ours = encode(data["inv_ex"], data["inv_gt"], weights=WEIGHTS[weights])
    np.testing.assert_allclose(ours, data[f"bbox_transform_inv_{weights}"], rtol=1e-6, atol=2e-6)


def test_clipping_equals_the_original(golden):
    data = golden("boxes.npz")
    height, width = data["clip_im_shape"][:2]
    boxes = data["clip_tiled_boxes_in"].reshape(200, -1, 4)
    np.testing.assert_array_equal(clip(boxes, height, width), data["clip_tiled_boxes"].reshape(200, -1, 4))


def test_conversions_equal_the_original(golden):
    data = golden("boxes.npz")
    np.testing.assert_allclose(xywh_to_xyxy(data["xywh_f64"]), data["xywh_to_xyxy_f64"], rtol=1e-6)
    np.testing.assert_allclose(xyxy_to_xywh(data["xywh_to_xyxy_f64"]), data["xyxy_to_xywh_f64"], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(area(data["boxes"]), data["boxes_area"], rtol=1e-6)
    width = data["flip_im_width"]
    np.testing.assert_allclose(flip(data["boxes"], width), data["flip_boxes"], atol=1e-4)


coordinate = st.floats(0, 900, width=32)
side = st.floats(0, 500, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(box, box), min_size=1, max_size=8))
def test_decoding_inverts_encoding(pairs):
    # Padded to one length, so that nothing is compiled anew.
    boxes, targets = (np.resize(np.array(side, np.float32), (8, 4)) for side in zip(*pairs, strict=True))
    ratio = (targets[:, 2:] - targets[:, :2] + 1) / (boxes[:, 2:] - boxes[:, :2] + 1)
    reachable = (np.log(ratio) < MAX_LOG_RATIO - 1e-3).all(1)
    back = decode(boxes, encode(boxes, targets, weights=HEAD), weights=HEAD)
    np.testing.assert_allclose(np.asarray(back)[reachable], targets[reachable], atol=2e-3)


def test_flipping_twice_is_the_identity_and_keeps_the_size():
    boxes = np.array([[0, 3, 10, 20], [5.5, 0, 99, 7]], np.float32)
    np.testing.assert_allclose(flip(flip(boxes, 100), 100), boxes, atol=1e-5)
    np.testing.assert_allclose(area(flip(boxes, 100)), area(boxes), rtol=1e-6)


@pytest.mark.parametrize("function", [encode, decode])
def test_values_and_gradients_are_finite_for_degenerate_boxes(function):
    values = np.array([-1e8, -1e4, -1, 0, 1e-8, 1, 1e4, 1e8], np.float32)
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.choice(values, (5000, 4))) for _ in range(2))
    result, gradient = jax.value_and_grad(lambda a, b: function(a, b).sum(), (0, 1))(a, b)
    del result
    assert np.isfinite(function(a, b)).all()
    assert all(np.isfinite(g).all() for g in gradient)
