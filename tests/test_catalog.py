import json

import pytest

from diou_jax.data import catalog
from diou_jax.errors import UserError


def write(root, split, ids, images=None, categories=("cat",)):
    (root / "annotations").mkdir(exist_ok=True)
    (root / (images or f"images/{split}")).mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in ids],
        "annotations": [],
        "categories": [{"id": 1 + number, "name": name} for number, name in enumerate(categories)],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name, split, images",
    [
        ("coco_2017_train", "train2017", "train2017"),
        ("coco_2017_val", "val2017", "val2017"),
        ("coco_2014_train", "train2014", "train2014"),
        ("coco_2014_val", "val2014", "val2014"),
        ("coco_2014_minival", "minival2014", "val2014"),
        ("coco_2014_valminusminival", "valminusminival2014", "val2014"),
        ("coco_2014_test", "image_info_test2014", "test2014"),
        ("coco_2015_test", "image_info_test2015", "test2015"),
        ("coco_2015_test-dev", "image_info_test-dev2015", "test2015"),
        ("coco_2017_test", "image_info_test2017", "test2017"),
        ("coco_2017_test-dev", "image_info_test-dev2017", "test2017"),
        ("cells", "cells", "cells"),
    ],
)
@pytest.mark.parametrize("folder", ["images/", ""])
def test_names_lead_to_detectrons_layout(tmp_path, name, split, images, folder):
    write(tmp_path, split, [3], images=folder + images)
    file = tmp_path / "annotations" / f"instances_{split}.json"
    file = file.rename(file.with_name(f"{split}.json")) if split.startswith("image_info") else file
    dataset = catalog.load([name], tmp_path)
    assert dataset.name == name
    assert dataset.annotation_files == (str(file),)
    assert dataset.image_name(0) == str(tmp_path / folder / images / "3.jpg")


def test_several_are_read_as_one(tmp_path):
    write(tmp_path, "train2014", [5, 1])
    write(tmp_path, "valminusminival2014", [2], images="images/val2014")
    dataset = catalog.load(["coco_2014_train", "coco_2014_valminusminival"], tmp_path)
    assert dataset.records.image_ids.tolist() == [1, 5, 2]
    assert dataset.image_name(2) == str(tmp_path / "images" / "val2014" / "2.jpg")


def test_classes_must_agree(tmp_path):
    write(tmp_path, "a", [1])
    write(tmp_path, "b", [2], categories=("dog",))
    with pytest.raises(UserError, match="a and b cannot be read as one"):
        catalog.load(["a", "b"], tmp_path)


def test_missing_coco_says_what_to_download_and_what_runs_without(tmp_path):
    with pytest.raises(UserError) as error:
        catalog.load(["coco_2017_train"], tmp_path / "coco")
    message = str(error.value)
    for part in ("instances_train2017.json does not exist", "train2017.zip", "cocodataset.org", "configs/shapes.py"):
        assert part in message
    assert "\n" not in message


def test_missing_images_are_told_from_missing_annotations(tmp_path):
    write(tmp_path, "cells", [1])
    (tmp_path / "images" / "cells").rmdir()
    with pytest.raises(UserError, match=r"images/cells does not exist"):
        catalog.load(["cells"], tmp_path)


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    write(tmp_path, "train", [1])
    write(tmp_path, "val", [1])
    with pytest.raises(UserError, match="it has annotations of train, val"):
        catalog.load(["vla"], tmp_path)


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".", "a b"])
def test_a_name_is_not_a_path(tmp_path, name):
    with pytest.raises(UserError, match="a name of letters"):
        catalog.load([name], tmp_path)


@pytest.mark.parametrize("names", ["coco_2017_train", ()])
def test_names_come_as_a_tuple(tmp_path, names):
    with pytest.raises(UserError, match="a tuple of one or more names"):
        catalog.load(names, tmp_path)


def test_a_root_with_a_name_too_long_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"instances_cells\.json does not exist: .* set data\.root"):
        catalog.load(["cells"], tmp_path / ("x" * 300))
