import dataclasses
import pickle

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reader import RULES, make_dataset, make_train_reader

from diou_jax.boxes import mirror, to_input, to_original
from diou_jax.data.augmentation import Key, Mirror, ScaleChoice, augment, largest_size, longest_sides
from diou_jax.data.make_reader import train_reader
from diou_jax.data.view import cropped, recoloured, whole
from diou_jax.detection import preprocess
from diou_jax.structures import Placement

SIDES = st.integers(1, 3000)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A part of the image of at most `shape`, anywhere."""

    shape: tuple[int, int]

    def __call__(self, key, size):
        top, left = key.uniform("crop", 2)
        rooms = (max(side - limit, 0) for side, limit in zip(size, self.shape))
        return cropped(size, *(share * room for share, room in zip((top, left), rooms)), shape=self.shape)

    def largest(self, size):
        return min(size[0], self.shape[0]), min(size[1], self.shape[1])


@dataclasses.dataclass(frozen=True)
class Brightness:
    """Adds up to `most` to every value."""

    most: float

    def __call__(self, key, size):
        change = np.eye(3, 4)
        change[:, 3] = self.most * (2 * key.uniform("brightness", 1)[0] - 1)
        return recoloured(size, change)

    def largest(self, size):
        return size


@settings(deadline=None, max_examples=50)
@given(SIDES, SIDES, st.lists(st.integers(16, 900), min_size=1, max_size=3), st.integers(64, 1400), st.integers(0, 99))
def test_no_view_is_larger_than_the_largest(height, width, scales, max_size, bits):
    augmentations = Mirror(), ScaleChoice(tuple(scales), max_size), RandomCrop((200, 300))
    for number, augmentation in enumerate(augmentations, 1):
        view = augment(augmentations[:number], Key(bits, True), (height, width))
        assert (np.array(view.size) <= largest_size(augmentations[:number], (height, width))).all()
        short, longest = longest_sides(augmentations[:number])
        assert number == 1 or (min(view.size) <= short and max(view.size) <= longest), augmentation


def test_the_limits_of_the_original_scales():
    assert longest_sides([ScaleChoice((800,), 1333)]) == (800, 1333)
    assert longest_sides([Mirror(), ScaleChoice((400, 500), 833)]) == (500, 833)


def test_draws_are_even_and_depend_on_key_and_name():
    drawn = np.array([Key(bits).uniform("crop", 2) for bits in range(2000)])
    assert ((drawn >= 0) & (drawn < 1)).all()
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.03)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.08
    np.testing.assert_array_equal(Key(7).uniform("crop", 2), drawn[7])
    assert not (Key(7).uniform("colour", 2) == drawn[7]).any()
    assert Key(7).uniform("crop", 1) == drawn[7, 0]


def test_pixels_and_boxes_of_a_crop_agree_in_the_network_and_come_back():
    """Every box is drawn into its image in full white, so that the network's input shows where it went."""
    dataset = make_dataset(sizes=((64, 96),) * 6, counts=[1] * 6)
    boxes = np.array([[20 + 8 * i, 10 + 3 * i, 40 + 8 * i, 30 + 3 * i] for i in range(6)], np.float32)
    dataset = dataclasses.replace(
        dataset, records=dataclasses.replace(dataset.records, boxes=boxes), source=Boxes(boxes)
    )
    reader = make_train_reader(dataset, scales=(48,), more=(RandomCrop((40, 44)),), batch_size=3)
    seen = 0
    for step in range(reader.steps):
        batch, skipped = reader(step)
        assert not skipped and batch.image.shape[1:3] == (64, 96)
        white = np.asarray(preprocess.normalise(batch, (0.0, 0.0, 0.0)))[..., 0] > 127
        inputs = np.asarray(to_input(batch.gt.boxes, batch.placement, edges=True))
        for row in range(3):
            if not batch.gt.valid[row, 0]:
                assert white[row].sum() <= 64  # less than a pixel wide
                continue
            ys, xs = np.nonzero(white[row])
            found = np.array([xs.min(), ys.min(), xs.max(), ys.max()])
            np.testing.assert_allclose(inputs[row, 0], found, rtol=0, atol=1.0)
            seen += 1
        back = to_original(to_input(batch.gt.boxes, batch.placement), batch.placement)
        np.testing.assert_allclose(back, batch.gt.boxes, atol=1e-4)
        assert (batch.placement.offset <= 0).all() and (batch.image_size <= (40, 44)).all()
    assert seen > 6 and batch.placement.offset.any()


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Black images with one white box each."""

    boxes: np.ndarray

    def read(self, index):
        import cv2

        image = np.zeros((64, 96, 3), np.uint8)
        x1, y1, x2, y2 = self.boxes[index].astype(int)
        image[y1 : y2 + 1, x1 : x2 + 1] = 255
        return cv2.imencode(".png", image)[1].tobytes()

    def name(self, index):
        return f"box {index}"


def test_a_colour_change_reaches_the_network_and_leaves_the_rest():
    plain, bright = make_train_reader(), make_train_reader(more=(Brightness(40.0),))
    (one, _), (other, _) = plain(0), bright(0)
    np.testing.assert_array_equal(one.gt.boxes, other.gt.boxes)
    jax.tree.map(np.testing.assert_array_equal, one.placement, other.placement)
    added = [float(Brightness(40.0)(Key(int(bits)), (1, 1)).colour[0, 3]) for bits in bright.schedule.entries(0).bits]
    for row, change in enumerate(added):
        wanted = np.clip(np.rint(one.image[row].astype(float) + change), 0, 255)
        inside = np.s_[: one.original_size[row, 0], : one.original_size[row, 1]]
        np.testing.assert_allclose(other.image[row][inside], wanted[inside], atol=1)
    assert max(map(abs, added)) > 5


def test_another_augmentation_changes_no_draw_of_the_first_ones():
    dataset = make_dataset(sizes=((30, 40),) * 6)
    plain = make_train_reader(dataset, scales=(32, 24))
    cropping = make_train_reader(dataset, scales=(32, 24), more=(RandomCrop((9, 9)),))
    for step in range(plain.steps):
        (one, _), (other, _) = plain(step), cropping(step)
        np.testing.assert_array_equal(one.index, other.index)
        np.testing.assert_array_equal(one.placement.scale, other.placement.scale)
        np.testing.assert_array_equal(one.placement.mirrored, other.placement.mirrored)


def test_a_reader_with_augmentations_travels_to_workers():
    reader = make_train_reader(more=(RandomCrop((20, 20)), Brightness(10.0)))
    again = pickle.loads(pickle.dumps(reader))
    jax.tree.map(np.testing.assert_array_equal, reader(1), again(1))


@dataclasses.dataclass(frozen=True)
class Understated:
    """Makes views larger than it says."""

    def __call__(self, key, size):
        return whole(size)

    def largest(self, size):
        return size[0] // 2, size[1] // 2


def test_a_view_larger_than_its_bucket_is_scaled_down_to_it():
    rules = dataclasses.replace(RULES, shapes=((32, 32),))
    reader = make_train_reader(make_dataset(sizes=((48, 48),) * 4), scales=(48,), more=(Understated(),), rules=rules)
    batch, _ = reader(0)
    np.testing.assert_array_equal(batch.image_size, 32)
    np.testing.assert_allclose(batch.placement.scale, 32 / 48)


def test_maps_may_differ_by_axis_and_mirroring_is_its_own_inverse():
    placement = Placement(np.array([[2.0, 0.5]], np.float32), np.array([[-4.0, -1.0]], np.float32), np.array([True]))
    boxes = np.array([[[10, 20, 29, 49]]], np.float32)
    np.testing.assert_array_equal(to_input(boxes, placement), [[[4.0, 36.0, 13.5, 94.0]]])
    np.testing.assert_array_equal(to_input(boxes, placement, edges=True), [[[4.0, 36.0, 13.0, 95.0]]])
    for edges in (False, True):
        there = to_input(boxes, placement, edges=edges)
        np.testing.assert_allclose(to_original(there, placement, edges=edges), boxes)
    once = mirror(boxes, np.array([100]), np.array([[True]]))
    np.testing.assert_array_equal(once, [[[70, 20, 89, 49]]])
    np.testing.assert_array_equal(mirror(once, np.array([100]), np.array([[True]])), boxes)
    np.testing.assert_array_equal(mirror(boxes, np.array([100]), np.array([[False]])), boxes)


def test_a_narrow_strip_is_cropped_where_the_canvas_cannot_hold_it():
    """2000 x 40 pixels, of which 64 x 64 at twice the size are shown, on a canvas that files of 40 pixels need."""
    augmentations = ScaleChoice((80,), 4000), RandomCrop((64, 64))
    reader = train_reader(make_dataset(sizes=((2000, 40),) * 4), augmentations, batch_size=4, seed=0)
    batch, _ = reader(0)
    np.testing.assert_array_equal(batch.image_size, 64)
    np.testing.assert_array_equal(batch.placement.scale, 2)


@pytest.mark.parametrize("key", [Key(0), Key(2**64 - 1, True)])
def test_no_augmentation_shows_all_of_an_image(key):
    view = augment([], key, (7, 9))
    assert (view.size, view.scale, view.offset, view.mirrored) == ((7, 9), (1, 1), (0, 0), False)
