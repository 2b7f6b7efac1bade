"""Random crops that keep objects, against the rule of SSD checked with loops."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reader import RULES, make_dataset, make_train_reader

from diou_jax.data.augmentation import Key, Mirror, ScaleChoice, augment
from diou_jax.data.iou_crop import OVERLAPS, IoUCrop
from diou_jax.data.view import cropped, mirrored, scaled

SIZE = (120, 200)
BOXES = np.array([[10.0, 20.0, 60.0, 90.0], [150.0, 5.0, 190.0, 115.0], [90.0, 50.0, 96.0, 58.0]])


def part_of(view):
    """Edges x1, y1, x2, y2 of the part that a view without scaling shows."""
    (height, width), (top, left) = view.size, view.offset
    return -left, -top, width - left, height - top


def iou(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def test_a_part_holds_the_centre_of_an_object_that_overlaps_it_enough():
    parts = 0
    for bits in range(400):
        key = Key(bits, boxes=BOXES)
        view = IoUCrop(1.0)(key, SIZE)
        if view.size == SIZE:
            continue
        parts += 1
        x1, y1, x2, y2 = part = part_of(view)
        assert 0 <= x1 < x2 <= 200 and 0 <= y1 < y2 <= 120 and part == tuple(map(int, part))
        assert 0.29 <= (x2 - x1) / 200 <= 1 and 0.29 <= (y2 - y1) / 120 <= 1
        assert 0.47 <= ((x2 - x1) / 200) / ((y2 - y1) / 120) <= 2.1
        least = OVERLAPS[int(key.uniform("crop or not", 2)[1] * len(OVERLAPS))]
        held = [box for box in BOXES if x1 < (box[0] + box[2]) / 2 < x2 and y1 < (box[1] + box[3]) / 2 < y2]
        assert held and max(iou(part, box) for box in held) >= least - 1e-9
    assert parts > 150


@pytest.mark.parametrize(("probability", "boxes"), [(0.0, BOXES), (1.0, BOXES[:0])])
def test_without_probability_or_object_the_image_stays_whole(probability, boxes):
    assert all(IoUCrop(probability)(Key(bits, boxes=boxes), SIZE).size == SIZE for bits in range(30))


def test_the_probability_is_that_of_a_try():
    always = np.array([IoUCrop(1.0)(Key(bits, boxes=BOXES), SIZE).size != SIZE for bits in range(1500)])
    half = np.array([IoUCrop(0.5)(Key(bits, boxes=BOXES), SIZE).size != SIZE for bits in range(1500)])
    assert not (half & ~always).any() and abs(half.sum() / always.sum() - 0.5) < 0.06


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**64 - 1), st.booleans())
def test_an_augmentation_meets_the_boxes_where_those_before_it_put_them(bits, mirror):
    met = []

    class Spy:
        def __call__(self, key, size):
            met.append((key.boxes, size))
            return scaled(size, 1.0)

    key = Key(bits, mirror, boxes=BOXES)
    augment([Mirror(), ScaleChoice((60,), 500), Spy()], key, SIZE)
    ((boxes, size),) = met
    wanted = np.stack([200 - BOXES[:, 2], BOXES[:, 1], 200 - BOXES[:, 0], BOXES[:, 3]], 1) if mirror else BOXES
    assert size == (60, 100)
    np.testing.assert_allclose(boxes, wanted / 2)


def test_boxes_are_cut_off_and_left_out_with_the_view():
    view = mirrored(SIZE).then(cropped(SIZE, 0, 0, shape=(100, 60)))  # x from 140 to 200 of the file
    np.testing.assert_allclose(view.edges(BOXES), [[10, 5, 50, 100]])
    assert len(view.edges(np.zeros((0, 4)))) == 0


def test_every_part_that_a_reader_cuts_has_an_object():
    """One object an image; of each the reader leaves at least the centre, and with it a quarter."""
    dataset = make_dataset(sizes=((60, 80),) * 6, counts=[1] * 6)
    reader = make_train_reader(dataset, more=(), batch_size=2)
    cutting = dataclasses.replace(reader, augmentations=(IoUCrop(1.0), *reader.augmentations))
    cut = 0
    for step in range(4 * cutting.steps):
        batch, skipped = cutting(step)
        assert not skipped and batch.gt.valid[:, 0].all()
        cut += (batch.placement.offset < 0).any(1).sum()
        np.testing.assert_array_equal(batch.index, reader(step)[0].index)
    assert cut > 5 and RULES.min_visible == 0
