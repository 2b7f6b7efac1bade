"""What training or an evaluation would refuse is a problem of the check; images of both are a note."""

import pytest
from test_evaluate import small_config, write_set

from diou_jax.command.check_data import check_data


@pytest.fixture
def check(tmp_path, capsys):
    """``check(edit, **options)`` checks a training set, which `edit` changes, and a test set: (clean, report)."""

    def run(edit=None, *, test="val", buckets=()):
        write_set(tmp_path, "train", edit=edit)
        write_set(tmp_path, "val")
        config = small_config(tmp_path, (test,))
        config.train.datasets, config.data.buckets = ("train",), buckets
        clean = check_data(config)
        return clean, capsys.readouterr().out

    return run


def test_sets_that_can_be_read_are_clean(check):
    clean, text = check()
    assert clean and "total: 0 problems, 0 notes, 8 images" in text


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda content: content.pop("annotations"), "has no list of 'annotations' to learn from"),
        (lambda content: content["annotations"].clear(), "none of its 4 images has a box"),
    ],
    ids=["no annotations", "no boxes"],
)
def test_a_set_with_nothing_to_learn_from_is_a_problem(check, edit, words):
    clean, text = check(edit)
    assert not clean
    train, val = text.split("val: 4 images")
    assert "problem: 1 data sets that training refuses" in train and words in train
    assert "problem" not in val.replace("1 problems", "") and "total: 1 problems" in val


def test_buckets_that_hold_no_image_are_a_problem_of_both(check):
    clean, text = check(buckets=((32, 32),))
    assert not clean and "total: 2 problems" in text
    for who in ("training", "an evaluation"):
        assert f"problem: 1 data sets that {who} refuses" in text
    assert text.count("data.buckets") >= 2


def test_a_set_that_cannot_be_loaded_is_named_once(check):
    clean, text = check(lambda content: content["images"].clear())
    assert not clean and "total: 1 problems" in text and "data sets that are refused" in text


def test_images_that_are_trained_on_and_tested_are_a_note(check):
    clean, text = check(test="train")
    assert clean and "note: 4 images that are trained on, too" in text and "train/0.png" in text
