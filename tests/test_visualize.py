import itertools

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from diou_jax.masks import Rle
from diou_jax.reporting.visualize import LARGEST, LINE, SMALLEST, Objects, class_color, draw, side_by_side

NAMES = ("__background__", "cup", "hat", "traffic light")


def gray(height=SMALLEST, width=SMALLEST):
    return np.full((height, width, 3), 100, np.uint8)


def is_color(picture, number):
    return (picture == class_color(number)).all(-1)


@pytest.mark.parametrize("size", [(1, 1), (128, 128), (8, 500), (480, 640), (900, 700), (3000, 4000), (5000, 3)])
def test_pictures_are_of_a_size_to_look_at(size):
    image = gray(*size)
    boxes = np.array([[0, 0, size[1] - 1, size[0] - 1]], np.float32)
    picture = draw(image, Objects(boxes, [3], [0.5]), class_names=NAMES)
    assert SMALLEST <= max(picture.shape[:2]) <= LARGEST
    assert picture.shape[0] * size[1] == pytest.approx(picture.shape[1] * size[0], rel=0.3, abs=max(size))
    assert is_color(picture, 3).any()
    assert (image == 100).all(), "the image itself is left alone"


def test_a_border_lies_on_the_outermost_pixels_of_its_box():
    picture = draw(gray(), Objects(np.array([[100.0, 200.0, 299.0, 399.0]]), [1]), class_names=NAMES)
    drawn = is_color(picture, 1)
    ring = np.zeros_like(drawn)
    ring[200:400, 100:300] = True
    ring[200 + LINE : 400 - LINE, 100 + LINE : 300 - LINE] = False
    assert drawn[ring].all()
    label = drawn & ~ring
    rows, columns = np.nonzero(label)
    assert rows.max() < 200 and columns.min() == 100, "the label stands on the box"
    assert (picture[250:350, 150:250] == 100).all(), "the inside can be seen"


def test_boxes_grow_with_the_image():
    """A box of 4 x 4 in an image of 72 x 72 is 40 x 40 in the picture of 720 x 720."""
    picture = draw(gray(72, 72), Objects(np.array([[40, 40, 43, 43]]), [1]), class_names=NAMES)
    rows, columns = np.nonzero(is_color(picture, 1)[400:])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 39, 400, 439)


def test_boxes_beyond_the_image_and_without_extent_are_drawn_as_far_as_they_go():
    boxes = np.array([[-50, -50, 20, 20], [700, 700, 900, 900], [300, 300, 300, 300], [900, 900, 990, 990]])
    picture = draw(gray(), Objects(boxes, [1, 2, 3, 1]), class_names=NAMES)
    assert is_color(picture, 1)[20, :20].all() and is_color(picture, 2)[719, 700:719].all()


def test_crowds_are_dashed_and_hatched():
    box = np.array([[100, 200, 299, 399]])
    solid, crowd = (draw(gray(), Objects(box, [1], crowd=[flag]), class_names=NAMES) for flag in (False, True))
    edge = is_color(crowd, 1)[399, 100:300]
    assert is_color(solid, 1)[399, 100:300].all()
    assert 0.3 < edge.mean() < 0.7 and np.diff(edge).sum() > 10
    assert 0 < (crowd[210:390, 110:290] != 100).any(-1).mean() < 0.2


def test_labels_do_not_hide_each_other():
    boxes = np.array([[100, 200, 299, 399]] * 3)
    alone = [is_color(draw(gray(), Objects(boxes[:1], [i]), class_names=NAMES), i)[:200].sum() for i in (1, 2, 3)]
    together = draw(gray(), Objects(boxes, [1, 2, 3]), class_names=NAMES)
    outside = np.ones((SMALLEST, SMALLEST), bool)
    outside[200:400, 100:300] = False
    found = [(is_color(together, i) & outside).sum() for i in (1, 2, 3)]
    # The same letters in the same ink leave as much of the label's colour.
    assert found == alone


def test_scores_are_written():
    box = np.array([[100, 200, 299, 399]])
    pictures = [draw(gray(), Objects(box, [1], scores), class_names=NAMES) for scores in (None, [0.25], [0.75])]
    assert all((a != b).any() for a, b in itertools.combinations(pictures, 2))
    wider = [is_color(picture, 1)[:200].any(0).sum() for picture in pictures]
    assert wider[1] > wider[0]


def test_colors_can_be_told_apart():
    colors = np.array([class_color(i) for i in range(81)], float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1e3 * np.eye(81)
    assert distance.min() > 5
    assert min(distance[i, i + 1] for i in range(80)) > 80
    assert distance[1:21, 1:21].min() > 40


def test_detections_lie_beside_the_ground_truth():
    nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    box = Objects(np.array([[100, 200, 299, 399]], np.float32), np.array([2]))

    def beside(detected, truth):
        found = detected._replace(scores=np.full(len(detected.boxes), 0.9, np.float32))
        return side_by_side(gray(480, 640), found, truth, class_names=NAMES)

    empty, left, right = beside(nothing, nothing), beside(box, nothing), beside(nothing, box)
    assert empty.shape == left.shape == right.shape
    assert empty.shape[1] > 2 * SMALLEST
    middle = empty.shape[1] // 2
    assert is_color(left, 2)[:, :middle].any() and not is_color(left, 2)[:, middle:].any()
    assert is_color(right, 2)[:, middle:].any() and not is_color(right, 2)[:, :middle].any()
    # The captions count.
    assert (left[:30, :middle] != empty[:30, :middle]).any() and (left[:30, middle:] == empty[:30, middle:]).all()


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return Rle(size=list(mask.shape), counts=encoded["counts"].decode())


def ring(height=SMALLEST, width=SMALLEST):
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    mask[height // 3 : height * 5 // 12, width // 3 : width * 5 // 12] = False
    return mask


def test_a_mask_is_tinted_inside_and_outlined():
    mask = ring()
    box = np.array([[100.0, 100.0, 500.0, 500.0]])
    bare, filled = (draw(gray(), Objects(box, [1], rles=rles), class_names=NAMES) for rles in (None, [rle(mask)]))
    changed = (bare != filled).any(-1)
    assert changed[mask].all()
    assert not changed[~mask].any()
    outline = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert is_color(filled, 1)[outline].all()
    inside = filled[mask & ~outline]
    assert len(np.unique(inside, axis=0)) == 1 and (inside[0] != class_color(1)).any(), "the inside can be seen"
    hole = np.zeros_like(mask)
    hole[245:295, 245:295] = True
    assert (filled[hole] == 100).all()


@pytest.mark.parametrize("size", [(1, 1), (72, 72), (72, 90), (2000, 1500)])
def test_masks_grow_and_shrink_with_the_image(size):
    height, width = size
    box = np.array([[0.0, 0.0, width - 1.0, height - 1.0]])
    mask = ring(height, width)
    bare, filled = (draw(gray(*size), Objects(box, [1], rles=rles), class_names=NAMES) for rles in (None, [rle(mask)]))
    changed = (bare != filled).any(-1)
    assert changed.mean() == pytest.approx(mask.mean(), abs=0.01)


def test_objects_without_a_mask_are_drawn_as_ever():
    boxes = np.array([[100, 200, 299, 399], [400, 200, 599, 399]])
    bare = draw(gray(), Objects(boxes, [1, 2]), class_names=NAMES)
    nothing = draw(gray(), Objects(boxes, [1, 2], rles=[None, rle(np.zeros((SMALLEST,) * 2, bool))]), class_names=NAMES)
    np.testing.assert_array_equal(bare, nothing)
