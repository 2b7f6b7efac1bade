import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diou_jax.data import catalog, convert
from diou_jax.data import yolo as yolo_format
from diou_jax.data.check import check_dataset
from diou_jax.data.decoding import decode_upright
from diou_jax.errors import UserError

pytest.importorskip("globox", reason="the extra convert is not installed")


def picture(path, width, height, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (9, 120, 200)).save(path, **options)
    return path


def text(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def content(target, split):
    return json.loads((target / "annotations" / f"instances_{split}.json").read_text())


def boxes(target, split):
    """File name, category id, box and crowd flag of each annotation."""
    found = content(target, split)
    names = {image["id"]: image["file_name"] for image in found["images"]}
    return [(names[a["image_id"]], a["category_id"], a["bbox"], a["iscrowd"]) for a in found["annotations"]]


def error_of(source, target, **options):
    with pytest.raises(UserError) as error:
        convert.convert(source, target, **options)
    assert "\n" not in str(error.value)
    assert not list(pathlib.Path(target).rglob("*.json"))
    return str(error.value)


CORNERS = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def thing(name, xmin, ymin, xmax, ymax, extra="<difficult>0</difficult>"):
    return f"<object><name>{name}</name>{extra}{CORNERS.format(xmin, ymin, xmax, ymax)}</object>"


def xml(path, *objects, width=40, height=30, filename=""):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    name = filename or f"{path.stem}.jpg"
    return text(path, f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>")


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2007"
    for stem in ("000001", "000002", "000003"):
        picture(root / "JPEGImages" / f"{stem}.jpg", 40, 30)
    part = f"<part><name>head</name>{CORNERS.format(9, 9, 10, 10)}</part>"
    whole = thing("dog", 1, 1, 40, 30, "<difficult>0</difficult>" + part)
    xml(root / "Annotations" / "000001.xml", whole, thing("cat", 5, 6, 6, 8))
    xml(root / "Annotations" / "000002.xml", thing("cat", 11, 2, 20, 12, "<difficult>1</difficult>"))
    xml(root / "Annotations" / "000003.xml")
    text(root / "ImageSets" / "Main" / "train.txt", "000001\n000002\n")
    text(root / "ImageSets" / "Main" / "val.txt", "000003\n\n")
    text(root / "ImageSets" / "Main" / "trainval.txt", "000001\n000002\n000003\n")
    text(root / "ImageSets" / "Main" / "dog_train.txt", "000001  1\n000002 -1\n")
    text(root / "ImageSets" / "Segmentation" / "test.txt", "000003\n")
    return root


@pytest.fixture
def yolo(tmp_path):
    root = tmp_path / "cells"
    picture(root / "images" / "train" / "a.jpg", 100, 50)
    picture(root / "images" / "train" / "b.png", 64, 32)
    picture(root / "images" / "train" / "c.jpg", 10, 10)
    picture(root / "images" / "val" / "a.jpg", 20, 40)
    text(root / "labels" / "train" / "a.txt", "1 0.5 0.5 0.2 0.4\n0 0.05 0.1 0.1 0.2\n")
    text(root / "labels" / "train" / "b.txt", "\n")
    text(root / "labels" / "val" / "a.txt", "0 0.1 0.1 0.6 0.1 0.6 0.7 0.3 0.2\n")
    text(root / "data.yaml", "train: images/train\nval: images/val\ntest:\nnc: 2\nnames: [round, long]\n")
    return root


def test_voc_corners_are_inclusive_and_count_from_one(voc, tmp_path):
    convert.convert(voc, tmp_path / "out")
    found = content(tmp_path / "out", "train")
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert found["images"][0] == {"id": 1, "file_name": "000001.jpg", "width": 40, "height": 30}
    # The dog fills the image of 40 by 30 pixels, the cat has two columns and three rows.
    assert boxes(tmp_path / "out", "train") == [
        ("000001.jpg", 2, [0, 0, 40, 30], 0),
        ("000001.jpg", 1, [4, 5, 2, 3], 0),
        ("000002.jpg", 1, [10, 1, 10, 11], 1),
    ]
    assert [entry["area"] for entry in found["annotations"]] == [1200, 6, 110]
    assert [entry["id"] for entry in found["annotations"]] == [1, 2, 3]


def test_voc_splits_are_the_lists_of_main(voc, tmp_path):
    lines = convert.convert(voc, tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(path.name for path in (out / "annotations").iterdir()) == [
        f"instances_{split}.json" for split in ("train", "trainval", "val")
    ]
    assert [image["file_name"] for image in content(out, "val")["images"]] == ["000003.jpg"]
    assert content(out, "val")["categories"] == content(out, "train")["categories"]
    assert len(content(out, "trainval")["images"]) == 3
    assert lines[:2] == ["format: voc", "classes: cat, dog"]
    assert f"{out}/annotations/instances_train.json: 2 images, 3 boxes" in lines


def test_voc_loads(voc, tmp_path):
    convert.convert(voc, tmp_path / "out")
    dataset = catalog.load(("train",), tmp_path / "out")
    assert dataset.class_names[1:] == ("cat", "dog")
    assert dataset.records.image_ids.tolist() == [1, 2]
    # In the reader's corners, inclusive and counted from 0.
    assert dataset.records.boxes.tolist() == [[0, 0, 39, 29], [4, 5, 5, 7], [10, 1, 19, 11]]
    assert dataset.records.crowd.tolist() == [False, False, True]
    assert not dataset.faults.counts
    assert dataset.source.read(0) == (voc / "JPEGImages" / "000001.jpg").read_bytes()


def test_voc_without_lists_is_one_json(voc, tmp_path):
    for path in (voc / "ImageSets" / "Main").iterdir():
        path.unlink()
    picture(voc / "JPEGImages" / "000004.jpg", 4, 4)
    lines = convert.convert(voc, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "annotations").iterdir()] == ["instances_all.json"]
    assert len(catalog.load(("all",), tmp_path / "out").records.image_ids) == 3
    assert any(line.startswith("1 images without an xml file, left out") for line in lines)


def test_voc_beside_the_images_follows_the_folders(tmp_path):
    for split in ("train", "valid"):
        xml(tmp_path / "in" / split / "a.xml", thing("cat", 1, 1, 2, 2), filename="other.png")
        picture(tmp_path / "in" / split / "a.jpg", 40, 30)
    convert.convert(tmp_path / "in", tmp_path / "out")
    for split in ("train", "val"):
        assert boxes(tmp_path / "out", split) == [("a.jpg", 1, [0, 0, 2, 2], 0)]


def test_voc_in_utf_16_beside_the_images(tmp_path):
    picture(tmp_path / "in" / "a.jpg", 40, 30)
    path = xml(tmp_path / "in" / "a.xml", thing("cat", 1, 1, 2, 2), filename="a.jpg")
    path.write_text(f"<?xml version='1.0' encoding='utf-16'?>{path.read_text()}", encoding="utf-16")
    convert.convert(tmp_path / "in", tmp_path / "out")
    assert boxes(tmp_path / "out", "all") == [("a.jpg", 1, [0, 0, 2, 2], 0)]


def test_several_years_of_voc_keep_images_of_one_name_apart(tmp_path):
    for year, side in (("VOC2007", 40), ("VOC2012", 50)):
        picture(tmp_path / "in" / year / "JPEGImages" / "1.jpg", side, 30)
        xml(tmp_path / "in" / year / "Annotations" / "1.xml", thing("cat", 1, 1, 2, 2), width=side)
        text(tmp_path / "in" / year / "ImageSets" / "Main" / "train.txt", "1\n")
    convert.convert(tmp_path / "in", tmp_path / "out")
    found = content(tmp_path / "out", "train")["images"]
    assert [(image["file_name"], image["width"]) for image in found] == [
        ("VOC2007/JPEGImages/1.jpg", 40),
        ("VOC2012/JPEGImages/1.jpg", 50),
    ]
    assert catalog.load(("train",), tmp_path / "out").source.read(1)


def test_voc_sizes_are_the_files_own(voc, tmp_path):
    xml(voc / "Annotations" / "000003.xml", width=0, height=0)
    lines = convert.convert(voc, tmp_path / "out")
    assert content(tmp_path / "out", "val")["images"][0]["width"] == 40
    assert any(line.startswith("1 xml files with another size") and line.endswith("0x0") for line in lines)


def test_voc_boxes_before_the_first_pixel_are_told(voc, tmp_path):
    xml(voc / "Annotations" / "000003.xml", thing("cat", 0, 0, 9, 9))
    lines = convert.convert(voc, tmp_path / "out")
    assert boxes(tmp_path / "out", "val") == [("000003.jpg", 1, [-1, -1, 10, 10], 0)]
    assert any(line.startswith("1 boxes that begin before pixel 1") for line in lines)


@pytest.mark.parametrize(
    "objects",
    [
        ["<object><name>cat</name></object>"],
        ["<object><bndbox><xmin>1</xmin></bndbox></object>"],
        [thing("cat", "x", 1, 2, 2)],
        [thing("cat", "nan", 1, 2, 2)],
        [thing("cat", 1, 1, "inf", 2)],
        [thing("cat", 9, 1, 2, 2)],
        [thing(" ", 1, 1, 2, 2)],
    ],
)
def test_voc_objects_that_cannot_be_read_are_named(voc, tmp_path, objects):
    path = xml(voc / "Annotations" / "000003.xml", thing("cat", 1, 1, 2, 2), *objects)
    assert f"{path}: object 2 must have" in error_of(voc, tmp_path / "out")


@pytest.mark.parametrize("damaged", ["", "<annotation><object>", '<?xml version="1.0" encoding="none"?><annotation/>'])
@pytest.mark.parametrize("lists", [True, False])
def test_damaged_xml_files_are_named(voc, tmp_path, damaged, lists):
    path = text(voc / "Annotations" / "000003.xml", damaged)
    if not lists:
        for file in (voc / "ImageSets" / "Main").iterdir():
            file.unlink()
    assert f"{path}: not an xml file" in error_of(voc, tmp_path / "out")


def test_names_in_lists_that_lead_nowhere_are_named_with_their_line(voc, tmp_path):
    file = text(voc / "ImageSets" / "Main" / "val.txt", "000003\n000009\n")
    assert f"{file}, line 2: {voc}/Annotations/000009.xml does not exist" in error_of(voc, tmp_path / "out")


def test_xml_files_of_another_kind_are_named(voc, tmp_path):
    path = text(voc / "Annotations" / "000003.xml", "<html/>")
    assert f"{path}: its root is <html>" in error_of(voc, tmp_path / "out")


@pytest.mark.parametrize("folder", ["images", "Images"])
def test_voc_in_lower_case(tmp_path, folder):
    picture(tmp_path / "in" / folder / "train" / "a.png", 40, 30)
    xml(tmp_path / "in" / "annotations" / "train" / "a.xml", thing("cat", 1, 1, 2, 2), filename="C:\\data\\a.png")
    convert.convert(tmp_path / "in", tmp_path / "out")
    assert boxes(tmp_path / "out", "train") == [("a.png", 1, [0, 0, 2, 2], 0)]


@pytest.mark.parametrize(
    "word, crowd", [(w, 0) for w in ("False", "no", "Unspecified", "", "0")] + [("yes", 1), ("True", 1)]
)
def test_difficult_is_a_flag_however_it_is_written(voc, tmp_path, word, crowd):
    xml(voc / "Annotations" / "000003.xml", thing("cat", 1, 1, 9, 9, f"<difficult>{word}</difficult>"))
    convert.convert(voc, tmp_path / "out")
    assert boxes(tmp_path / "out", "val") == [("000003.jpg", 1, [0, 0, 9, 9], crowd)]


def test_a_flag_that_is_none_is_named(voc, tmp_path):
    path = xml(voc / "Annotations" / "000003.xml", thing("cat", 1, 1, 9, 9, "<difficult>perhaps</difficult>"))
    assert f"{path}: object 1 is difficult 'perhaps'; it must be 0 or 1" in error_of(voc, tmp_path / "out")


@pytest.mark.parametrize("line", ["my image", '"my image"', "'my image'"])
def test_names_in_lists_may_have_blanks(voc, tmp_path, line):
    picture(voc / "JPEGImages" / "my image.jpg", 40, 30)
    xml(voc / "Annotations" / "my image.xml", thing("cat", 1, 1, 9, 9))
    text(voc / "ImageSets" / "Main" / "val.txt", f"{line}\n000003  1\n")
    convert.convert(voc, tmp_path / "out")
    assert [image["file_name"] for image in content(tmp_path / "out", "val")["images"]] == [
        "000003.jpg",
        "my image.jpg",
    ]


def test_missing_and_damaged_images_are_named(voc, tmp_path):
    (voc / "JPEGImages" / "000001.jpg").unlink()
    damaged = text(voc / "JPEGImages" / "000003.jpg", "no image")
    message = error_of(voc, tmp_path / "out")
    assert f"{voc}/Annotations/000001.xml: its image is neither" in message
    assert f"{damaged}: not an image that can be decoded" in message


def test_xml_files_of_one_image_are_named(tmp_path):
    picture(tmp_path / "in" / "a.jpg", 40, 30)
    for stem in ("a", "copy"):
        xml(tmp_path / "in" / f"{stem}.xml", thing("cat", 1, 1, 2, 2), filename="a.jpg")
    message = error_of(tmp_path / "in", tmp_path / "out")
    assert message.startswith(f"{tmp_path}/in/copy.xml: its image") and f"{tmp_path}/in/a.xml" in message


def test_images_that_differ_in_the_suffix_alone_are_told_apart_by_the_xml_file(tmp_path):
    picture(tmp_path / "in" / "a.jpg", 40, 30)
    picture(tmp_path / "in" / "a.png", 20, 15)
    xml(tmp_path / "in" / "a.xml", thing("cat", 1, 1, 2, 2), width=20, height=15, filename="a.png")
    convert.convert(tmp_path / "in", tmp_path / "out")
    assert boxes(tmp_path / "out", "all") == [("a.png", 1, [0, 0, 2, 2], 0)]


def test_voc_sizes_may_be_sideways(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "in" / "a.jpg", 40, 30, exif=exif)
    for width, height in ((40, 30), (30, 40)):
        xml(tmp_path / "in" / "a.xml", thing("cat", 1, 1, 2, 2), width=width, height=height)
        convert.convert(tmp_path / "in", tmp_path / f"out{width}")
        image = content(tmp_path / f"out{width}", "all")["images"][0]
        assert (image["width"], image["height"]) == (width, height)


@given(
    size=st.tuples(st.integers(2, 5000), st.integers(2, 5000)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_yolo_boxes_come_back_from_shares(size, corners):
    (x1, x2), (y1, y2) = sorted(corners[::2]), sorted(corners[1::2])
    line = f"0 {(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}"
    x, y, w, h = yolo_format._box(line, size, {0: "cat"}).xywh
    expected = [x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1]]
    assert [x, y, x + w, y + h] == pytest.approx(expected, abs=1e-6)


def test_yolo_shares_become_pixels(yolo, tmp_path):
    convert.convert(yolo, tmp_path / "out")
    found = content(tmp_path / "out", "train")
    assert found["categories"] == [{"id": 1, "name": "round"}, {"id": 2, "name": "long"}]
    assert [(image["file_name"], image["width"], image["height"]) for image in found["images"]] == [
        ("a.jpg", 100, 50),
        ("b.png", 64, 32),
        ("c.jpg", 10, 10),
    ]
    # Centre (50, 25), 20 by 20 pixels; centre (5, 5), 10 by 10.
    assert boxes(tmp_path / "out", "train") == [("a.jpg", 2, [40, 15, 20, 20], 0), ("a.jpg", 1, [0, 0, 10, 10], 0)]
    # A polygon's corners lie at 2 and 12 of 20, 4 and 28 of 40.
    assert boxes(tmp_path / "out", "val") == [("a.jpg", 1, [2, 4, 10, 24], 0)]


def test_yolo_polygons_become_outlines_too(yolo, tmp_path):
    convert.convert(yolo, tmp_path / "out")
    (entry,) = content(tmp_path / "out", "val")["annotations"]
    assert entry["segmentation"] == [[2, 4, 12, 4, 12, 28, 6, 8]]
    assert not any("segmentation" in entry for entry in content(tmp_path / "out", "train")["annotations"])
    dataset = catalog.load(("val",), tmp_path / "out", masks=True)
    assert dataset.records.outlines.of(0)[0].tolist() == [[2, 4], [12, 4], [12, 28], [6, 8]]
    assert not dataset.faults.counts and not dataset.notes.counts


def test_yolo_loads_with_images_that_have_no_objects(yolo, tmp_path):
    lines = convert.convert(yolo, tmp_path / "out")
    dataset = catalog.load(("train",), tmp_path / "out")
    assert dataset.class_names[1:] == ("round", "long")
    assert dataset.records.image_ids.tolist() == [1, 2, 3]
    assert not dataset.faults.counts
    assert any(line.startswith("1 images without a text file, taken as images without objects") for line in lines)


@pytest.mark.parametrize(
    "settings",
    [
        "train: {root}/images/train\nval: [images/val]\nnames: {{0: round, 1: long}}\n",
        "path: {root}\ntrain: ./images/train/\nvalid: images/val\nnames: {{1: long, 0: round}}\n",
        "path: /not/here\ntrain: images/train\nval: images/val\nnames:\n- round\n- long\n",
        "train: ../images/train\nval: ../images/val\nnames: [round, long]\n",
        "path: images\ntrain: train\nval: val\nnames: [round, long]\n",
        "train: train.txt\nval: images/val/a.jpg\nnames: [round, long]\n",
    ],
)
def test_yolo_settings_in_every_spelling(yolo, tmp_path, settings):
    text(yolo / "train.txt", "./images/train/a.jpg\n\nimages/train/b.png\nimages/train/c.jpg\n")
    convert.convert(yolo, tmp_path / "expected")
    text(yolo / "data.yaml", settings.format(root=yolo))
    convert.convert(yolo, tmp_path / "out")
    for split in ("train", "val"):
        assert content(tmp_path / "out", split) == content(tmp_path / "expected", split)


def test_another_yaml_with_names_serves(yolo, tmp_path):
    (yolo / "data.yaml").rename(yolo / "cells.yaml")
    text(yolo / "hyperparameters.yaml", "lr: 0.1\n")
    assert convert.convert(yolo, tmp_path / "out")[1] == "classes: round, long"
    text(yolo / "more.yml", "names: [a]\n")
    assert "more.yml both describe a data set" in error_of(yolo, tmp_path / "other")


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_yolo_with_a_list_of_names_follows_the_folders(yolo, tmp_path, place):
    (yolo / "data.yaml").unlink()
    text(yolo / place, "round\nlong\n")
    convert.convert(yolo, tmp_path / "out")
    assert boxes(tmp_path / "out", "train")[0] == ("a.jpg", 2, [40, 15, 20, 20], 0)
    assert boxes(tmp_path / "out", "val")[0] == ("a.jpg", 1, [2, 4, 10, 24], 0)


@pytest.mark.parametrize("layout", ["beside", "flat"])
def test_yolo_without_splits_is_one_json(tmp_path, layout):
    root = tmp_path / "in"
    picture(root / ("images" if layout == "flat" else "") / "a.jpg", 10, 10)
    text(root / ("labels" if layout == "flat" else "") / "a.txt", "0 0.5 0.5 1 1")
    text(root / "classes.txt", "\ufeffcat")
    convert.convert(root, tmp_path / "out")
    assert boxes(tmp_path / "out", "all") == [("a.jpg", 1, [0, 0, 10, 10], 0)]
    assert catalog.load(("all",), tmp_path / "out").class_names[1:] == ("cat",)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("0 0.5 0.5 0.2", "4 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "6 numbers"),
        ("0 0.5 0.5 0.2 wide", "other than numbers"),
        ("cat 0.5 0.5 0.2 0.2", "other than numbers"),
        ("2 0.5 0.5 0.2 0.2", "class 2 has no name"),
        ("-1 0.5 0.5 0.2 0.2", "class -1 has no name"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5 has no name"),
        ("nan 0.5 0.5 0.2 0.2", "class nan has no name"),
        ("0 50 25 20 20", "shares of the image"),
        ("0 nan 0.5 0.2 0.2", "shares of the image"),
        ("0 0.5 0.5 inf 0.2", "shares of the image"),
        ("0 0.5 0.5 -0.005 0.2", "must not be negative"),
    ],
)
def test_yolo_lines_that_cannot_be_read_are_named(yolo, tmp_path, line, reason):
    path = text(yolo / "labels" / "train" / "a.txt", f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    message = error_of(yolo, tmp_path / "out")
    assert message.startswith(f"{path}, line 3: ") and reason in message


def test_many_unreadable_lines_are_counted(yolo, tmp_path):
    text(yolo / "labels" / "train" / "a.txt", "x\n" * 10)
    message = error_of(yolo, tmp_path / "out")
    assert "line 3: " in message and "line 4: " not in message and "and 7 more" in message


@pytest.mark.parametrize(
    "settings, reason",
    [
        ("names: [a, b", "not a yaml file"),
        ("- a", "it must hold"),
        ("train: images/train\nnames: 5", "names must be"),
        ("train: images/train\nnames: [a, [b]]", "names must be"),
        ("train: images/train\nnames: [a, yes]", "in quotes"),
        ("train: images/train\nnames: {-1: a}", "names must be"),
        ("train: images/train\nnames: [a, a]", "same number or name"),
        ("train: images/train\nnc: 2", "have no names"),
        ("train: images/tarin\nnames: [a, b]", "images/tarin, which does not exist"),
        ("train: 5\nnames: [a, b]", "train is 5"),
        ("train: labels\nnames: [a, b]", "holds no images"),
        ("train: list.txt\nnames: [a, b]", "list.txt, line 2: "),
        ("train: images/train\nnames: [a, b]\nkpt_shape: 17", "kpt_shape is 17; it must be two numbers"),
        (f"train: {'x' * 300}\nnames: [a, b]", "x, which does not exist"),
        ("train: long.txt\nnames: [a, b]", "x does not exist"),
    ],
)
def test_faulty_settings_are_named(yolo, tmp_path, settings, reason):
    text(yolo / "list.txt", "images/train/a.jpg\nimages/train/z.jpg\n")
    text(yolo / "long.txt", "x" * 300)
    text(yolo / "data.yaml", settings)
    assert reason in error_of(yolo, tmp_path / "out")


def test_lists_of_names_must_agree(yolo, tmp_path):
    (yolo / "data.yaml").unlink()
    text(yolo / "classes.txt", "a\nb")
    text(yolo / "labels" / "classes.txt", "b\na")
    assert "name different classes" in error_of(yolo, tmp_path / "out")


def test_folders_above_the_source_have_no_part_in_the_place_of_labels(tmp_path):
    source = tmp_path / "images" / "cells"
    for stem in "ab":
        picture(source / f"{stem}.jpg", 10, 10)
        text(source / "labels" / f"{stem}.txt", "0 0.5 0.5 1 1")
    text(source / "classes.txt", "cat")
    text(tmp_path / "labels" / "a.txt", "0 0.1 0.1 0.1 0.1")  # of other images
    convert.convert(source, tmp_path / "out")
    assert [box for _, _, box, _ in boxes(tmp_path / "out", "all")] == [[0, 0, 10, 10]] * 2


def test_labels_beside_images_serve_also_below_a_folder_images(tmp_path):
    picture(tmp_path / "in" / "images" / "train" / "a.jpg", 10, 10)
    text(tmp_path / "in" / "images" / "train" / "labels" / "a.txt", "0 0.5 0.5 1 1")
    text(tmp_path / "in" / "classes.txt", "cat")
    convert.convert(tmp_path / "in", tmp_path / "out")
    assert boxes(tmp_path / "out", "train") == [("a.jpg", 1, [0, 0, 10, 10], 0)]


@pytest.mark.parametrize("path", ["{data}", "../data"])
def test_images_that_the_settings_find_elsewhere_have_labels_there(tmp_path, monkeypatch, path):
    picture(tmp_path / "data" / "images" / "a.jpg", 10, 10)
    text(tmp_path / "data" / "labels" / "a.txt", "0 0.5 0.5 1 1")
    text(tmp_path / "in" / "data.yaml", f"path: {path.format(data=tmp_path / 'data')}\ntrain: images\nnames: [cat]")
    monkeypatch.chdir(tmp_path)
    convert.convert("in", tmp_path / "out")
    assert boxes(tmp_path / "out", "train") == [("a.jpg", 1, [0, 0, 10, 10], 0)]


@pytest.mark.parametrize("shape, points", [([2, 2], "0.4 0.4 0.9 0.9"), ([2, 3], "0.4 0.4 2 0.9 0.9 0")])
def test_of_an_object_with_keypoints_the_box_is_read(yolo, tmp_path, shape, points):
    with open(yolo / "data.yaml", "a") as file:
        file.write(f"kpt_shape: {shape}\n")
    for path in (yolo / "labels").rglob("*.txt"):
        path.write_text("")
    path = text(yolo / "labels" / "val" / "a.txt", f"0 0.5 0.5 0.2 0.1 {points}\n")
    convert.convert(yolo, tmp_path / "out")
    assert boxes(tmp_path / "out", "val") == [("a.jpg", 1, [8, 18, 4, 4], 0)]
    assert "segmentation" not in content(tmp_path / "out", "val")["annotations"][0]
    text(path, "0 0.5 0.5 0.2 0.1\n")
    message = error_of(yolo, tmp_path / "other")
    assert message.startswith(f"{path}, line 1: 5 numbers; by kpt_shape of data.yaml there must be")


def test_text_files_without_an_image_are_told(yolo, tmp_path):
    text(yolo / "labels" / "val" / "z.txt", "0 0.5 0.5 0.1 0.1")
    lines = convert.convert(yolo, tmp_path / "out")
    assert any(line == f"1 text files without an image, left out, the first: {yolo}/labels/val/z.txt" for line in lines)


def test_yolo_images_that_share_a_text_file_are_told(yolo, tmp_path):
    picture(yolo / "images" / "val" / "a.png", 40, 40)
    lines = convert.convert(yolo, tmp_path / "out")
    told = [line for line in lines if line.startswith("2 images that share their text file with another")]
    assert len(told) == 1 and str(yolo / "images" / "val" / "a.") in told[0]


def test_yolo_without_any_text_file_is_refused(yolo, tmp_path):
    for path in (yolo / "labels").rglob("*.txt"):
        path.unlink()
    assert "none of its 4 images has a text file" in error_of(yolo, tmp_path / "out")


def test_yolo_shares_are_of_the_upright_image(yolo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(yolo / "images" / "train" / "a.jpg", 50, 100, exif=exif)
    convert.convert(yolo, tmp_path / "out")
    assert boxes(tmp_path / "out", "train")[0][2] == [40, 15, 20, 20]


@pytest.mark.parametrize("name", ["a.tif", "b.avif", "c.jpg"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_sizes_are_those_that_the_decoder_gives(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(tmp_path / "in" / "images" / name, 64, 48, exif=exif)
    text(tmp_path / "in" / "labels" / f"{name[0]}.txt", "0 0.5 0.5 1 1")
    text(tmp_path / "in" / "classes.txt", "cat")
    convert.convert(tmp_path / "in", tmp_path / "out")
    dataset = catalog.load(("all",), tmp_path / "out")
    height, width = decode_upright(dataset.read(0), name).shape[:2]
    assert boxes(tmp_path / "out", "all")[0][2] == [0, 0, width, height]
    assert check_dataset(dataset, threads=1).problems.counts == {}


def test_images_are_links_that_outlive_the_source(yolo, tmp_path):
    convert.convert(yolo, tmp_path / "out")
    image = tmp_path / "out" / "images" / "train" / "a.jpg"
    assert image.samefile(yolo / "images" / "train" / "a.jpg") and not image.is_symlink()


def test_images_are_copied_where_links_are_refused(yolo, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    convert.convert(yolo, tmp_path / "out")
    image, origin = tmp_path / "out" / "images" / "train" / "a.jpg", yolo / "images" / "train" / "a.jpg"
    assert image.read_bytes() == origin.read_bytes() and not image.samefile(origin)
    # Begun anew after an interrupt: images are there, json files are not.
    for path in (tmp_path / "out" / "annotations").iterdir():
        path.unlink()
    convert.convert(yolo, tmp_path / "out")
    assert content(tmp_path / "out", "train")


def test_linked_folders_are_followed_once(yolo, tmp_path):
    (yolo / "images").rename(tmp_path / "elsewhere")
    (yolo / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "train" / "loop").symlink_to(tmp_path / "elsewhere" / "train")
    convert.convert(yolo, tmp_path / "out")
    assert len(content(tmp_path / "out", "train")["images"]) == 3


def test_pipes_are_not_opened(yolo, tmp_path):
    os.mkfifo(yolo / "images" / "train" / "pipe.jpg")
    os.mkfifo(yolo / "labels" / "train" / "c.txt")
    convert.convert(yolo, tmp_path / "out")
    assert len(content(tmp_path / "out", "train")["images"]) == 3


def test_a_target_in_use_is_left_alone(yolo, tmp_path):
    picture(tmp_path / "out" / "images" / "train" / "a.jpg", 3, 3)
    assert "exists already and is another file" in error_of(yolo, tmp_path / "out")
    convert.convert(yolo, tmp_path / "second")
    with pytest.raises(UserError, match=r"instances_train.json exists already"):
        convert.convert(yolo, tmp_path / "second")


@pytest.mark.parametrize("inside", ["", "out"])
def test_the_target_lies_outside_the_source(yolo, inside):
    assert "must lie outside" in error_of(yolo, yolo / inside)


def test_what_is_no_data_set_is_refused(tmp_path, voc, yolo):
    (tmp_path / "empty").mkdir()
    assert "neither Pascal VOC" in error_of(tmp_path / "empty", tmp_path / "out")
    assert "no such folder" in error_of(tmp_path / "absent", tmp_path / "out")
    assert "no voc annotations" in error_of(tmp_path / "empty", tmp_path / "out", format="voc")


def test_both_formats_in_one_folder_ask_for_a_choice(yolo, tmp_path):
    xml(yolo / "images" / "val" / "a.xml", thing("cat", 1, 1, 20, 40), width=20, height=40)
    assert "choose by --format" in error_of(yolo, tmp_path / "out")
    convert.convert(yolo, tmp_path / "voc", "voc")
    assert boxes(tmp_path / "voc", "val") == [("a.jpg", 1, [0, 0, 20, 40], 0)]
    convert.convert(yolo, tmp_path / "yolo", "yolo")
    assert boxes(tmp_path / "yolo", "val") == [("a.jpg", 1, [2, 4, 10, 24], 0)]


def test_no_objects_at_all_is_refused(voc, tmp_path):
    for path in (voc / "Annotations").iterdir():
        xml(path)
    assert "no image has an object" in error_of(voc, tmp_path / "out")


@pytest.mark.parametrize("module", ["globox", "yaml"])
def test_the_missing_extra_is_named(yolo, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'diou-jax[convert]'" in error_of(yolo, tmp_path / "out")


def test_the_command(yolo, tmp_path, capsys):
    convert.main([str(yolo), str(tmp_path / "out"), "--format", "yolo"])
    assert "instances_train.json: 3 images, 2 boxes" in capsys.readouterr().out


def test_consoles_without_the_characters_of_a_class_get_escapes(yolo, tmp_path):
    text(yolo / "data.yaml", "train: images/train\nval: images/val\nnames: [round, 猫]\n")
    command = [sys.executable, "-m", "diou_jax.data.convert", str(yolo), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    assert "classes: round, \\u732b" in done.stdout.splitlines()


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-of-this-name/x"])
def test_a_source_that_cannot_exist_is_no_folder(tmp_path, path):
    assert f"{path}: no such folder" in error_of(path, tmp_path / "out")


def test_a_target_that_cannot_exist_is_named(yolo, tmp_path):
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\)"):
        convert.convert(yolo, tmp_path / ("x" * 300))


def test_a_name_in_a_list_that_is_too_long_is_named(voc, tmp_path):
    file = text(voc / "ImageSets" / "Main" / "val.txt", "x" * 300)
    assert f"{file}, line 1: " in error_of(voc, tmp_path / "out")


@pytest.mark.parametrize("arguments", [["absent", "out"], ["absent"], ["absent", "out", "--format", "xml"]])
def test_mistakes_are_one_line_and_exit_code_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        convert.main(arguments)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
