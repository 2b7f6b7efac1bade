import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.data.view import View, cropped, flip_boxes, image_scale, mirrored, resized_size, scaled, whole


@pytest.mark.parametrize("case", range(3))
def test_scale_and_size_equal_the_originals(golden, case):
    """preproc.npz, exactly."""
    expected = {key.split("/")[1]: value for key, value in golden("preproc.npz").items() if key[0] == str(case)}
    height, width = expected["image_u8_bgr"].shape[:2]
    target, max_size = expected["target_max"].tolist()
    scale = image_scale(height, width, target=target, max_size=max_size)
    assert scale == expected["scale_f64"][0]
    assert resized_size(height, width, scale) == tuple(expected["resized_hw"])


def test_the_longer_side_is_limited_after_rounding():
    """A side of 1333.4 pixels passes a limit of 1333, one of 1333.6 does not."""
    assert image_scale(10_000, 16_667, target=800, max_size=1333) == 800 / 10_000
    assert image_scale(10_000, 16_670, target=800, max_size=1333) == 1333 / 16_670


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 100), st.lists(st.tuples(*[st.integers(0, 50)] * 4), max_size=5))
def test_mirroring_boxes_twice_gives_them_back(width, boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    once = flip_boxes(boxes, width)
    np.testing.assert_array_equal(once[:, 2] - once[:, 0], boxes[:, 2] - boxes[:, 0])
    np.testing.assert_array_equal(flip_boxes(once, width), boxes)


def test_a_mirrored_box_covers_the_mirrored_pixels():
    image = np.zeros((5, 9), np.uint8)
    image[1:3, 2:6] = 1
    x1, y1, x2, y2 = flip_boxes(np.array([[2, 1, 5, 2]], np.float32), 9)[0].astype(int)
    mirrored = image[:, ::-1]
    assert mirrored[y1 : y2 + 1, x1 : x2 + 1].all()
    assert mirrored.sum() == (y2 - y1 + 1) * (x2 - x1 + 1)


CHANGES = {
    "mirror": mirrored,
    "half": lambda size: scaled(size, 0.5),
    "larger": lambda size: scaled(size, 1.3),
    "crop": lambda size: cropped(size, size[0] * 0.3, size[1] * 0.2, shape=(size[0] // 2 + 1, size[1] // 2 + 1)),
}


def place(view, point):
    """A point (y, x) of the image, in pixels of the view."""
    y, x = point
    x = view.source[1] - x if view.mirrored else x
    return view.scale[0] * y + view.offset[0], view.scale[1] * x + view.offset[1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=5), st.floats(0, 90), st.floats(0, 60))
def test_a_chain_of_views_is_one_affine_map(names, y, x):
    view, point = whole((90, 60)), (y, x)
    for name in names:
        change = CHANGES[name](view.size)
        point = place(change, point)
        view = view.then(change)
    np.testing.assert_allclose(place(view, (y, x)), point, rtol=0, atol=1e-9)


def test_views_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match=r"a view of \(10, 20\) cannot follow one that makes \(5, 10\)"):
        scaled((10, 20), 0.5).then(mirrored((10, 20)))


def test_a_view_that_is_too_large_is_scaled_down():
    view = scaled((300, 100), 2.0)
    assert view.within((600, 200)) is view
    small = view.within((150, 300))
    assert small.size == (150, 50)
    assert small.scale == (0.5, 0.5)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_are_cut_off_with_the_image_and_vanish_outside(flip):
    """Against the pixels of each box, in a crop of whole pixels without scaling."""
    view = mirrored((40, 50)) if flip else whole((40, 50))
    view = view.then(cropped(view.size, 10, 20, shape=(16, 24)))
    boxes = np.array([[0, 0, 49, 39], [22, 12, 30, 20], [40, 20, 49, 39], [0, 0, 5, 9], [0, 10, 4, 12]], np.float32)
    found, seen = view.boxes(boxes)
    for box, one, visible in zip(boxes, found, seen, strict=True):
        image = np.zeros((40, 50), bool)
        x1, y1, x2, y2 = box.astype(int)
        image[y1 : y2 + 1, x1 : x2 + 1] = True
        image = image[:, ::-1] if flip else image
        inside = np.zeros_like(image)
        inside[10:26, 20:44] = image[10:26, 20:44]
        assert visible == inside.any()
        if visible:
            ys, xs = np.nonzero(inside)
            np.testing.assert_allclose(one, [xs.min(), ys.min(), xs.max(), ys.max()])


def test_rounding_of_the_size_cuts_no_box():
    view = scaled((31, 31), 0.3)  # 9.3 pixels are 9
    assert not view.cuts
    boxes = np.array([[0, 0, 30, 30]], np.float32)
    assert view.boxes(boxes)[0] is boxes
    assert View((31, 31), (9, 9), scale=(0.3, 0.3), offset=(-1.2, 0)).cuts
