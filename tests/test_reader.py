import dataclasses

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.data import coco
from diou_jax.data.augmentation import Mirror, ScaleChoice
from diou_jax.data.dataset import BACKGROUND, BadImageError, Dataset, make_records
from diou_jax.data.make_reader import EpochRules, eval_reader, train_reader
from diou_jax.data.reader import BatchRules
from diou_jax.detection import preprocess
from diou_jax.errors import UserError

SIZES = [(30, 40), (40, 30), (30, 40), (20, 48), (48, 20), (40, 30), (33, 44)]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images drawn from their index; those in `bad` cannot be decoded."""

    sizes: tuple[tuple[int, int], ...]
    bad: tuple[int, ...] = ()

    def pixels(self, index):
        return np.random.default_rng(index).integers(0, 256, (*self.sizes[index], 3), np.uint8)

    def read(self, index):
        return b"nothing" if index in self.bad else cv2.imencode(".png", self.pixels(index))[1].tobytes()

    def name(self, index):
        return f"picture{index}.png"


def make_dataset(sizes=tuple(SIZES), counts=None, bad=()):
    """Image i has `counts[i]` boxes, of classes 1, 2, ...; box k is k pixels larger than its neighbour."""
    counts = counts or [1] * len(sizes)
    annotations = [
        (
            np.array([[2, 3, 6 + k, 5 + k] for k in range(n)], float).reshape(-1, 4),
            1 + np.arange(n) % 3,
            np.zeros(n, bool),
        )
        for n in counts
    ]
    heights, widths = zip(*sizes)
    return Dataset(
        name="pictures",
        records=make_records(list(range(100, 100 + len(sizes))), annotations, heights=heights, widths=widths),
        source=Pictures(tuple(sizes), tuple(bad)),
        class_names=(BACKGROUND, "a", "b", "c"),
        category_ids=(-1, 1, 2, 3),
    )


RULES = BatchRules(max_boxes=4)
SKIP = dataclasses.replace(RULES, on_bad_image="skip")


def make_train_reader(dataset=None, *, scales=(32,), more=(), **options):
    augmentations = Mirror(), ScaleChoice(scales, 64), *more
    defaults = {"batch_size": 4, "seed": 0, "rules": RULES}
    return train_reader(dataset or make_dataset(), augmentations, **defaults | options)


def make_eval_reader(dataset=None, **options):
    return eval_reader(
        dataset or make_dataset(), [ScaleChoice((32,), 64)], **{"batch_size": 4, "rules": RULES} | options
    )


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def resize(image, scale):
    image = image.astype(np.float32) - np.float32(preprocess.PIXEL_MEANS)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


def test_each_image_reaches_the_network_as_the_original_would_show_it():
    """Pixels to 5e-5 grey levels; boxes, sizes and scale as stated in `Batch`."""
    dataset = make_dataset(counts=[1, 2, 3, 4, 3, 2, 1])
    reader = make_train_reader(dataset, scales=(32, 24))
    flips, scales = set(), set()
    for step in range(reader.steps):
        batch, skipped = reader(step)
        assert not skipped
        inputs = np.asarray(preprocess.normalise(batch))
        for row in range(4):
            index = batch.index[row]
            height, width = SIZES[index]
            pixels, scale = dataset.source.pixels(index), float(batch.placement.scale[row, 0])
            boxes, classes, _ = dataset.records.annotations(index)
            flipped = batch.gt.boxes[row, 0, 0] != 2
            if flipped:
                pixels = np.ascontiguousarray(pixels[:, ::-1])
                boxes = np.stack([width - boxes[:, 2] - 1, boxes[:, 1], width - boxes[:, 0] - 1, boxes[:, 3]], 1)
            exact = min(
                [32 / min(height, width), 24 / min(height, width), 64 / max(height, width)],
                key=lambda s: abs(s - scale),
            )
            expected = resize(pixels, exact)
            assert tuple(batch.image_size[row]) == expected.shape[:2]
            inside = np.s_[: expected.shape[0], : expected.shape[1]]
            np.testing.assert_allclose(inputs[row][inside], expected, rtol=0, atol=5e-5)
            np.testing.assert_array_equal(batch.padded_size[row], -(-batch.image_size[row] // 32) * 32)
            np.testing.assert_array_equal(batch.original_size[row], [height, width])
            np.testing.assert_array_equal(batch.gt.boxes[row][batch.gt.valid[row]], boxes)
            np.testing.assert_array_equal(batch.gt.classes[row][batch.gt.valid[row]], classes)
            assert (batch.padded_size[row] <= inputs.shape[1:3]).all()
            flips.add(flipped)
            scales.add(exact)
        assert batch.present.all()
    assert flips == {False, True}
    assert len(scales) > 2


def test_every_leaf_has_the_documented_type():
    batch, _ = make_train_reader()(0)
    expected = {
        "image": (np.uint8, 4),
        "rows.index": (np.int32, 3),
        "rows.weight": (np.float32, 2),
        "columns.index": (np.int32, 3),
        "columns.weight": (np.float32, 2),
        "image_size": (np.int32, 2),
        "padded_size": (np.int32, 2),
        "placement.scale": (np.float32, 2),
        "placement.offset": (np.float32, 2),
        "placement.mirrored": (np.bool_, 1),
        "original_size": (np.int32, 2),
        "gt.boxes": (np.float32, 3),
        "gt.classes": (np.int32, 2),
        "gt.crowd": (np.bool_, 2),
        "gt.valid": (np.bool_, 2),
        "index": (np.int32, 1),
        "present": (np.bool_, 1),
    }
    leaves = {jax.tree_util.keystr(path)[1:]: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(batch)}
    assert leaves.keys() == expected.keys()
    for name, (dtype, rank) in expected.items():
        assert (leaves[name].dtype, leaves[name].ndim, len(leaves[name])) == (dtype, rank, 4), name


def test_a_bucket_has_one_shape_and_buckets_are_few():
    reader = make_train_reader()
    shapes = {}
    for step in range(reader.steps):
        batch, _ = reader(step)
        shapes.setdefault(reader.schedule.entries(step).bucket, set()).add(
            tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        )
    assert all(len(found) == 1 for found in shapes.values())
    assert len(shapes) == len(reader.buckets)


def test_processes_share_a_batch_without_gap_or_overlap():
    whole = make_train_reader()
    parts = [make_train_reader(rules=dataclasses.replace(RULES, process_index=i, process_count=2)) for i in range(2)]
    for step in range(whole.steps):
        halves = [part(step)[0] for part in parts]
        equal(jax.tree.map(lambda *leaves: np.concatenate(leaves), *halves), whole(step)[0])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="4 images cannot be divided among 3 processes"):
        make_train_reader(rules=dataclasses.replace(RULES, process_count=3))


def test_evaluation_shows_every_image_once_and_marks_what_fills_up():
    reader = make_eval_reader()
    seen = []
    for step in range(reader.steps):
        batch, _ = reader(step)
        seen += batch.index[batch.present].tolist()
        assert not batch.gt.valid[~batch.present].any()
        assert np.isfinite(preprocess.normalise(batch)).all()
        assert (batch.padded_size > 0).all()
        assert (batch.placement.scale > 0).all()
    assert sorted(seen) == list(range(7))


def test_images_without_boxes_are_left_out_or_not():
    dataset = make_dataset(counts=[1, 0, 1, 1, 1, 1, 1])
    dataset.records.crowd[0] = True
    kept = make_train_reader(dataset)
    assert {i for step in range(kept.steps) for i in kept(step)[0].index} == {2, 3, 4, 5, 6}
    everything = make_train_reader(dataset, epoch=EpochRules(drop_empty=False))
    assert {i for step in range(everything.steps) for i in everything(step)[0].index} == set(range(7))


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(UserError, match="none of its 7 images has a box"):
        make_train_reader(make_dataset(counts=[0] * 7))


def test_more_boxes_than_fit_keep_the_largest_in_order(caplog):
    dataset = make_dataset(counts=[1, 1, 6, 1, 1, 1, 1])
    with caplog.at_level("WARNING"):
        reader = make_eval_reader(dataset)
    assert "1 images have more than data.max_boxes=4 boxes and keep the largest, the first: picture2.png" in caplog.text
    for step in range(reader.steps):
        batch, _ = reader(step)
        for row in np.flatnonzero(batch.index == 2):
            if batch.present[row]:
                np.testing.assert_array_equal(batch.gt.boxes[row], dataset.records.annotations(2)[0][2:])
                np.testing.assert_array_equal(batch.gt.classes[row], dataset.records.annotations(2)[1][2:])


def test_an_image_larger_than_its_canvas_is_reduced_on_the_host(caplog):
    dataset = make_dataset(sizes=((30, 40), (300, 400)))
    with caplog.at_level("INFO"):
        reader = make_eval_reader(dataset, batch_size=2)
    assert "1 images are far larger than the network's input and are resized on the host, the first" in caplog.text
    batch, _ = reader(0)
    assert batch.image.shape[1:3] == (64, 128)
    inputs = np.asarray(preprocess.normalise(batch))
    for row in range(2):
        expected = resize(dataset.source.pixels(row), float(np.float64(32) / SIZES[0][0]) / (10 if row else 1))
        inside = np.s_[: expected.shape[0], : expected.shape[1]]
        np.testing.assert_allclose(inputs[row][inside], expected, rtol=0, atol=0.501 if row else 5e-5)
    np.testing.assert_array_equal(batch.original_size, [[30, 40], [300, 400]])
    np.testing.assert_allclose(batch.placement.scale[:, 0], [32 / 30, 32 / 300])


def test_a_bad_image_is_an_error_with_its_name():
    reader = make_train_reader(make_dataset(bad=[2]))
    with pytest.raises(BadImageError, match=r"picture2\.png: not an image"):
        for step in range(reader.steps):
            reader(step)


def test_a_bad_image_is_replaced_by_the_same_one_each_time():
    good, bad = make_train_reader(), make_train_reader(make_dataset(bad=[2]), rules=SKIP)
    again = make_train_reader(make_dataset(bad=[2]), rules=SKIP)
    messages = []
    for step in reversed(range(bad.steps)):
        batch, skipped = bad(step)
        repeated, repeated_messages = again(step)
        equal(batch, repeated)
        assert skipped == repeated_messages
        untouched = good(step)[0].index != 2
        assert 2 not in batch.index
        np.testing.assert_array_equal(batch.index[untouched], good(step)[0].index[untouched])
        messages += skipped
    assert messages
    assert all(message.startswith("picture2.png") for message in messages)


def test_nothing_but_bad_images_gives_up():
    reader = make_train_reader(make_dataset(bad=range(7)), rules=SKIP)
    with pytest.raises(UserError, match=r"20 images in a row cannot be read, the last: picture\d\.png"):
        reader(0)


def test_a_bad_image_is_absent_from_evaluation():
    reader = make_eval_reader(make_dataset(bad=[2]), rules=SKIP)
    results = [reader(step) for step in range(reader.steps)]
    assert sorted(i for batch, _ in results for i in batch.index[batch.present]) == [0, 1, 3, 4, 5, 6]
    assert sum((messages for _, messages in results), ()) == (
        "picture2.png: not an image that can be decoded (7 bytes)",
    )


def test_another_policy_is_refused():
    with pytest.raises(UserError, match=r"data\.on_bad_image='ignore': it is 'error' or 'skip'"):
        dataclasses.replace(RULES, on_bad_image="ignore")


def test_another_defect_keeps_its_kind_and_gains_the_files_name():
    class Broken(Pictures):
        def read(self, index):
            raise ZeroDivisionError("in the source")

    dataset = dataclasses.replace(make_dataset(), source=Broken(tuple(SIZES)))
    with pytest.raises(ZeroDivisionError) as error:
        make_eval_reader(dataset)(0)
    assert "while reading picture0.png" in error.value.__notes__


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(0, 1000))
def test_any_step_can_be_made_at_any_time(step, seed):
    equal(make_train_reader(seed=seed)(step), make_train_reader(seed=seed)(step))


def test_real_photographs_fill_a_batch(real_data):
    root = real_data("coco128")
    dataset = coco.load(root / "annotations" / "instances_train2017.json", root / "images" / "train2017")
    reader = eval_reader(dataset, [ScaleChoice((400,), 667)], batch_size=8)
    batch, _ = reader(0)
    for row in range(8):
        image = cv2.imread(dataset.image_name(int(batch.index[row])))
        height, width = batch.original_size[row]
        np.testing.assert_array_equal(batch.image[row, :height, :width], image)
        assert not batch.image[row, height:].any()
        assert not batch.image[row, :, width:].any()
