import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.data.schedule import EvalSchedule, TrainSchedule, random_bits

BUCKETS = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(np.array)


def epoch(schedule, number):
    steps = schedule.steps_per_epoch
    return [schedule.entries(step) for step in range(number * steps, (number + 1) * steps)]


def pairs(batches):
    return [(i, f) for batch in batches for i, f in zip(batch.index.tolist(), batch.mirrored.tolist())]


def same(one, other):
    assert one.bucket == other.bucket
    for name in ("index", "mirrored", "bits", "present"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@settings(deadline=None, max_examples=50)
@given(BUCKETS, st.integers(1, 7), st.booleans(), st.integers(0, 2**40))
def test_an_epoch_has_every_entry_and_repeats_only_to_fill_a_batch(buckets, batch_size, use_flipped, seed):
    schedule = TrainSchedule(buckets, batch_size=batch_size, seed=seed, use_flipped=use_flipped)
    batches = epoch(schedule, 1)
    wanted = {(i, f) for i in range(len(buckets)) for f in ((False, True) if use_flipped else (False,))}
    seen = pairs(batches)
    assert set(seen) == wanted
    assert len(schedule) == len(wanted)
    for number in set(buckets.tolist()):
        full = [(i, f) for i, f in seen if buckets[i] == number]
        assert len(full) - len(set(full)) < batch_size
        assert len(full) % batch_size == 0
        # Filled up evenly: no entry comes once more than another and then again.
        counts = [full.count(entry) for entry in set(full)]
        assert max(counts) - min(counts) <= 1


@settings(deadline=None, max_examples=25)
@given(BUCKETS, st.integers(1, 5))
def test_a_batch_is_of_one_bucket(buckets, batch_size):
    for batch in epoch(TrainSchedule(buckets, batch_size=batch_size, seed=0), 0):
        assert (buckets[batch.index] == batch.bucket).all()
        assert batch.index.shape == (batch_size,)
        assert batch.present.all()


def test_the_order_is_a_function_of_seed_and_step_alone():
    buckets = np.arange(50) % 3
    forwards = TrainSchedule(buckets, batch_size=4, seed=5)
    backwards = TrainSchedule(buckets, batch_size=4, seed=5)
    steps = range(0, 3 * forwards.steps_per_epoch)
    in_order = [forwards.entries(step) for step in steps]
    for step in reversed(steps):
        same(backwards.entries(step), in_order[step])
    same(pickle.loads(pickle.dumps(forwards)).entries(17), in_order[17])
    other = TrainSchedule(buckets, batch_size=4, seed=6)
    assert any((other.entries(step).index != in_order[step].index).any() for step in range(3))


def test_the_stream_is_the_same_on_every_machine():
    """Checkpoints of other machines and versions resume in it."""
    schedule = TrainSchedule(np.zeros(10, int), batch_size=5, seed=3)
    entries = schedule.entries(0)
    assert entries.index.tolist() == [1, 9, 8, 4, 3]
    assert entries.mirrored.tolist() == [True, False, False, False, False]
    assert (entries.bits % 4).tolist() == [0, 1, 2, 3, 2]


def test_epochs_differ_and_mix_entries_and_batches():
    buckets = np.repeat([0, 1], 60)
    schedule = TrainSchedule(buckets, batch_size=4, seed=0)
    first, second = epoch(schedule, 0), epoch(schedule, 1)
    assert pairs(first) != pairs(second)
    order = np.array([batch.bucket for batch in first])
    assert 10 < (order[1:] != order[:-1]).sum() < len(order) - 10
    apart = [abs(a - b) for a, b in zip(*[[i for i, _ in pairs(x)] for x in (first, second)])]
    assert np.mean(apart) > 20


def test_scales_are_drawn_evenly_and_anew():
    schedule = TrainSchedule(np.zeros(600, int), batch_size=10, seed=1)
    scales = np.concatenate([batch.bits % 3 for batch in epoch(schedule, 0)])
    counts = np.bincount(scales)
    assert len(counts) == 3
    assert (abs(counts - 400) < 80).all()
    assert (scales != np.concatenate([batch.bits % 3 for batch in epoch(schedule, 1)])).any()


def test_images_left_out_stay_out():
    keep = np.array([True, False, True, False, True])
    schedule = TrainSchedule(np.array([0, 1, 0, 0, 2]), batch_size=2, seed=0, keep=keep)
    assert {i for i, _ in pairs(epoch(schedule, 0) + epoch(schedule, 1))} == {0, 2, 4}
    assert schedule.steps_per_epoch == 3


def test_a_substitute_comes_from_the_same_bucket_and_is_the_same_each_time():
    buckets = np.arange(60) % 3
    schedule = TrainSchedule(buckets, batch_size=4, seed=2, keep=buckets != 1)
    drawn = []
    for step in range(10):
        for attempt in range(5):
            index, flip = schedule.substitute(step, 1, attempt)
            assert buckets[index] == schedule.entries(step).bucket
            assert schedule.substitute(step, 1, attempt) == (index, flip)
            drawn.append((index, flip))
    assert len(set(drawn)) > 20


def test_random_bits_depend_on_every_part_of_the_key():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**70, 0, 1), (1, 2, 3), (3, 2, 1)]
    assert len({tuple(random_bits(2, *key).tolist()) for key in keys}) == len(keys)
    np.testing.assert_array_equal(random_bits(9, 1, 2)[:4], random_bits(4, 1, 2))


@settings(deadline=None, max_examples=50)
@given(BUCKETS, st.integers(1, 7))
def test_evaluation_has_every_image_once(buckets, batch_size):
    schedule = EvalSchedule(buckets, batch_size=batch_size)
    batches = [schedule.entries(step) for step in range(len(schedule))]
    present = np.concatenate([batch.index[batch.present] for batch in batches])
    np.testing.assert_array_equal(np.sort(present), np.arange(len(buckets)))
    for batch in batches:
        assert (buckets[batch.index[batch.present]] == batch.bucket).all()
        assert batch.index.shape == batch.present.shape == (batch_size,)
        assert not batch.mirrored.any()
    np.testing.assert_array_equal([batch.bucket for batch in batches], sorted(batch.bucket for batch in batches))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_toy_sets_entries_are_the_originals(golden, golden_path, batch_size):
    """toy_dataset.npz: the same images, mirrored or not, with the same aspects; the original's order is its own."""
    from diou_jax.data import coco

    expected = golden("toy_dataset.npz")
    folder = golden_path("toy")
    records = coco.load(folder / "ann.json", folder / "images").records
    keep = np.array([(~records.annotations(i)[2]).any() for i in range(len(records))])
    schedule = TrainSchedule(np.zeros(len(records), int), batch_size=batch_size, seed=0, keep=keep)
    entries = pairs(epoch(schedule, 0))
    roidb = [expected[f"roidb/{number}/meta"] for number in range(8)]
    assert sorted((records.image_ids[i], flip) for i, flip in entries) == sorted((m[0], bool(m[3])) for m in roidb)
    ratios = [records.widths[i] / records.heights[i] for i, _ in entries]
    np.testing.assert_array_equal(np.sort(ratios), np.sort(expected["ratio_list_f64"]))
