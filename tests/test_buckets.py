import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.data import coco
from diou_jax.data.augmentation import ScaleChoice, largest_size, longest_sides
from diou_jax.data.buckets import default_shapes, make_buckets, round_up
from diou_jax.errors import UserError

SIDES = st.integers(1, 3000)
SIZES = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=12).map(np.array)


def inputs(sizes, *, scales=(800,), max_size=1333):
    return np.array([largest_size([ScaleChoice(tuple(scales), max_size)], tuple(size)) for size in sizes.tolist()])


def buckets_of(sizes, *, shapes=(), **options):
    """The buckets of images at some scales, in shapes of one's own or in the default ones, fitted."""
    choice = ScaleChoice(tuple(options.get("scales", (800,))), options.get("max_size", 1333))
    shapes, fit = (shapes, False) if shapes else (default_shapes(*longest_sides([choice])), True)
    sizes = np.array(sizes)
    return make_buckets(sizes, inputs(sizes, **options), shapes=shapes, fit=fit)


def test_the_default_shapes_of_the_original_scales():
    assert default_shapes(800, 1333) == [
        (800, 1088),
        (800, 1216),
        (800, 1344),
        (1088, 800),
        (1216, 800),
        (1344, 800),
    ]
    assert default_shapes(500, 833) == [(512, 672), (512, 768), (512, 864), (672, 512), (768, 512), (864, 512)]


@pytest.mark.parametrize("scales, max_size, shapes", [((800,), 600, {(608, 608)}), ((32,), 33, {(32, 64), (64, 32)})])
def test_shapes_that_coincide_are_one(scales, max_size, shapes):
    assert set(default_shapes(*longest_sides([ScaleChoice(scales, max_size)]))) == shapes


@settings(deadline=None, max_examples=50)
@given(SIZES, st.lists(st.integers(16, 900), min_size=1, max_size=3), st.integers(64, 1400))
def test_every_image_fits_its_bucket_at_every_scale(sizes, scales, max_size):
    buckets, choice = buckets_of(sizes, scales=scales, max_size=max_size)
    resized = inputs(sizes, scales=scales, max_size=max_size)
    assert len(buckets) <= 6
    assert set(choice) == set(range(len(buckets)))
    for (height, width), need, number in zip(sizes, resized, choice):
        bucket = buckets[number]
        assert all(side % 32 == 0 for side in (*bucket.shape, *bucket.canvas))
        assert (need <= bucket.shape).all()
        on_canvas = height <= bucket.canvas_height and width <= bucket.canvas_width
        # An image beyond twice the input is reduced to its size in the network's input before it is on the canvas.
        assert on_canvas or (height > 2 * bucket.shape[0] or width > 2 * bucket.shape[1])
        assert on_canvas or (need <= bucket.canvas).all()


@settings(deadline=None, max_examples=25)
@given(SIZES)
def test_an_images_bucket_depends_on_its_own_size_alone(sizes):
    """Shapes are fitted to the images in them, so it is the grouping that must not change."""
    _, choice = buckets_of(sizes)
    _, again = buckets_of(np.concatenate([sizes, [[333, 500]], sizes]))
    together = choice[:, None] == choice[None]
    again = again[: len(sizes)]
    np.testing.assert_array_equal(again[:, None] == again[None], together)


def test_images_of_one_size_get_one_tight_bucket():
    (bucket,), choice = buckets_of([(480, 640)] * 9)
    assert bucket.shape == (800, 1088)
    assert bucket.canvas == (480, 640)
    assert not choice.any()
    (bucket,), _ = buckets_of([(1080, 1920)] * 9)
    assert bucket.shape == (768, 1344)


def test_both_orientations_of_one_size_get_two():
    buckets, choice = buckets_of([(480, 640), (640, 480)])
    assert [bucket.shape for bucket in buckets] == [(800, 1088), (1088, 800)]
    assert choice.tolist() == [0, 1]


def test_the_canvas_is_limited_to_twice_the_input():
    (bucket,), _ = buckets_of([(6000, 9000)], scales=(200,), max_size=333)
    assert bucket.shape == (224, 320)
    assert bucket.canvas == (448, 640)


def test_shapes_of_ones_own_are_taken_as_they_are_the_smallest_first():
    shapes = ((1344, 1344), (800, 1344), (1088, 1088))
    buckets, choice = buckets_of([(480, 640), (640, 480), (640, 320)], shapes=shapes)
    assert [bucket.shape for bucket in buckets] == [(800, 1344), (1088, 1088), (1344, 1344)]
    assert choice.tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", [(800, 1333), (0, 32), (-32, 32), (32,)])
def test_shapes_that_the_network_cannot_take_are_refused(shape):
    with pytest.raises(UserError, match=r"data\.buckets: \(.*\) is not a height and width that are multiples of 32"):
        buckets_of([(10, 10)], scales=(32,), max_size=64, shapes=[shape])


def test_an_image_that_fits_no_shape_says_what_it_needs():
    with pytest.raises(UserError, match=r"none holds an image of 480x640 pixels, which needs \(1088, 800\)"):
        buckets_of([(480, 640), (640, 480)], shapes=[(800, 1344)])


def test_cocos_images_cost_four_percent_of_padding(real_data):
    """Beyond the padding to multiples of 32 that each would get by itself."""
    root = real_data("coco128")
    records = coco.load(root / "annotations" / "instances_train2017.json", root / "images" / "train2017").records
    sizes = np.stack([records.heights, records.widths], 1)
    for target, max_size in ((800, 1333), (500, 833)):
        buckets, choice = buckets_of(sizes, scales=(target,), max_size=max_size)
        padded = np.array([bucket.shape for bucket in buckets])[choice].prod(1).sum()
        alone = round_up(inputs(sizes, scales=(target,), max_size=max_size), 32).prod(1).sum()
        assert len(buckets) <= 6
        assert 1 <= padded / alone < 1.04
