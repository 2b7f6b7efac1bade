"""Mask targets equal the original's bit for bit, and pycocotools' filling of random polygons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import find_golden, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from diou_jax.data.buckets import Bucket
from diou_jax.data.packing import example, pack
from diou_jax.data.view import cropped, mirrored, scaled, whole
from diou_jax.detection import mask_targets as mask_targets_module
from diou_jax.detection import polygon_filling
from diou_jax.detection.mask_targets import outline_boxes, visible_windows
from diou_jax.structures import GroundTruth, Polygons, RoiSamples

GOLDEN = "mask_targets_paste_loss.npz"
fill = jax.jit(polygon_filling.fill, static_argnames="resolution")
mask_targets = jax.jit(mask_targets_module.mask_targets, static_argnames="resolution")


@pytest.fixture(scope="module")
def stored():
    with np.load(find_golden(GOLDEN, "golden2")) as file:
        return dict(file)


def outlines(coordinates, lengths, instances, *, mirrored_at=None):
    """Polygons of one image from flat lists of numbers: parts of `lengths` numbers each, of the objects `instances`."""
    parts = np.split(np.asarray(coordinates, np.float64).reshape(-1, 2), np.cumsum(lengths)[:-1] // 2)
    count = int(max(instances)) + 1
    longest = max(sum(len(p) for p, i in zip(parts, instances) if i == row) for row in range(count))
    points, part = np.zeros((1, count, longest, 2), np.float32), np.full((1, count, longest), -1, np.int32)
    for row in range(count):
        of_row = [p for p, i in zip(parts, instances) if i == row]
        filled = np.concatenate(of_row)
        points[0, row, : len(filled)] = filled
        part[0, row, : len(filled)] = np.repeat(np.arange(len(of_row)), [len(p) for p in of_row])
    return Polygons(points, part)


def ground_truth(masks, *, classes=None, crowd=None):
    count = masks.part.shape[1]
    boxes = np.asarray(outline_boxes(masks))
    classes = np.ones((1, count), np.int32) if classes is None else classes[None]
    crowd = np.zeros((1, count), bool) if crowd is None else crowd[None]
    return GroundTruth(boxes, classes, crowd, np.ones((1, count), bool), masks=masks)


def sampled(boxes, labels, gt_index=None):
    rois = np.asarray(boxes, np.float32)[None]
    index = np.zeros(rois.shape[:2], np.int32) if gt_index is None else np.asarray(gt_index, np.int32)[None]
    return RoiSamples(rois, rois, np.asarray(labels, np.int32)[None], index, np.ones(rois.shape[:2], bool))


def grid(points, boxes, resolution):
    """Points of outlines (N, P, 2) in cells of the grids of boxes (N, 4)."""
    side = np.maximum(boxes[:, None, 2:] - boxes[:, None, :2], np.float32(1))
    return (points - boxes[:, None, :2]) * resolution / side


@pytest.mark.parametrize("resolution", [28, 14])
def test_masks_with_respect_to_boxes(stored, resolution):
    """Also of degenerate boxes, and of outlines far outside of the box."""
    masks = outlines(stored["poly/coords_f64"], stored["poly/len"], stored["poly/instance"])
    instance, boxes = stored["wrt/instance"], stored["wrt/boxes"]
    points = grid(masks.points[0, instance], boxes, resolution)
    filled = fill(points, masks.part[0, instance], resolution=resolution)
    np.testing.assert_array_equal(filled, stored[f"wrt/masks_M{resolution}"].astype(bool))


def test_boxes_of_outlines(stored):
    masks = outlines(stored["poly/coords_f64"], stored["poly/len"], stored["poly/instance"])
    np.testing.assert_array_equal(outline_boxes(masks)[0], stored["poly/boxes"])


CASES = ["basic_81", slow("small_K5"), slow("agnostic"), "with_crowd", slow("no_fg_K5"), slow("overlapping_K5")]


@pytest.mark.parametrize("case", CASES)
def test_targets_of_a_minibatch(stored, case):
    """The RoIs, their labels and the outlines as the original sampled them; its blobs hold 784 cells for each class."""
    this = {name.removeprefix(f"blobs/{case}/"): value for name, value in stored.items() if f"blobs/{case}/" in name}
    masks = outlines(this["gt_poly_coords_f64"], this["gt_poly_len"], this["gt_poly_instance"])
    gt = ground_truth(masks, classes=this["gt_classes"], crowd=this["gt_is_crowd"])
    labels = this["labels_int32"]
    targets = mask_targets(sampled(this["sampled_boxes"], labels), gt, resolution=28)
    np.testing.assert_array_equal(targets.exists[0], labels > 0)
    ours = np.asarray(targets.masks[0])[labels > 0].reshape(-1, 784)
    if "masks_class_block_int8" in this:
        theirs = this["masks_class_block_int8"]
    else:
        blob = this["masks_int8"].reshape(len(this["masks_int8"]), -1, 784)
        agnostic = blob.shape[1] == 1
        theirs = np.array([row[0 if agnostic else label] for row, label in zip(blob, labels[labels > 0])], np.int8)
    if not (labels > 0).any():
        # The original lets the first RoI stand for none, with every cell ignored.
        assert len(ours) == 0 and (this["masks_int8"] == -1).all()
        return
    np.testing.assert_array_equal(ours, theirs.astype(bool))


def coco_filling(polygon):
    """A polygon (P, 2) on a grid of 28 cells by pycocotools, which refuses less than three vertices."""
    if len(polygon) < 3:
        return np.zeros((28, 28), bool)
    numbers = polygon.astype(np.float64).ravel().tolist()
    return coco_mask.decode(coco_mask.frPyObjects([numbers], 28, 28))[..., 0].astype(bool)


coordinates = st.one_of(
    st.floats(-40, 70, width=32), st.integers(-20, 160).map(lambda n: n / 5 + 0.1), st.integers(-9, 40).map(float)
)


@settings(max_examples=60, deadline=None)
@given(
    points=arrays.arrays(np.float32, (4, 12, 2), elements=coordinates),
    cuts=st.lists(st.integers(3, 12), min_size=4, max_size=4),
    used=st.lists(st.integers(3, 12), min_size=4, max_size=4),
)
def test_filling_equals_cocos(points, cuts, used):
    """Points anywhere, on borders of the fine grid too; two parts, some with two vertices; vertices that are absent."""
    place = np.arange(12)
    part = (place >= np.array(cuts)[:, None]).astype(np.int32)
    part = np.where(place < np.array(used)[:, None], part, -1)
    ours = fill(points, part, resolution=28)
    for number in range(4):
        theirs = np.zeros((28, 28), bool)
        for k in (0, 1):
            theirs |= coco_filling(points[number][part[number] == k])
        np.testing.assert_array_equal(ours[number], theirs)


@pytest.mark.parametrize("scale", [30, 2000, 60000])
def test_long_edges_equal_cocos(scale):
    """A RoI may be small and its object large; float64's rounding of slopes shows here, too."""
    rng = np.random.default_rng(scale)
    points = (rng.random((400, 5, 2)) * scale - rng.random((400, 1, 2)) * scale + 14).astype(np.float32)
    points[:200] = np.round(points[:200])  # whole numbers meet ties
    ours = fill(points, np.zeros((400, 5), np.int32), resolution=28)
    theirs = [coco_filling(polygon) for polygon in points]
    np.testing.assert_array_equal(ours, np.array(theirs, bool))
    assert 0.01 < np.mean(theirs) < 0.9


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def test_overlapping_parts_are_united_and_a_hole_inside_a_part_stays_open():
    """The second object is one part: outer square, cut, inner square, and the cut back."""
    ring = [0, 0, 28, 0, 28, 28, 0, 28, 0, 0, 7, 7, 7, 21, 21, 21, 21, 7, 7, 7]
    masks = outlines(square(0, 0, 20) + square(10, 10, 18) + ring, [8, 8, len(ring)], [0, 0, 1])
    gt = ground_truth(masks)
    box = [0, 0, 28, 28]
    first = np.asarray(fill(masks.points[0], masks.part[0], resolution=28))
    assert first[0, 10:20, 10:20].all() and not first[0, 25, 5]
    assert not first[1, 8:20, 8:20].any() and first[1, 3, 3:25].all()
    assert np.asarray(mask_targets(sampled([box], [1]), gt, resolution=28).masks).any()


