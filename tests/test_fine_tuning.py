"""Classes go by their names from one run to the next."""

import numpy as np
import pytest

from diou_jax.errors import UserError
from diou_jax.weights.fine_tuning import fine_tune, match

BACKGROUND = "__background__"


def tree(classes, value, *, boxes=None, hidden=3):
    """Variables of which every row holds ``value + class``; boxes: columns of the deltas over 4."""
    rows = np.arange(classes, dtype=np.float32) + value
    deltas = np.repeat(rows if boxes is None else np.full(boxes, value, np.float32), 4)
    return {
        "params": {
            "neck": {"kernel": np.full((2, 2), value, np.float32)},
            "box_head": {
                "logits": {"kernel": np.tile(rows, (hidden, 1)), "bias": rows},
                "deltas": {"kernel": np.tile(deltas, (hidden, 1)), "bias": deltas},
            },
        }
    }


def test_rows_follow_the_names():
    ours, theirs = (BACKGROUND, "dog", "bird", "cat"), (BACKGROUND, "Cat", "dog", "fish", "cow")
    taken, lines = fine_tune(tree(4, 100), tree(5, 0), names=ours, stored_names=theirs, source="w")
    head = taken["params"]["box_head"]
    np.testing.assert_array_equal(head["logits"]["bias"], [0, 2, 102, 1])
    np.testing.assert_array_equal(head["logits"]["kernel"], [[0, 2, 102, 1]] * 3)
    np.testing.assert_array_equal(head["deltas"]["bias"], np.repeat([0, 2, 102, 1], 4))
    np.testing.assert_array_equal(head["deltas"]["kernel"][1], np.repeat([0, 2, 102, 1], 4))
    np.testing.assert_array_equal(taken["params"]["neck"]["kernel"], 0)
    assert lines == [
        "classes taken over, by name: dog, cat",
        "classes that start anew, by name: bird",
        "not used, by name: fish, cow",
    ]


def test_same_names_are_taken_whole_and_same_numbers_of_others_are_not():
    names = (BACKGROUND, "a", "b")
    taken, _ = fine_tune(tree(3, 100), tree(3, 0), names=names, stored_names=names, source="w")
    np.testing.assert_array_equal(taken["params"]["box_head"]["logits"]["bias"], [0, 1, 2])
    taken, lines = fine_tune(tree(3, 100), tree(3, 0), names=names, stored_names=(BACKGROUND, "c", "d"), source="w")
    np.testing.assert_array_equal(taken["params"]["box_head"]["logits"]["bias"], [0, 101, 102])
    assert "classes that start anew, by name: a, b" in lines


def test_boxes_of_all_classes_together_are_taken_as_they_are():
    names, other = (BACKGROUND, "a", "b"), (BACKGROUND, "b")
    taken, _ = fine_tune(tree(3, 100, boxes=1), tree(2, 0, boxes=1), names=names, stored_names=other, source="w")
    np.testing.assert_array_equal(taken["params"]["box_head"]["deltas"]["bias"], [0] * 4)
    np.testing.assert_array_equal(taken["params"]["box_head"]["logits"]["bias"], [0, 101, 1])
    # From boxes by class to one for all, or back, they start anew.
    taken, lines = fine_tune(tree(3, 100, boxes=1), tree(2, 0), names=names, stored_names=other, source="w")
    assert lines[0] == "params/box_head/deltas: starts anew, since one row is for all classes in one of both runs"
    assert lines[1] == "classes taken over, by name: b"
    np.testing.assert_array_equal(taken["params"]["box_head"]["deltas"]["bias"], [100] * 4)
    names_of_four = (*names, "c")  # four boxes' numbers are no rows of four classes
    taken, _ = fine_tune(tree(4, 100, boxes=1), tree(2, 0), names=names_of_four, stored_names=other, source="w")
    np.testing.assert_array_equal(taken["params"]["box_head"]["deltas"]["bias"], [100] * 4)
    taken, _ = fine_tune(tree(3, 100), tree(2, 0, boxes=1), names=names, stored_names=other, source="w")
    np.testing.assert_array_equal(taken["params"]["box_head"]["deltas"]["bias"], np.repeat([100, 101, 102], 4))
    taken, lines = fine_tune(tree(3, 100), tree(2, 0, boxes=1), names=names, stored_names=("", "c"), source="w")
    np.testing.assert_array_equal(taken["params"]["box_head"]["deltas"]["bias"], np.repeat([100, 101, 102], 4))
    assert lines[0].startswith("params/box_head/deltas: starts anew")


