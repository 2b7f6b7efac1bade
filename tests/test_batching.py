import itertools

import jax
import numpy as np
import pytest

from diou_jax.data.passes import Pass
from diou_jax.errors import UserError
from diou_jax.prediction.batching import WAITING, Batcher, batch_sizes


@pytest.mark.parametrize(
    ("images", "devices", "per_device", "wanted"),
    [
        (0, 2, 4, []),
        (1, 1, 20, [(1, 1)]),
        (1, 8, 4, [(1, 1)]),
        (3, 1, 20, [(1, 1)] * 3),
        (19, 1, 20, [(1, 1)] * 19),
        (20, 1, 20, [(1, 20)]),
        (5, 8, 1, [(8, 1)]),
        (9, 8, 1, [(8, 1), (1, 1)]),
        (10, 8, 2, [(8, 2)]),
        (8, 8, 2, [(8, 1)]),
        (33, 8, 4, [(8, 4), (1, 1)]),
        (26, 8, 4, [(8, 4)]),
        (24, 8, 4, [(8, 1)] * 3),
    ],
)
def test_a_batch_never_takes_longer_than_smaller_ones(images, devices, per_device, wanted):
    assert list(batch_sizes(images, devices=devices, per_device=per_device)) == wanted


def test_every_number_of_images_is_held_by_three_sizes_at_the_least_time():
    for devices, per_device in itertools.product((1, 2, 8), (1, 3, 20)):
        allowed = {(1, 1), (devices, 1), (devices, per_device)}
        for images in range(1, 3 * devices * per_device + 2):
            sizes = list(batch_sizes(images, devices=devices, per_device=per_device))
            assert set(sizes) <= allowed
            assert sum(used * each for used, each in sizes) >= images
            assert sum(each for _, each in sizes) == -(-images // devices)


@pytest.fixture
def batcher():
    return Batcher((Pass(64, 96),), shapes=(), stride=32, per_device=2, augmented=False)


def marked(number, size):
    return np.full((*size, 3), number, np.uint8)


def test_every_image_is_in_one_batch_with_its_pixels_and_size(batcher):
    sizes = [(64, 64), (64, 96), (96, 64), (30, 31), (300, 200)]
    images = [marked(number, sizes[number % 5]) for number in range(23)]
    seen, shapes = [], set()
    for group in batcher.groups(enumerate(images)):
        batch = group.batch
        assert batch.image.ndim == (4 if group.devices == 1 else 5)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch) if group.devices > 1 else batch
        shapes.add((batch.image.shape, batch.rows.index.shape))
        assert flat.present.sum() == len(group.rows) == len(group.sizes)
        for slot, row in enumerate(group.rows):
            assert tuple(flat.original_size[slot]) == group.sizes[slot] == images[row].shape[:2]
            assert flat.image[slot, 0, 0, 0] == row
        seen += group.rows
    assert sorted(seen) == list(range(23))
    assert jax.local_device_count() == 2 and len(shapes) <= 3 * 6


def test_full_batches_come_at_once_and_a_rare_shape_does_not_wait_for_ever(batcher):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield number, marked(0, (96, 64) if number == 0 else (64, 64))

    groups = batcher.groups(endless())
    assert next(groups).rows == [1, 2, 3, 4] and len(taken) == 5
    # All others fill their batches, but the results behind the first one wait for it.
    assert [0] in (group.rows for group in itertools.islice(groups, WAITING // 4)) and len(taken) <= WAITING + 1
    batcher = Batcher((Pass(64, 96),), shapes=(), stride=32, per_device=WAITING, augmented=False)
    rows = next(batcher.groups((number, marked(0, (96, 64) if number == 0 else (64, 64))) for number in range(99))).rows
    assert rows == [0] or len(rows) == 2 * WAITING


def test_images_that_need_no_batch_let_others_wait_no_longer(batcher):
    images = itertools.chain([(0, marked(0, (64, 64)))], ((number, None) for number in itertools.count(1)))
    groups = [group.rows for group in itertools.islice(batcher.groups(images), WAITING + 1)]
    assert [] in groups[:1] and [0] in groups, "a detector gives the results that it has whenever a group comes"


def test_an_image_that_no_bucket_holds_is_named():
    batcher = Batcher((Pass(64, 96),), shapes=((64, 64),), stride=32, per_device=1, augmented=False)
    with pytest.raises(UserError, match=r"data\.buckets: none holds an image of 96x64"):
        list(batcher.groups([(0, marked(0, (64, 96)))]))
