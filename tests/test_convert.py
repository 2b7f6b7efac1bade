"""Pascal VOC and YOLO folders become COCO json; hand-made cases whose boxes are known."""

import json
import sys

import cv2
import numpy as np
import pytest

from diou_jax.data import convert
from diou_jax.data.catalog import load
from diou_jax.data.layouts import find
from diou_jax.errors import UserError

pytest.importorskip("globox", reason="globox is not installed: pip install -e '.[convert]'")

VOC = """<annotation><folder>x</folder><filename>{name}</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>
<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def image(path, width=40, height=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def xml(path, name, *objects, width=40, height=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(OBJECT.format(*box, name=label, difficult=hard) for label, hard, box in objects)
    path.write_text(VOC.format(name=name, width=width, height=height, objects=objects))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(file):
    content = json.loads(file.read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    files = {entry["id"]: entry["file_name"] for entry in content["images"]}
    boxes = [(files[a["image_id"]], names[a["category_id"]], a["bbox"], a["iscrowd"]) for a in content["annotations"]]
    return sorted(files.values()), sorted(names.items()), boxes


def test_voc_with_image_sets(tmp_path):
    for name in ("a", "b", "c"):
        image(tmp_path / "JPEGImages" / f"{name}.jpg")
    # One based and inclusive: this box is the whole image.
    xml(tmp_path / "Annotations" / "a.xml", "a.jpg", ("dog", 0, (1, 1, 40, 20)), ("cat", 1, (3, 5, 10, 12)))
    xml(tmp_path / "Annotations" / "b.xml", "b.jpg", ("cat", 0, (2, 2, 2, 3)))
    xml(tmp_path / "Annotations" / "c.xml", "c.jpg")
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "a\nc\n")
    write(tmp_path / "ImageSets" / "Main" / "val.txt", "b\n")
    write(tmp_path / "ImageSets" / "Main" / "trainval.txt", "a\nb\nc\n")
    write(tmp_path / "ImageSets" / "Main" / "dog_train.txt", "a 1\nc -1\n")
    files, lines = convert.convert(tmp_path)
    assert [file.name for file in files] == ["instances_train.json", "instances_val.json"]
    names, classes, boxes = read(files[0])
    assert names == ["JPEGImages/a.jpg", "JPEGImages/c.jpg"] and classes == [(1, "cat"), (2, "dog")]
    assert boxes == [
        ("JPEGImages/a.jpg", "dog", [0, 0, 40, 20], 0),
        ("JPEGImages/a.jpg", "cat", [2, 4, 8, 8], 1),
    ]
    assert read(files[1])[2] == [("JPEGImages/b.jpg", "cat", [1, 1, 1, 2], 0)]
    assert "classes: cat, dog" in lines
    layout = find(tmp_path)
    assert layout.parts["train"].images == str(tmp_path)
    data = load(["train"], tmp_path, layout=layout)
    assert data.read(0) and data.records.boxes[0].tolist() == [0, 0, 39, 19]
    with pytest.raises(UserError, match="exists already"):
        convert.convert(tmp_path)


def test_voc_beside_its_images_by_folder_and_sizes_from_headers(tmp_path):
    for split in ("train", "valid"):
        image(tmp_path / split / "1.png", width=30, height=50)
        xml(tmp_path / split / "1.xml", "other.png", ("cell", 0, (0, 0, 4, 4)))
    files, lines = convert.convert(tmp_path, origin=0)
    assert [file.name for file in files] == ["instances_train.json", "instances_val.json"]
    content = json.loads(files[1].read_text())
    assert content["images"] == [{"id": 1, "file_name": "valid/1.png", "width": 30, "height": 50}]
    assert content["annotations"][0]["bbox"] == [0, 0, 5, 5]
    _, lines = convert.convert(tmp_path, tmp_path / "other")
    assert any("2 boxes that begin before pixel 1" in line for line in lines)


def test_yolo_with_data_yaml(tmp_path):
    for split, name in (("train", "a"), ("train", "empty"), ("valid", "b")):
        image(tmp_path / split / "images" / f"{name}.jpg")
    write(tmp_path / "train" / "labels" / "a.txt", "1 0.5 0.5 1 1\n0 0.25 0.5 0.1 0.2\n")
    write(tmp_path / "valid" / "labels" / "b.txt", "0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    write(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 3\nnames: [ant, bee, fly]\n")
    files, lines = convert.convert(tmp_path)
    names, classes, boxes = read(files[0])
    assert names == ["train/images/a.jpg", "train/images/empty.jpg"]
    assert classes == [(1, "ant"), (2, "bee"), (3, "fly")]
    assert boxes == [
        ("train/images/a.jpg", "bee", [0, 0, 40, 20], 0),
        ("train/images/a.jpg", "ant", [8, 8, 4, 4], 0),
    ]
    assert read(files[1])[2] == [("valid/images/b.jpg", "ant", [0, 0, 20, 10], 0)]
    assert "1 images without a text file, taken as empty" in lines


def test_yolo_with_a_path_and_named_numbers(tmp_path):
    image(tmp_path / "images" / "train" / "a.jpg")
    write(tmp_path / "labels" / "train" / "a.txt", "7 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "data.yaml", f"path: {tmp_path}\ntrain: images/train\nnames:\n  7: ant\n")
    files, _ = convert.convert(tmp_path)
    assert [file.name for file in files] == ["instances_train.json"]
    assert read(files[0])[2] == [("images/train/a.jpg", "ant", [10, 5, 20, 10], 0)]


def test_yolo_with_classes_txt_and_all_in_one_folder(tmp_path):
    image(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "0 0.5 0.5 0.5 0.5\n\n")
    write(tmp_path / "classes.txt", "ant\nbee\n")
    files, _ = convert.convert(tmp_path)
    assert [file.name for file in files] == ["instances_all.json"]
    assert read(files[0])[1:] == ([(1, "ant"), (2, "bee")], [("a.jpg", "ant", [10, 5, 20, 10], 0)])


@pytest.mark.parametrize(
    "files, match",
    [
        ({"a.txt": "0 0.5 0.5 0.5 0.5"}, "names of the classes are missing"),
        ({"a.txt": "3 0.5 0.5 0.5 0.5", "classes.txt": "ant"}, "a.txt, line 1: class 3 has no name"),
        ({"a.txt": "0 0.5 0.5", "classes.txt": "ant"}, "a.txt, line 1: not a class number with a box"),
        ({"a.txt": "0 0.5 0.5 0.5 x", "classes.txt": "ant"}, "a.txt, line 1: not a class number with a box"),
        ({"a.txt": "0 0.5 0.5 0.5 0.5", "data.yaml": "names: ["}, "data.yaml: not a yaml file"),
        ({"a.txt": "0 0.5 0.5 0.5 0.5", "data.yaml": "names: [a]\ntrain: /nowhere"}, "/nowhere is neither"),
        ({"a.xml": "<annotation><object>"}, "a.xml: not an xml file"),
        ({"a.xml": "<annotation><object></object></annotation>"}, "a.xml: object 1 has no name and box"),
        ({"b.xml": "<annotation></annotation>"}, "no image of the 1 xml files"),
        ({}, "holds neither Pascal VOC's xml files nor YOLO's"),
    ],
)
def test_bad_input_is_one_line(tmp_path, files, match):
    image(tmp_path / "a.jpg")
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(UserError, match=match) as error:
        convert.convert(tmp_path)
    assert "\n" not in str(error.value)


def test_without_globox_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "globox", None)
    with pytest.raises(SystemExit) as error:
        convert.main([str(tmp_path)])
    assert error.value.code == 2 and ".[convert]" in capsys.readouterr().err


def test_the_command_says_what_comes_next(tmp_path, capsys):
    image(tmp_path / "data" / "a.jpg")
    write(tmp_path / "data" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "data" / "classes.txt", "ant\n")
    convert.main([str(tmp_path / "data"), "--output", str(tmp_path / "json")])
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"--config.data.train_annotations={tmp_path}/json/instances_all.json" in last
