"""Records that COCOeval would take without a word, or stumble over, are named."""

import json

import pytest

from diou_jax.errors import UserError
from diou_jax.evaluation import coco_results
from diou_jax.evaluation.results_file import read_results

BOX = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "score": 0.9}
MASK = {"image_id": 1, "category_id": 1, "segmentation": {"size": [2, 3], "counts": "123"}, "score": 0.9}


def read(tmp_path, text, kind="bbox"):
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    return read_results(tmp_path / "results.json", kind, sizes={1: (2, 3), "2": (4, 4)})


def refusal(*args):
    with pytest.raises(UserError) as error:
        read(*args)
    message = str(error.value)
    assert message.startswith("it is no file of COCO results (") and message.endswith("; evaluate the run again")
    return message


def test_what_an_evaluation_writes_is_read(tmp_path):
    ids = ("a", 7)
    results = [BOX | {"image_id": image_id, "bbox": [0.5, -1.0, 2.5, 0.0]} for image_id in ids]
    coco_results.write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json", "bbox") == results[::-1]
    assert read(tmp_path, "[]") == read(tmp_path, "\ufeff[]") == [], "with a byte order mark, as of annotation files"
    assert read(tmp_path, json.dumps([MASK]), "segm") == [MASK]
    assert read(tmp_path, json.dumps([MASK | {"image_id": 99}]), "segm")  # the scoring names unknown images


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4, 5], None, "1234", ["1", "2", "3", "4"], [1, 2, True, 4]])
def test_a_box_is_four_numbers(tmp_path, box):
    assert "record 2: its bbox is " in refusal(tmp_path, json.dumps([BOX, BOX | {"bbox": box}]))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 400])
def test_numbers_are_finite(tmp_path, number):
    text = json.dumps([BOX | {"bbox": [1, 2, 30, "X"]}]).replace('"X"', number)
    assert "four finite numbers" in refusal(tmp_path, text)
    text = json.dumps([BOX | {"score": "X"}]).replace('"X"', number)
    assert "record 1: its score is " in refusal(tmp_path, text)


@pytest.mark.parametrize("change", [{"score": None}, {"score": "0.9"}, {"image_id": [1]}, {"category_id": None}])
def test_other_fields_have_their_types(tmp_path, change):
    (name,) = change
    assert f"record 1: its {name} is " in refusal(tmp_path, json.dumps([BOX | change]))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (None, "its segmentation is None"),
        ("x", "its segmentation is 'x'"),
        ([[1, 2, 3, 4, 5, 6]], "not an object of size and compressed counts"),
        ({"size": [2, 3], "counts": [0, 6]}, "not an object of size and compressed counts"),
        ({"counts": "123"}, "the size of its segmentation is None"),
        ({"size": [2, 3.0], "counts": "123"}, "not height and width"),
        ({"size": [3, 2], "counts": "123"}, "of 3 rows and 2 columns, its image of 2 and 3"),
        ({"size": [2, 3], "counts": ""}, "no run lengths: it is empty"),
        ({"size": [2, 3], "counts": "o"}, "no run lengths: it breaks off"),
        ({"size": [2, 3], "counts": "ä"}, "no run lengths"),
        ({"size": [2, 3], "counts": "12"}, "have 3 pixels, its size 6"),
    ],
)
def test_a_mask_is_one_of_its_image(tmp_path, mask, words):
    assert words in refusal(tmp_path, json.dumps([MASK | {"segmentation": mask}]), "segm")


@pytest.mark.parametrize("text", ["", "{", "3", "null", '"abc"', "{}", '{"a": 1}', "[1]", "[" * 100_000])
def test_anything_else_is_no_results_file(tmp_path, text):
    refusal(tmp_path, text)


def test_a_file_must_be_text(tmp_path):
    (tmp_path / "results.json").write_bytes(b"\xff\xfe[]")
    with pytest.raises(UserError, match="it is no json"):
        read_results(tmp_path / "results.json", "bbox")
    with pytest.raises(UserError, match="it cannot be read: No such file"):
        read_results(tmp_path / "nothing.json", "bbox")