def test_an_object_without_outline_has_no_target_and_takes_none_from_others():
    masks = outlines(square(0, 0, 20) + square(50, 50, 20), [8, 8], [0, 1])
    masks = Polygons(masks.points, np.where(np.arange(2)[None, :, None] == 1, -1, masks.part))
    gt = ground_truth(masks)
    samples = sampled([[0, 0, 20, 20], [50, 50, 70, 70], [0, 0, 20, 20], [90, 90, 99, 99]], [1, 1, 0, 1], [0, 1, 0, 0])
    targets = mask_targets(samples, gt, resolution=28)
    np.testing.assert_array_equal(targets.exists[0], [True, False, False, True])
    masks = np.asarray(targets.masks[0])
    assert masks[0].all() and not masks[1:].any()


def test_without_outlines_nothing_exists():
    gt = GroundTruth(
        np.zeros((1, 2, 4), np.float32), np.ones((1, 2), np.int32), np.zeros((1, 2), bool), np.ones((1, 2), bool)
    )
    targets = mask_targets(sampled([[0, 0, 9, 9]], [1]), gt, resolution=14)
    assert targets.masks.shape == (1, 1, 14, 14) and not targets.exists.any()


@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, np.inf, np.nan])
def test_absurd_coordinates_are_harmless(value):
    points = jnp.full((1, 4, 2), value).at[0, :3].set(jnp.array([[0, 0], [20, 3], [5, 25]]))
    assert fill(points, jnp.zeros((1, 4), jnp.int32), resolution=28).dtype == bool


