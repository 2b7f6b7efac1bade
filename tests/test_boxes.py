"""Golden file: boxes."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.boxes import MAX_LOG_RATIO, area, clip, decode, encode, width_height
from diou_jax.data.view import flip_boxes

HEAD = (10.0, 10.0, 5.0, 5.0)
WEIGHTS = {"w10": HEAD, "w1": (1.0, 1.0, 1.0, 1.0)}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decoding_equals_the_original(golden, weights):
    data = golden("boxes.npz")
    ours = decode(data["boxes"], data["deltas"], weights=WEIGHTS[weights])
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
    height, width = data["clip_im_shape"]
    np.testing.assert_array_equal(clip(data["boxes"], height, width), data["clip_boxes_to_image"])
    boxes = data["clip_tiled_boxes_in"].reshape(200, -1, 4)
    np.testing.assert_array_equal(clip(boxes, height, width), data["clip_tiled_boxes"].reshape(200, -1, 4))
    per_image = clip(boxes, np.full((200, 1), height), np.full((200, 1), width))
    np.testing.assert_array_equal(per_image, data["clip_tiled_boxes"].reshape(200, -1, 4))
    corners = data["xywh_to_xyxy_f64"]
    np.testing.assert_allclose(clip(corners, height, width), data["clip_xyxy_to_image_f64"], rtol=1e-6)


def test_flipping_equals_the_original(golden):
    data = golden("boxes.npz")
    width = int(data["flip_im_width"])
    np.testing.assert_array_equal(flip_boxes(data["boxes"], width), data["flip_boxes"])
    flipped = flip_boxes(data["clip_tiled_boxes_in"].reshape(-1, 4), width)
    np.testing.assert_allclose(flipped, data["flip_boxes_K"].reshape(-1, 4), rtol=1e-6, atol=1e-4)


def test_sizes_equal_the_original(golden):
    data = golden("boxes.npz")
    np.testing.assert_allclose(area(data["boxes"]), data["boxes_area"], rtol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(area(data["boxes"]) < 0), data["boxes_area_neg_idx"])
    larger = (width_height(data["boxes"]) > 3).all(1)
    np.testing.assert_array_equal(np.flatnonzero(larger), data["filter_small_boxes_min3"])


def test_growth_about_the_centre_equals_the_originals_expansion(golden):
    """The original expands boxes without the one: as decoding does once the last pixel is taken off and put back."""
    data = golden("boxes.npz")
    one = np.array([0, 0, 1, 1], np.float32)
    growth = jnp.log(jnp.array([1, 1, 1.2, 1.2]))
    np.testing.assert_allclose(decode(data["boxes"] - one, growth) + one, data["expand_boxes_1p2"], atol=2e-4)


coordinate = st.floats(0, 900, width=32)
side = st.floats(0, 500, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


def encode_exactly(boxes, targets, weights):
    """R-CNN's equations, one coordinate at a time, in float64."""
    x1, y1, x2, y2 = np.float64(boxes).T
    gx1, gy1, gx2, gy2 = np.float64(targets).T
    w, h, gw, gh = x2 - x1 + 1, y2 - y1 + 1, gx2 - gx1 + 1, gy2 - gy1 + 1
    x, y = (gx1 + gw / 2 - x1 - w / 2) / w, (gy1 + gh / 2 - y1 - h / 2) / h
    return np.stack([x, y, np.log(gw / w), np.log(gh / h)], 1) * weights


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(box, box), min_size=1, max_size=8))
def test_decoding_inverts_encoding(pairs):
    # Padded to one length, so that nothing is compiled anew.
    boxes, targets = (np.resize(np.array(side, np.float32), (8, 4)) for side in zip(*pairs, strict=True))
    ratio = width_height(targets) / width_height(boxes)
    reachable = (np.log(ratio) < MAX_LOG_RATIO - 1e-3).all(1)
    deltas = encode(boxes, targets, weights=HEAD)
    # Centres and sides are differences of coordinates, so that they carry two roundings of these, in units of the side.
    smallest = np.minimum(width_height(boxes), width_height(targets))
    rounding = 2 * np.spacing(np.maximum(boxes.max(1), targets.max(1)))[:, None] / smallest
    exact = encode_exactly(boxes, targets, HEAD)
    assert (np.abs(deltas - exact) <= 1e-6 + 1e-5 * np.abs(exact) + np.tile(rounding, 2) * HEAD).all()
    back = decode(boxes, deltas, weights=HEAD)
    np.testing.assert_allclose(np.asarray(back)[reachable], targets[reachable], atol=2e-3)


def test_growth_is_limited_and_shrinking_is_not():
    unit = np.zeros((1, 4), np.float32)
    grown = decode(unit, jnp.array([[0, 0, 50.0, MAX_LOG_RATIO]]))
    np.testing.assert_allclose(width_height(grown), [[62.5, 62.5]], rtol=1e-5)
    shrunk = decode(unit, jnp.array([[0, 0, -8.0, -8.0]]))
    np.testing.assert_allclose(width_height(shrunk), np.exp([[-8, -8]]), atol=1e-6)


def test_boxes_without_area_count_as_one_pixel():
    pixel, empty = np.array([[5, 5, 5, 5]], np.float32), np.array([[5.5, 5.5, 4.5, 4.5]], np.float32)
    target = np.array([[2, 3, 9, 9]], np.float32)
    np.testing.assert_allclose(encode(empty, target), encode(pixel, target), atol=1e-6)
    np.testing.assert_allclose(encode(target, empty), encode(target, pixel), atol=1e-6)


def test_flipping_twice_is_the_identity_and_keeps_the_size():
    boxes = np.array([[0, 3, 10, 20], [5.5, 0, 99, 7]], np.float32)
    np.testing.assert_allclose(flip_boxes(flip_boxes(boxes, 100), 100), boxes, atol=1e-5)
    np.testing.assert_allclose(area(flip_boxes(boxes, 100)), area(boxes), rtol=1e-6)


@pytest.mark.parametrize("function", [encode, decode])
def test_values_and_gradients_are_finite_for_degenerate_and_huge_boxes(function):
    values = [sign * 10.0**power for power in range(-8, 9, 2) for sign in (-1, 1)] + [0.0, -1.0]
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.choice(values, (20_000, 4)), jnp.float32) for _ in range(2))
    assert np.isfinite(function(a, b)).all()
    gradients = jax.grad(lambda a, b: function(a, b).sum(), (0, 1))(a, b)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_no_boxes():
    none = np.zeros((0, 4), np.float32)
    assert encode(none, none).shape == decode(none[:, None], none.reshape(0, 1, 4)).shape[::2] == (0, 4)


@pytest.mark.parametrize("array", [np.zeros, jnp.zeros])
def test_arrays_of_another_shape_than_a_signature_states_are_refused(array):
    with pytest.raises(jaxtyping.TypeCheckError, match="boxes"):
        area(array((3, 5)))
    with pytest.raises(jaxtyping.TypeCheckError, match="boxes"):
        area(array((3, 4), int))
    with pytest.raises(jaxtyping.TypeCheckError, match="targets"):
        encode(array((3, 4)), array((2, 4)))
    with pytest.raises(jaxtyping.TypeCheckError, match="width"):
        clip(array((3, 4)), 10, array(2))
    assert clip(array((3, 4)), np.float32(10), 10).shape == encode(array((1, 4)), array((3, 4))).shape == (3, 4)