def test_a_file_without_names_says_so():
    taken, lines = fine_tune(tree(2, 100), tree(3, 0), names=(BACKGROUND, "a"), stored_names=(), source="w")
    np.testing.assert_array_equal(taken["params"]["box_head"]["logits"]["bias"], [0, 101])
    assert "does not name its classes" in lines[0] and lines[1] == "classes that start anew, by name: a"


def test_another_network_is_refused():
    names = (BACKGROUND, "a")
    with pytest.raises(
        UserError, match=r"init\.checkpoint=w is of another network: params/neck/kernel is absent there"
    ):
        other = tree(2, 0)
        del other["params"]["neck"]
        fine_tune(tree(2, 100), other, names=names, stored_names=names, source="w")


@pytest.mark.parametrize(
    "ours, theirs, rows",
    [
        (["traffic light"], ["Traffic_Light "], {1: 1}),
        (["a"], ["A", "a"], {1: 2}),  # exact before loose
        (["a"], ["A", "A"], {}),  # which one?
        (["A", "a"], ["a"], {2: 1}),
        (["__background__"], ["x"], {}),
        (["ab"], ["a b"], {}),
    ],
)
def test_names_match_without_case_and_blanks_where_that_is_unique(ours, theirs, rows):
    assert match([BACKGROUND, *ours], [BACKGROUND, *theirs]) == {0: 0} | rows


def with_masks(tree, masks):
    """Variables with a mask head of `masks` rows, of which each holds its number."""
    rows = np.arange(masks, dtype=np.float32) + tree["params"]["neck"]["kernel"][0, 0]
    head = {"logits": {"kernel": np.tile(rows[:, None, None, None], (1, 1, 1, 2)), "bias": rows}}
    return {"params": tree["params"] | {"mask_head": head}}


def test_masks_follow_the_names_as_scores_do():
    names, stored = (BACKGROUND, "dog", "bird"), (BACKGROUND, "cat", "dog", "cow")
    options = {"names": names, "stored_names": stored, "source": "w"}
    taken, _ = fine_tune(with_masks(tree(3, 100), 3), with_masks(tree(4, 0), 4), **options)
    head = taken["params"]["mask_head"]["logits"]
    np.testing.assert_array_equal(head["bias"], [0, 2, 102])
    np.testing.assert_array_equal(head["kernel"], np.tile(np.reshape([0, 2, 102], (3, 1, 1, 1)), (1, 1, 1, 2)))
    # One mask for all classes is taken as it is; it has nothing to give to masks by class.
    for ours, theirs, wanted in ((1, 1, [0]), (3, 1, [100, 101, 102]), (1, 4, [100])):
        taken, _ = fine_tune(with_masks(tree(3, 100), ours), with_masks(tree(4, 0), theirs), **options)
        np.testing.assert_array_equal(taken["params"]["mask_head"]["logits"]["bias"], wanted)


def test_a_head_that_only_one_of_both_has_starts_anew_or_is_left_out():
    """A mask detector from a box detector's weights, and the other way round."""
    names = (BACKGROUND, "dog", "bird")
    options = {"names": names, "stored_names": names, "source": "w"}
    ours = with_masks(tree(3, 100), 3)
    taken, lines = fine_tune(ours, tree(3, 0), **options)
    np.testing.assert_array_equal(taken["params"]["mask_head"]["logits"]["bias"], [100, 101, 102])
    np.testing.assert_array_equal(taken["params"]["neck"]["kernel"], tree(3, 0)["params"]["neck"]["kernel"])
    assert "mask_head: starts anew, the other run has none" in lines
    taken, lines = fine_tune(tree(3, 100), with_masks(tree(3, 0), 3), **options)
    assert taken["params"].keys() == tree(3, 0)["params"].keys()
    assert "mask_head: not used, this network has none" in lines


def test_the_statistics_of_a_head_go_with_its_parameters():
    """Batch norm's, of a mask head that only one of both has."""
    names = (BACKGROUND, "dog", "bird")
    options = {"names": names, "stored_names": names, "source": "w"}
    normed = with_masks(tree(3, 100), 3) | {"batch_stats": {"mask_head": {"mean": np.full(2, 7.0, np.float32)}}}
    taken, lines = fine_tune(normed, tree(3, 0), **options)
    np.testing.assert_array_equal(taken["batch_stats"]["mask_head"]["mean"], [7, 7])
    assert "mask_head: starts anew, the other run has none" in lines
    taken, lines = fine_tune(tree(3, 100), normed, **options)
    assert "batch_stats" not in taken and "mask_head: not used, this network has none" in lines
