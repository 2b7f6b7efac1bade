import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reader import make_dataset, make_train_reader

from diou_jax.data.dataset import make_records
from diou_jax.data.make_reader import EpochRules
from diou_jax.data.repeat_factors import repeat_factors
from diou_jax.data.schedule import TrainSchedule


def records_of(classes, crowd=None):
    """Images with objects of these classes, each (n,)."""
    crowd = crowd or [[False] * len(labels) for labels in classes]
    annotations = [
        (np.tile([0.0, 0.0, 4.0, 4.0], (len(labels), 1)), np.array(labels, int), np.array(flags, bool))
        for labels, flags in zip(classes, crowd)
    ]
    sides = [10] * len(classes)
    return make_records(list(range(len(classes))), annotations, heights=sides, widths=sides)


def factors_of(classes, threshold, *, keep=None, crowd=None):
    keep = np.ones(len(classes), bool) if keep is None else np.array(keep)
    return repeat_factors(records_of(classes, crowd), threshold=threshold, keep=keep)


def test_the_factors_are_those_of_the_paper():
    """By hand: class 1 in 8 of 10 images, 2 in 2, 3 in 1, though with many objects; threshold 0.4."""
    classes = [[1], [1, 1], [1], [1], [1], [1, 2], [1, 2, 2], [1], [3, 3, 3, 3, 3], []]
    wanted = [1, 1, 1, 1, 1, np.sqrt(0.4 / 0.2), np.sqrt(0.4 / 0.2), 1, np.sqrt(0.4 / 0.1), 1]
    np.testing.assert_allclose(factors_of(classes, 0.4), wanted, rtol=1e-12)
    assert (factors_of(classes, 0.0) == 1).all()


def test_crowds_and_images_left_out_do_not_count():
    classes, crowd = [[1, 2], [1], [1], [1], [2]], [[False, True], [False], [False], [False], [False]]
    np.testing.assert_allclose(
        factors_of(classes, 1.0, crowd=crowd, keep=[True, True, True, True, False]), [1, 1, 1, 1, 1]
    )
    rare = np.sqrt(1 / 0.2)
    np.testing.assert_allclose(factors_of(classes, 1.0, crowd=crowd), [*[np.sqrt(1 / 0.8)] * 4, rare])


def copies(schedule, epoch, images):
    """How often each image comes in an epoch, and that epoch's batches."""
    steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
    batches = [schedule.entries(step) for step in steps]
    return np.bincount(np.concatenate([batch.index for batch in batches]), minlength=images), batches


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(1, 9)), min_size=1, max_size=30),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 2**40),
)
def test_an_image_comes_its_factor_rounded_down_or_up_times(images, batch_size, use_flipped, seed):
    """Besides entries that fill up the last batch of a bucket; every bucket has the same batches in every epoch."""
    buckets, repeats = (np.array(column) for column in zip(*images))
    schedule = TrainSchedule(buckets, batch_size=batch_size, seed=seed, use_flipped=use_flipped, repeats=repeats)
    sides = 2 if use_flipped else 1
    for epoch in (0, 3):
        counts, batches = copies(schedule, epoch, len(images))
        assert (counts >= sides * np.floor(repeats)).all()
        excess = counts - sides * np.ceil(repeats)
        for bucket in set(buckets.tolist()):
            inside = buckets == bucket
            assert np.maximum(excess[inside], 0).sum() < batch_size + 1
            total = int(np.ceil(sides * repeats[inside].sum() - 1e-4))
            assert sum(batch.bucket == bucket for batch in batches) in (
                -(-total // batch_size),
                -(-total // batch_size) + 1,
            )
        assert len(batches) == schedule.steps_per_epoch


def test_the_mean_over_epochs_is_the_factor_and_copies_are_spread():
    repeats = np.array([1.0, 1.25, 2.5, 3.0, 1.9] * 8)
    schedule = TrainSchedule(np.zeros(40, int), batch_size=1, seed=4, use_flipped=False, repeats=repeats)
    found = [copies(schedule, epoch, 40) for epoch in range(200)]
    # The variance of a rounding is at most a quarter. Batches of one image are filled up by less than one in an epoch.
    np.testing.assert_allclose(np.mean([counts for counts, _ in found], 0), repeats, atol=5 * np.sqrt(0.25 / 200))
    order = [batch.index[0] for batch in found[0][1]]
    assert np.mean(np.diff(order) == 0) < 0.1


def test_the_epoch_is_a_function_of_seed_and_step():
    repeats = np.linspace(1, 4, 30)
    make = lambda seed: TrainSchedule(np.arange(30) % 2, batch_size=4, seed=seed, repeats=repeats)  # noqa: E731
    forwards, backwards = make(1), make(1)
    steps = range(3 * forwards.steps_per_epoch)
    rows = [forwards.entries(step) for step in steps]
    for step in reversed(steps):
        np.testing.assert_array_equal(backwards.entries(step).index, rows[step].index)
        np.testing.assert_array_equal(backwards.entries(step).bits, rows[step].bits)
    assert any((make(2).entries(step).index != rows[step].index).any() for step in steps)


def test_factors_of_one_change_nothing():
    buckets = np.arange(20) % 3
    plain, ones = (TrainSchedule(buckets, batch_size=3, seed=0, repeats=repeats) for repeats in (None, np.ones(20)))
    assert plain.steps_per_epoch == ones.steps_per_epoch
    for epoch in range(2):
        np.testing.assert_array_equal(*(np.sort(copies(one, epoch, 20)[0]) for one in (plain, ones)))


def test_a_reader_repeats_images_of_rare_classes():
    dataset = make_dataset(sizes=((30, 40),) * 8, counts=[1, 1, 1, 1, 1, 1, 1, 3])  # classes 2 and 3 in the last
    plain = make_train_reader(dataset)
    reader = make_train_reader(dataset, epoch=EpochRules(repeat_threshold=0.5))
    assert (plain.steps, reader.steps) == (4, 5)  # of 16 and 18 entries
    counts = np.mean([copies(reader.schedule, epoch, 8)[0] for epoch in range(20)], 0)
    assert counts[7] > 3.5 and counts[:7].max() < 3
    again = make_train_reader(dataset, epoch=EpochRules(repeat_threshold=0.01))
    np.testing.assert_array_equal(again.schedule.entries(3).index, plain.schedule.entries(3).index)


@pytest.mark.parametrize("images", [0, 1])
def test_data_without_objects_has_factors_of_one(images):
    np.testing.assert_array_equal(factors_of([[]] * images, 0.5), np.ones(images))
