import pytest

from diou_jax.data.split_names import split_of_image, split_of_json


@pytest.mark.parametrize(
    "path, split",
    [
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("annotations/instances_default.json", "all"),
        ("trainval.json", "all"),
        ("train_val.json", "all"),
        ("training/contest.json", "train"),
        ("Validation/x.json", "val"),
        ("testing/x.json", "test"),
    ],
)
def test_the_split_of_a_json_is_a_word_of_its_name(tmp_path, path, split):
    assert split_of_json(tmp_path / path, tmp_path) == split


@pytest.mark.parametrize(
    "path, split",
    [
        ("images/train/a.jpg", "train"),
        ("Valid/images/a.jpg", "val"),
        ("images/testing/a.jpg", "test"),
        ("images/val/train/a.jpg", "val"),
        ("images/train2017/a.jpg", "train"),
        ("images/val_2014/a.jpg", "val"),
        ("images/train engine/a.jpg", "all"),
        ("images/train2/a.jpg", "all"),
        ("train.jpg", "all"),
    ],
)
def test_the_split_of_an_image_is_the_name_of_a_folder(tmp_path, path, split):
    assert split_of_image(tmp_path / "test" / path, tmp_path / "test") == split
