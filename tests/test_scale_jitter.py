"""Large-scale jitter against torchvision's rule, by hand, and through the reader to the network's input."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_augmentation import Boxes
from test_reader import make_dataset

from diou_jax.boxes import to_input
from diou_jax.data.augmentation import Key, Mirror, augment, largest_size, longest_sides
from diou_jax.data.buckets import Bucket
from diou_jax.data.make_reader import train_reader
from diou_jax.data.outlines import from_parts
from diou_jax.data.packing import Annotations, example, visible
from diou_jax.data.reader import BatchRules
from diou_jax.data.scale_jitter import ScaleJitter
from diou_jax.data.view import cropped
from diou_jax.detection import preprocess

LARGE = ScaleJitter(0.1, 2.0, side=1024)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_the_size_is_a_multiple_of_the_largest_that_fits_and_the_square_holds_it(height, width, bits):
    """torchvision: ratio = min(target / side) * factor; the crop is at most the square, the rest is padding."""
    view = LARGE(Key(bits), (height, width))
    ratio = min(1024 / height, 1024 / width)
    factor = view.scale[0] / ratio
    assert 0.1 <= factor < 2.0 and view.scale[0] == view.scale[1]
    scaled = [max(round(side * view.scale[0]), 1) for side in (height, width)]
    assert view.size == tuple(min(side, 1024) for side in scaled)
    for offset, side in zip(view.offset, scaled, strict=True):
        assert offset == int(offset) and -max(side - 1024, 0) <= offset <= 0
    assert (np.array(view.size) <= largest_size([LARGE], (height, width))).all()


def test_factors_and_corners_are_drawn_evenly():
    views = [LARGE(Key(bits), (480, 640)) for bits in range(3000)]
    factors = np.array([view.scale[0] for view in views]) / 1.6
    np.testing.assert_allclose(np.quantile(factors, [0, 0.25, 0.5, 0.75, 1]), [0.1, 0.575, 1.05, 1.525, 2], atol=0.03)
    room = np.array([round(640 * view.scale[1]) - 1024 for view in views])
    shares = np.array([-view.offset[1] for view in views])[room > 100] / room[room > 100]
    np.testing.assert_allclose(np.quantile(shares, [0, 0.25, 0.5, 0.75, 1]), [0, 0.25, 0.5, 0.75, 1], atol=0.04)
    assert not any(view.offset[1] for view, left in zip(views, room, strict=True) if left <= 0)


def test_one_square_is_the_only_input():
    assert longest_sides([Mirror(), LARGE]) == (1024, 1024)
    reader = train_reader(make_dataset(), (Mirror(), ScaleJitter(0.5, 2.0, side=64)), batch_size=2, seed=0)
    assert {bucket.shape for bucket in reader.buckets} == {(64, 64)}


def test_pixels_and_boxes_agree_in_the_network():
    """Every box is drawn into its image in full white, so that the network's input shows where it went."""
    boxes = np.array([[20 + 8 * i, 10 + 3 * i, 50 + 6 * i, 40 + 3 * i] for i in range(6)], np.float32)
    dataset = make_dataset(sizes=((64, 96),) * 6, counts=[1] * 6)
    records = dataclasses.replace(dataset.records, boxes=boxes)
    dataset = dataclasses.replace(dataset, records=records, source=Boxes(boxes))
    rules = BatchRules(max_boxes=2, min_visible=0.5)
    reader = train_reader(dataset, (Mirror(), ScaleJitter(0.4, 2.0, side=64)), batch_size=3, seed=1, rules=rules)
    normalise = jax.jit(functools.partial(preprocess.normalise, means=(0.0, 0.0, 0.0)))
    seen = lost = 0
    for step in range(4 * reader.steps):
        batch, skipped = reader(step)
        assert not skipped
        white = np.asarray(normalise(batch))[..., 0] > 127
        inputs = np.asarray(to_input(batch.gt.boxes, batch.placement, edges=True))
        for row in range(3):
            whole = (boxes[batch.index[row], 2:] - boxes[batch.index[row], :2] + 1) * batch.placement.scale[row, 0]
            share = white[row].sum() / whole.prod()
            if not batch.gt.valid[row, 0]:
                assert share < 0.55
                lost += 1
                continue
            assert share > 0.4
            ys, xs = np.nonzero(white[row])
            np.testing.assert_allclose(inputs[row, 0], [xs.min(), ys.min(), xs.max(), ys.max()], rtol=0, atol=1.0)
            seen += 1
    assert seen > 20 and lost > 1


def test_an_object_needs_its_share_and_a_crowd_a_pixel():
    """In the 60 x 50 pixels from (0, 0) of an image; masks and classes go with their boxes."""
    view = cropped((100, 100), 0, 0, shape=(60, 50))
    boxes = np.array([[40, 0, 59, 9], [45, 0, 94, 9], [45, 0, 94, 9], [80, 80, 89, 89], [5, 50, 14, 69]], np.float32)
    rings = [[np.array([[x1, y1], [x2, y1], [x2, y2]])] for x1, y1, x2, y2 in boxes]
    masks = from_parts(rings).padded(4)
    objects = Annotations(boxes, np.arange(5), np.array([False, False, True, True, False]), masks)
    assert visible(objects, view, least=0.1).classes.tolist() == [0, 1, 2, 3, 4]  # the second one keeps a tenth
    kept = visible(objects, view, least=0.2)
    assert kept.classes.tolist() == [0, 2, 3, 4]
    np.testing.assert_array_equal(kept.masks.points, masks.points[[0, 2, 3, 4]])
    assert visible(objects, view, least=0.6).classes.tolist() == [2, 3]
    assert visible(objects, view, least=0.0) is objects
    fields = example(np.zeros((100, 100, 3), np.uint8), view, Bucket(64, 64, 128, 128), annotations=kept, max_boxes=4)
    gt = fields["gt"]
    assert gt.classes.tolist() == [0, 2, 4, 0] and gt.valid.sum() == 3  # no pixel of the other crowd is seen
    np.testing.assert_array_equal(gt.boxes[:3], [[40, 0, 49, 9], [45, 0, 49, 9], [5, 50, 14, 59]])


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_narrow_images_keep_a_pixel(size):
    view = augment([LARGE], Key(3), size)
    assert min(view.size) >= 1