def bar(x1, y1, x2, y2):
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def test_an_outline_ends_where_the_view_of_its_image_ends():
    """Of a bar of 100 pixels the last 20 are seen; as a whole the bar overlaps the RoI less than its neighbour does."""
    masks = outlines([*bar(0, 0, 100, 20), *bar(70, 0, 96, 26)], [8, 8], [0, 1])
    gt = ground_truth(masks)
    rois = sampled([[80, 0, 99, 19], [60, 0, 99, 19]], [1, 1])
    window = np.array([[80, 0, np.inf, np.inf]], np.float32)
    whole = mask_targets(rois, gt, resolution=28)
    part = mask_targets(rois, gt, resolution=28, windows=window)
    assert not whole.masks[0, 0].all() and part.masks[0, 0].all()
    # 20 of the second RoI's 39 pixels lie before the window.
    columns = 60 + (np.arange(28) + 0.5) * 39 / 28
    np.testing.assert_array_equal(part.masks[0, 1], np.broadcast_to(columns >= 80, (28, 28)))
    assert whole.masks[0, 1].sum() > part.masks[0, 1].sum()


@pytest.mark.parametrize(
    ("view", "window"),
    [
        (whole((40, 60)), [-np.inf, -np.inf, np.inf, np.inf]),
        (scaled((31, 31), 0.3), [-np.inf, -np.inf, np.inf, np.inf]),  # 9.3 pixels are 9
        (cropped((40, 60), 10, 0, shape=(40, 50)), [-np.inf, 10, 49, np.inf]),
        (
            mirrored((40, 60)).then(scaled((40, 60), 2)).then(cropped((80, 120), 20, 30, shape=(32, 64))),
            [15, 10, 46, 25],
        ),
    ],
)
def test_the_window_is_the_part_that_a_view_shows(view, window):
    batch = pack(
        [example(np.zeros((*view.source, 3), np.uint8), view, Bucket(96, 128, 96, 128))], Bucket(96, 128, 96, 128)
    )
    np.testing.assert_allclose(visible_windows(batch)[0], window)
