"""Own data is found whoever exported it, and a choice between files is an error that lists them."""

import json
import pathlib
import random
from collections import Counter

import numpy as np
import pytest

from diou_jax.configs import own
from diou_jax.data import annotations, catalog
from diou_jax.data.layouts import find
from diou_jax.errors import UserError
from diou_jax.options import build


def write(file, names, boxes=1):
    """A json of images 6 by 4."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name, "height": 4, "width": 6} for i, name in enumerate(names, start=1)]
    annotations = [
        {"id": number, "image_id": image["id"], "category_id": 1, "bbox": [0, 0, 3, 3]}
        for number, image in enumerate(images * boxes, start=1)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    file.write_text(json.dumps(content))


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"image")


LAYOUTS = {
    "ours": {
        "train": ("annotations/instances_train.json", "a.jpg", "images/train/a.jpg"),
        "val": ("annotations/instances_val.json", "b.jpg", "images/val/b.jpg"),
    },
    "coco": {
        "train": ("annotations/instances_train2017.json", "a.jpg", "train2017/a.jpg"),
        "val": ("annotations/instances_val2017.json", "b.jpg", "val2017/b.jpg"),
    },
    "flat images": {
        "train": ("annotations/instances_train.json", "a.jpg", "images/a.jpg"),
        "val": ("annotations/instances_val.json", "b.jpg", "images/b.jpg"),
    },
    "roboflow": {
        "train": ("train/_annotations.coco.json", "a.jpg", "train/a.jpg"),
        "val": ("valid/_annotations.coco.json", "b.jpg", "valid/b.jpg"),
        "test": ("test/_annotations.coco.json", "c.jpg", "test/c.jpg"),
    },
    "unpacked one folder deeper": {
        "train": ("my export/train/_annotations.coco.json", "a.jpg", "my export/train/a.jpg"),
        "val": ("my export/valid/_annotations.coco.json", "b.jpg", "my export/valid/b.jpg"),
    },
    "folders in the names": {
        "train": ("annotations/instances_train.json", "train/x/a.jpg", "images/train/x/a.jpg"),
        "val": ("annotations/instances_val.json", "images/b.jpg", "images/b.jpg"),
    },
    "files by split": {
        "train": ("train.json", "a.jpg", "photos/a.jpg"),
        "val": ("my_validation.json", "b.jpg", "photos/b.jpg"),
    },
    "same names in both": {
        "train": ("annotations/instances_train.json", "1.jpg", "train/1.jpg"),
        "val": ("annotations/instances_val.json", "1.jpg", "val/1.jpg"),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_with_splits(tmp_path, layout):
    for file, name, path in LAYOUTS[layout].values():
        write(tmp_path / file, [name])
        touch(tmp_path, path)
    # Files beside COCO's boxes are not taken for boxes.
    write(tmp_path / "annotations" / "captions_train2017.json", ["x.jpg"])
    found = find(tmp_path)
    assert found.parts.keys() == LAYOUTS[layout].keys()
    for split, (file, _, path) in LAYOUTS[layout].items():
        assert found.parts[split].annotations == str(tmp_path / file)
        assert any(line.startswith(f"{split}: {tmp_path / file}") for line in found.lines)
        data = catalog.load([split], tmp_path, layout=found)
        assert data.image_name(0) == str(tmp_path / path) and data.name == split


ONE_JSON = {
    "cvat": ("annotations/instances_default.json", "images/default/"),
    "cvat, flat": ("annotations/instances_default.json", "images/"),
    "label studio": ("result.json", "images/"),
    "beside its images": ("annotations.json", ""),
    "fiftyone": ("labels.json", "data/"),
    "train only": ("train/_annotations.coco.json", "train/"),
}


@pytest.mark.parametrize("layout", ONE_JSON)
def test_one_json_is_divided(tmp_path, layout):
    file, folder = ONE_JSON[layout]
    names = [f"{i}.jpg" for i in range(20)]
    write(tmp_path / file, names)
    touch(tmp_path, *(folder + name for name in names))
    (tmp_path / "notes.json").write_text("{}")
    found = find(tmp_path)
    train, val = (catalog.load([split], tmp_path, layout=found, split_seed=0) for split in ("train", "val"))
    assert len(train) == 16 and len(val) == 4
    ids = [data.records.image_ids.tolist() for data in (train, val)]
    assert sorted(ids[0] + ids[1]) == list(range(1, 21))
    assert all(data.read(0) == b"image" for data in (train, val))
    assert all("a share of" in line for line in found.lines)


def test_masks_stay_with_their_images_when_one_json_is_divided(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    write(tmp_path / "all.json", names, boxes=2)
    touch(tmp_path, *names)
    content = json.loads((tmp_path / "all.json").read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = [[0, 0, 3, 3, entry["image_id"] / 8, entry["id"] / 64]]
    (tmp_path / "all.json").write_text(json.dumps(content))
    seen = set()
    for split in ("train", "val"):
        records = catalog.load([split], tmp_path, layout=find(tmp_path), masks=True).records
        for row, image_id in enumerate(records.image_ids.tolist()):
            outlines = records.outlines_of(row)
            marks = [outlines.of(number)[0][2].tolist() for number in range(len(outlines))]
            assert [x for x, _ in marks] == [image_id / 8] * 2
            seen.update(y for _, y in marks)
    assert len(seen) == 40


def test_the_division_depends_on_names_and_seed_alone(tmp_path):
    names = [f"{i}.jpg" for i in range(30)]
    parts = []
    for number, (order, seed) in enumerate([(0, 0), (1, 0), (0, 1)]):
        root = tmp_path / str(number)
        shuffled = random.Random(order).sample(names, len(names))
        write(root / "all.json", shuffled)
        touch(root, *names)
        data = catalog.load(["val"], root, layout=find(root), split_seed=seed)
        parts.append({data.image_name(row).rsplit("/", 1)[1] for row in range(len(data))})
    assert parts[0] == parts[1] != parts[2] and len(parts[2]) == 6


@pytest.mark.parametrize("count, share", [(2, 0.2), (2, 0.99), (3, 0.01), (5, 0.2)])
def test_both_parts_have_images(tmp_path, count, share):
    write(tmp_path / "all.json", [f"{i}.jpg" for i in range(count)], boxes=2)
    touch(tmp_path, *(f"{i}.jpg" for i in range(count)))
    for split in ("train", "val"):
        data = catalog.load([split], tmp_path, layout=find(tmp_path), val_share=share)
        assert len(data) and np.diff(data.records.offsets).tolist() == [2] * len(data)


def test_one_image_or_no_share_cannot_be_divided(tmp_path):
    write(tmp_path / "all.json", ["a.jpg"])
    touch(tmp_path, "a.jpg")
    with pytest.raises(UserError, match="has one image"):
        catalog.load(["train"], tmp_path, layout=find(tmp_path))
    with pytest.raises(UserError, match=r"data\.val_share=1\.0"):
        catalog.load(["train"], tmp_path, layout=find(tmp_path), val_share=1.0)


def test_a_test_set_validates_where_there_is_no_other(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split / "_annotations.coco.json", ["a.jpg"])
        touch(tmp_path, f"{split}/a.jpg")
    found = find(tmp_path)
    assert found.parts["val"].annotations == str(tmp_path / "test" / "_annotations.coco.json")
    assert any("test set takes its place" in line for line in found.lines)


def test_pairs_by_option(tmp_path):
    write(tmp_path / "x" / "mine.json", ["a.jpg"])
    write(tmp_path / "x" / "yours.json", ["a.jpg"])
    write(tmp_path / "x" / "theirs.json", ["a.jpg"])
    touch(tmp_path, "p/a.jpg", "q/a.jpg")
    with pytest.raises(UserError, match=r"3 annotation files for all images: .*mine\.json.*yours\.json"):
        find(tmp_path)
    config = own.get_config()
    config.data.root = str(tmp_path)
    config.data.train_annotations, config.data.train_images = str(tmp_path / "x/mine.json"), str(tmp_path / "p")
    config.data.val_annotations, config.data.val_images = str(tmp_path / "x/yours.json"), str(tmp_path / "q")
    config.train.gt_min_area = -1.0
    assert build.dataset(config, ("train",)).image_name(0) == str(tmp_path / "p" / "a.jpg")
    assert build.dataset(config, ("val",)).image_name(0) == str(tmp_path / "q" / "a.jpg")
    with pytest.raises(UserError, match="'vla': there are train, val"):
        build.dataset(config, ("vla",))
    config.data.val_images = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.val_images: .*nowhere does not exist"):
        build.dataset(config, ("val",))


def test_images_that_are_found_twice_are_ambiguous(tmp_path):
    write(tmp_path / "all.json", ["a.jpg"])
    touch(tmp_path, "one/a.jpg", "two/a.jpg")
    with pytest.raises(UserError, match=r"in several folders: .*one, .*two; say which with data\.train_images"):
        find(tmp_path)


def test_two_years_are_ambiguous(tmp_path):
    for year in (2014, 2017):
        write(tmp_path / "annotations" / f"instances_train{year}.json", ["a.jpg"])
    with pytest.raises(UserError, match=r"2 annotation files for train: .*train2014\.json, .*train2017\.json"):
        find(tmp_path)


@pytest.mark.parametrize(
    "files, match",
    [
        ({}, r"holds no annotation file \(\*\.json\)"),
        ({"a.json": "{}"}, r"holds no COCO annotation file: .*a\.json"),
        ({"Annotations/a.xml": "<annotation></annotation>"}, r"Pascal VOC annotations .*diou_jax\.data\.convert"),
        ({"labels/a.txt": "0 0.5 0.5 1 1"}, r"YOLO annotations .*diou_jax\.data\.convert"),
        ({"data.yaml": "names: [a]"}, r"YOLO annotations .*diou_jax\.data\.convert"),
        ({"README.txt": "0 of the 5 boxes are here"}, "holds no annotation file"),
    ],
)
def test_folders_without_coco_json(tmp_path, files, match):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=match) as error:
        find(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_folder_training_set_and_images(tmp_path):
    with pytest.raises(UserError, match=r"data\.root: .*nowhere is no folder"):
        find(tmp_path / "nowhere")
    write(tmp_path / "val.json", ["a.jpg"])
    with pytest.raises(UserError, match=r"no training set beside .*val\.json"):
        find(tmp_path)
    write(tmp_path / "train.json", ["b.jpg"])
    touch(tmp_path, "a.jpg")
    with pytest.raises(UserError, match=r"train\.json: its images, such as b\.jpg, are not below"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["val.json", "test_config.json", "train.json", "train/log.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"images": "photos", "lr": 0.1}', '{"epoch": 1}\n{"epoch": 2}\n'])
def test_an_unrelated_json_whose_name_has_a_split_is_passed_by_with_a_word(tmp_path, name, content):
    write(tmp_path / "annotations.json", ["a.jpg", "b.jpg"])
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    found = find(tmp_path)
    assert {part.annotations for part in found.parts.values()} == {str(tmp_path / "annotations.json")}
    (line,) = [line for line in found.lines if line.startswith("not read: ")]
    assert line.startswith(f"not read: {tmp_path / name}: ")


def test_many_unrelated_files_are_one_line(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / split / "_annotations.coco.json", ["a.jpg"])
        touch(tmp_path, f"{split}/a.jpg")
    for number in range(5):
        (tmp_path / "train" / f"{number}.json").write_text('{"shapes": [], "imagePath": "a.jpg"}')
    found = find(tmp_path)
    assert found.parts["train"].annotations.endswith("train/_annotations.coco.json")
    (line,) = [line for line in found.lines if line.startswith("not read: ")]
    assert "train/0.json: " in line and line.endswith("; nor are 4 other files whose names say train")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_damaged_annotation_file_is_not_passed_by(tmp_path, split, encoding):
    for name in ("train", "val"):
        write(tmp_path / f"{name}.json", ["a.jpg"])
    touch(tmp_path, "a.jpg")
    file = tmp_path / f"{split}.json"
    file.write_text(file.read_text()[:-20], encoding=encoding)
    with pytest.raises(UserError, match=rf"{split}\.json: not a json file .*data\.{split}_annotations"):
        find(tmp_path)


def test_where_nothing_is_left_the_files_and_the_option_are_named(tmp_path):
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(UserError, match=r"train\.json have no images and categories; data\.train_annotations names"):
        find(tmp_path)
    write(tmp_path / "val.json", ["a.jpg"])
    touch(tmp_path, "a.jpg")
    with pytest.raises(UserError, match=r"data\.train_annotations names its json; not read: .*train\.json: not a COCO"):
        find(tmp_path)


def test_a_json_beside_yolos_labels_does_not_hide_them(tmp_path):
    touch(tmp_path, "images/a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UserError, match=r"YOLO annotations .*diou_jax\.data\.convert"):
        find(tmp_path)


@pytest.mark.parametrize(
    "name, mend",
    [
        ("photos\\a.jpg", "write / in file_name"),
        ("photos/A.jpg", "photos/a.jpg, but upper and lower case count"),
        ("a.JPG", "photos/a.jpg, but upper and lower case count"),
        ("x" * 300, "data.train_images names their folder"),
    ],
)
def test_images_that_are_not_found_are_explained(tmp_path, name, mend):
    write(tmp_path / "all.json", [name])
    touch(tmp_path, "photos/a.jpg")
    with pytest.raises(UserError) as error:
        find(tmp_path)
    assert mend in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/all.json: its images, such as {name}, are not below")


def test_a_root_with_a_name_too_long_is_no_folder(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        find(tmp_path / ("x" * 300))


def test_links_that_lead_back_are_passed_by(tmp_path):
    write(tmp_path / "export" / "all.json", ["a.jpg"])
    touch(tmp_path, "photos/a.jpg")
    (tmp_path / "export" / "here").symlink_to(".")
    (tmp_path / "export" / "up").symlink_to(tmp_path)
    (tmp_path / "export" / "images").symlink_to(tmp_path / "photos")
    assert find(tmp_path).parts["train"].images == str(tmp_path / "export" / "images")


def test_links_to_themselves_are_passed_by(tmp_path):
    write(tmp_path / "all.json", ["a.jpg"])
    touch(tmp_path, "images/a.jpg")
    for name in ("loop", "loop.json"):
        (tmp_path / name).symlink_to(name)
    assert find(tmp_path).parts["train"].images == str(tmp_path / "images")


def test_a_json_is_read_once_to_find_it_and_once_for_each_data_set(tmp_path, monkeypatch):
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", ["a.jpg"])
    touch(tmp_path, "a.jpg")
    read, counts = annotations.read_json, Counter()

    def counting(file):
        counts[pathlib.Path(file).name] += 1
        return read(file)

    monkeypatch.setattr(annotations, "read_json", counting)
    config = own.get_config()
    config.data.root, config.train.gt_min_area = str(tmp_path), -1.0
    for split in ("train", "val"):
        build.dataset(config, (split,), masks=False)
    assert counts == {"train.json": 2, "val.json": 2}
    write(tmp_path / "train.json", ["longer.jpg"])
    with pytest.raises(UserError, match=r"such as longer\.jpg"):
        build.dataset(config, ("train",), masks=False)
