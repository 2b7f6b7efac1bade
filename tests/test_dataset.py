import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.data.dataset import BACKGROUND, BadImageError, Dataset, Faults, clean_boxes, join, make_records
from diou_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Words:
    words: tuple[bytes, ...]

    def read(self, index):
        return self.words[index]

    def name(self, index):
        return f"word {index}"


def annotations(*counts):
    return [
        (np.full((n, 4), [1, 2, 3, 4.5 + n]), np.full(n, number + 1), np.arange(n) % 2 == 1)
        for number, n in enumerate(counts)
    ]


def small(name, ids, *counts, classes=("cat", "dog", "eel")):
    words = tuple(f"{name}{i}".encode() for i in range(len(ids)))
    records = make_records(ids, annotations(*counts), heights=[10] * len(ids), widths=[20] * len(ids))
    faults = Faults()
    faults.add("odd boxes", f"a box of {name}", count=2)
    return Dataset(
        name=name,
        records=records,
        source=Words(words),
        class_names=(BACKGROUND, *classes),
        category_ids=(-1, *range(7, 7 + len(classes))),
        annotation_files=(f"{name}.json",),
        faults=faults,
    )


def test_records_give_back_what_each_image_was_packed_with():
    packed = annotations(2, 0, 3)
    records = make_records([5, 6, 7], packed, heights=[1, 2, 3], widths=[4, 5, 6])
    assert len(records) == 3
    assert (records.boxes.dtype, records.classes.dtype, records.crowd.dtype) == (np.float32, np.int32, bool)
    for index, expected in enumerate(packed):
        for column, values in zip(records.annotations(index), expected):
            np.testing.assert_array_equal(column, values)


def test_a_table_without_boxes_has_columns_of_the_right_shape():
    records = make_records([1], annotations(0), heights=[2], widths=[3])
    boxes, classes, crowd = records.annotations(0)
    assert (boxes.shape, classes.shape, crowd.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize("ids", [[2**70, 1], ["0001", "x"], ["1", 1]])
def test_ids_that_int64_cannot_hold_stay_what_they_are(ids):
    column = make_records(ids, annotations(0, 0), heights=[1, 1], widths=[1, 1]).image_ids
    assert column.tolist() == ids
    assert [type(i) for i in column.tolist()] == [type(i) for i in ids]


def test_joined_data_sets_read_as_one():
    first, second, third = small("a", [1, 2], 2, 0), small("b", ["x"], 3), small("c", [9, 4], 0, 1)
    joined = join([first, second, third])
    assert joined.name == "a+b+c"
    assert joined.annotation_files == ("a.json", "b.json", "c.json")
    assert joined.records.image_ids.tolist() == [1, 2, "x", 9, 4]
    assert [joined.read(i) for i in range(5)] == [b"a0", b"a1", b"b0", b"c0", b"c1"]
    assert joined.image_name(4) == "word 1"
    alone = [dataset.records.annotations(i) for dataset in (first, second, third) for i in range(len(dataset))]
    for index, expected in enumerate(alone):
        for column, values in zip(joined.records.annotations(index), expected):
            np.testing.assert_array_equal(column, values)
    assert joined.faults.counts == {"odd boxes": 6}
    assert joined.faults.examples == {"odd boxes": [f"a box of {name}" for name in "abc"]}


def test_joining_one_changes_nothing():
    dataset = small("a", [1], 1)
    assert join([dataset]) is dataset


def test_other_categories_do_not_join():
    with pytest.raises(UserError, match=r"a and b cannot be read as one.*categories differ"):
        join([small("a", [1], 1), small("b", [1], 1, classes=("cat", "dog", "fox"))])


def test_a_data_set_survives_the_way_to_a_worker():
    dataset = pickle.loads(pickle.dumps(join([small("a", [1], 1), small("b", [2], 2)])))
    assert dataset.read(1) == b"b0"
    np.testing.assert_array_equal(dataset.records.offsets, [0, 1, 3])
    error = pickle.loads(pickle.dumps(BadImageError("x.jpg: gone")))
    assert str(error) == "x.jpg: gone"


def test_faults_are_reported_once_each(caplog):
    faults = Faults()
    faults.add("flat boxes", "box 3")
    faults.add("flat boxes", "box 4")
    faults.add("lost images", "image 1", count=0)
    with caplog.at_level("WARNING"):
        faults.report("train")
    assert [record.getMessage() for record in caplog.records] == ["train: 2 flat boxes, the first: box 3"]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(*[st.floats(-1e9, 1e9, width=32) | st.just(float("nan"))] * 4), max_size=8),
    st.integers(1, 500),
    st.integers(1, 500),
)
def test_cleaned_boxes_lie_inside_and_each_dropped_one_has_one_reason(xywh, height, width):
    boxes, keep, faults = clean_boxes(np.array(xywh).reshape(-1, 4), height, width)
    assert np.isfinite(boxes).all()
    x1, y1, x2, y2 = boxes[keep].T
    assert ((x1 >= 0) & (x2 > x1) & (x2 <= width - 1) & (y1 >= 0) & (y2 > y1) & (y2 <= height - 1)).all()
    np.testing.assert_array_equal(sum(flags.astype(int) for flags in faults.values()) + keep, np.ones(len(xywh)))
