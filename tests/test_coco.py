import json

import numpy as np
import pytest

from diou_jax.data import annotations, coco, make_reader
from diou_jax.data.augmentation import ScaleChoice
from diou_jax.data.dataset import BadImageError, align_classes
from diou_jax.data.decoding import decode
from diou_jax.data.view import flip_boxes
from diou_jax.errors import UserError
from diou_jax.evaluation.coco_results import evaluate

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
IMAGE = {"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}
BOX = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0}


@pytest.fixture
def load(tmp_path):
    """Writes an annotation file and loads it."""

    def write_and_load(images=(IMAGE,), annotations=(BOX,), categories=CATEGORIES, **options):
        content = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
        (tmp_path / "ann.json").write_text(json.dumps(content))
        return coco.load(tmp_path / "ann.json", tmp_path, **options)

    return write_and_load


def test_the_toy_set_equals_the_originals_roidb(golden, golden_path):
    """toy_dataset.npz, exactly: cleaned boxes, classes and crowds of the originals and of the mirrored copies."""
    expected = golden("toy_dataset.npz")
    folder = golden_path("toy")
    dataset = coco.load(folder / "ann.json", folder / "images")
    records = dataset.records
    assert records.image_ids.tolist() == expected["test_image_order"].tolist()
    assert dataset.class_names == tuple(expected["classes"])
    assert dataset.category_ids == (-1, 1, 3, 18, 90)
    row_of = {image_id: row for row, image_id in enumerate(records.image_ids.tolist())}
    for number in range(8):
        image_id, height, width, flipped, _ = expected[f"roidb/{number}/meta"].tolist()
        row = row_of[image_id]
        assert (records.heights[row], records.widths[row]) == (height, width)
        boxes, classes, crowd = records.annotations(row)
        if flipped:
            boxes = flip_boxes(boxes, width)
        np.testing.assert_array_equal(boxes, expected[f"roidb/{number}/boxes"])
        np.testing.assert_array_equal(classes, expected[f"roidb/{number}/gt_classes"])
        np.testing.assert_array_equal(crowd, expected[f"roidb/{number}/is_crowd"])


def test_real_images_are_found_and_have_the_size_stated(real_data):
    root = real_data("coco128")
    dataset = coco.load(root / "annotations" / "instances_train2017.json", root / "images" / "train2017")
    records = dataset.records
    assert (len(dataset), len(records.boxes), records.crowd.sum()) == (128, 935, 6)
    assert len(dataset.class_names) == 81
    assert dataset.category_ids[80] == 90
    assert not dataset.faults.counts
    for index in (0, 77):
        size = {"height": int(records.heights[index]), "width": int(records.widths[index])}
        assert decode(dataset.read(index), dataset.image_name(index), **size).dtype == np.uint8


def test_images_come_by_id_and_boxes_in_the_files_order(load):
    images = [IMAGE | {"id": i, "file_name": f"{i}.jpg"} for i in (30, 4, 200)]
    boxes = [BOX | {"image_id": i, "bbox": [x, 0, 5, 5]} for x, i in enumerate([200, 4, 200, 4])]
    dataset = load(images, boxes)
    assert dataset.records.image_ids.tolist() == [4, 30, 200]
    assert [dataset.records.annotations(i)[0][:, 0].tolist() for i in range(3)] == [[1, 3], [], [0, 2]]
    assert dataset.image_name(2).endswith("200.jpg")


def test_ids_may_be_strings_and_larger_than_64_bits(load):
    images = [IMAGE | {"id": i} for i in ("b", "a", 2**80, 5)]
    dataset = load(images, [BOX | {"image_id": "a"}])
    assert dataset.records.image_ids.tolist() == [5, 2**80, "a", "b"]
    assert dataset.records.offsets.tolist() == [0, 0, 0, 1, 1]


def test_classes_are_numbered_by_category_id_whatever_the_ids(load):
    dataset = load(categories=[{"id": 0, "name": "zero"}, *CATEGORIES], annotations=[BOX, BOX | {"category_id": 0}])
    assert dataset.class_names == ("__background__", "zero", "cat", "dog")
    assert dataset.category_ids == (-1, 0, 3, 7)
    assert dataset.records.classes.tolist() == [2, 1]


def test_ignored_and_small_ground_truth_is_left_out_without_a_word(load):
    boxes = [BOX | {"ignore": 1}, BOX | {"ignore": 0, "area": 99}, BOX | {"area": 100, "iscrowd": 1}]
    dataset = load(annotations=boxes, min_area=100)
    assert dataset.records.crowd.tolist() == [True]
    assert not dataset.faults.counts


@pytest.mark.parametrize(
    "change, kind",
    [
        ({"image_id": 2}, "annotations of unknown images"),
        ({"image_id": [1]}, "annotations of unknown images"),
        ({"category_id": 4}, "annotations of unknown categories"),
        ({"bbox": [1, 2, 3]}, "annotations without a box of four numbers"),
        ({"bbox": None}, "annotations without a box of four numbers"),
        ({"bbox": [1, 2, "wide", 3]}, "annotations without a box of four numbers"),
        ({"bbox": [1, 2, float("nan"), 3]}, "boxes with coordinates that are not finite"),
        ({"bbox": [1, 2, 10**400, 3]}, "annotations without a box of four numbers"),
        ({"bbox": [1, 2, 0, 3]}, "boxes without area"),
        ({"bbox": [1, 2, -5, 3]}, "boxes without area"),
        ({"area": 0}, "boxes without area"),
        ({"bbox": "1234"}, "annotations without a box of four numbers"),
        ({"bbox": [True, 2, 5, 5]}, "annotations without a box of four numbers"),
        ({"iscrowd": "perhaps"}, "annotations whose 'iscrowd' is neither 0 nor 1"),
        ({"ignore": [1]}, "annotations whose 'ignore' is neither 0 nor 1"),
        ({"bbox": [60, 2, 5, 5]}, "boxes outside their image"),
        ({"bbox": [-20, -20, 10, 10]}, "boxes outside their image"),
        ({"bbox": [3, 3, 1, 9]}, "boxes thinner than two pixels"),
    ],
)
def test_odd_annotations_are_dropped_counted_and_named(load, caplog, change, kind):
    with caplog.at_level("WARNING"):
        dataset = load(annotations=[BOX | change | {"id": 77}, BOX | change, BOX], name="mine")
    assert len(dataset.records.boxes) == 1
    assert dataset.faults.counts == {kind: 2}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"mine: 2 {kind}, the first: annotation 77")


@pytest.mark.parametrize("area", [..., None, [200], "large", float("nan"), float("inf"), -1, True, 10**400])
def test_an_area_that_is_not_stated_is_the_boxs_own_in_training_and_evaluation(load, tmp_path, area):
    box = {key: value for key, value in BOX.items() if key not in ("area", "iscrowd")}
    box |= {} if area is ... else {"area": area}
    dataset = load(annotations=[box], min_area=200)
    assert len(dataset.records.boxes) == 1 and not dataset.faults.counts
    assert len(load(annotations=[box], min_area=201).records.boxes) == 0
    assert annotations.read(tmp_path / "ann.json").boxes.areas.tolist() == [200]


@pytest.mark.parametrize(
    "same",
    [
        {"image_id": "1"},
        {"image_id": 1.0},
        {"category_id": "3"},
        {"category_id": 3.0},
        {"bbox": ["1", "2.0", 10.0, " 20 "]},
        {"area": "200"},
        {"iscrowd": None},
        {"iscrowd": "0"},
        {"iscrowd": False},
        {"iscrowd": 0.0},
        {"ignore": None},
        {"ignore": "0"},
    ],
)
def test_values_that_say_the_same_are_the_same(load, tmp_path, same):
    plain, dataset = load(), load(annotations=[BOX | same])
    for name in ("boxes", "classes", "crowd"):
        np.testing.assert_array_equal(getattr(dataset.records, name), getattr(plain.records, name))
    assert not dataset.faults.counts
    (row,) = [row for row in evaluate([], [tmp_path / "ann.json"]).classes if row.name == "cat"]
    assert row.objects == 1


@pytest.mark.parametrize("crowd", [1, True, "1", 1.0, "true"])
def test_a_crowd_is_one_however_it_is_written(load, tmp_path, crowd):
    assert load(annotations=[BOX | {"iscrowd": crowd}]).records.crowd.tolist() == [True]
    assert [row.objects for row in evaluate([], [tmp_path / "ann.json"]).classes] == [0, 0]


def test_results_bear_the_ids_of_the_file(load, tmp_path):
    images = [IMAGE | {"id": "17", "file_name": "a.jpg"}, IMAGE | {"id": 4.0, "file_name": "b.jpg"}]
    dataset = load(images, [BOX | {"image_id": 17}, BOX | {"image_id": "4"}])
    assert dataset.records.image_ids.tolist() == [4, "17"]
    assert np.diff(dataset.records.offsets).tolist() == [1, 1]
    results = [{"image_id": i, "category_id": 3, "bbox": BOX["bbox"], "score": 1.0} for i in (4, "17")]
    summary = evaluate(results, [tmp_path / "ann.json"], dataset.records.image_ids.tolist())
    assert summary.statistics["AP"] == pytest.approx(1)


def test_masks_keep_to_their_boxes_and_a_faulty_one_costs_no_box(load, caplog):
    """Boxes are sorted by their images; an object left out for its box or a flag takes its mask with it."""
    images = [IMAGE | {"id": i, "file_name": f"{i}.jpg"} for i in (30, 4)]
    part = [1, 1, 9, 1, 9]
    boxes = [
        BOX | {"image_id": 30, "segmentation": [[*part, 1]]},
        BOX | {"image_id": 4, "segmentation": [[*part, 2]], "ignore": 1},
        BOX | {"image_id": 4, "segmentation": [[*part, 3]], "id": 8},
        BOX | {"image_id": 4, "segmentation": {"size": [40, 60], "counts": "what?"}, "iscrowd": 1},
        BOX | {"image_id": 30, "segmentation": [[*part, 4]], "bbox": [5, 5, 0, 5]},
        BOX | {"image_id": 4, "segmentation": [[*part, 5, 0]], "id": 9},
        BOX | {"image_id": 4},
    ]
    with caplog.at_level("WARNING"):
        dataset = load(images, boxes, masks=True)
    records = dataset.records
    np.testing.assert_array_equal(records.boxes, load(images, boxes).records.boxes)
    tables = [records.outlines_of(row) for row in (0, 1)]
    last = [[[float(part[-1, 1]) for part in table.of(i)] for i in range(len(table))] for table in tables]
    assert last == [[[3.0], [], [], []], [[1.0]]]
    assert records.crowd.tolist() == [False, True, False, False, False]
    assert dataset.faults.counts == {"boxes without area": 1, "masks with an odd number of coordinates": 1}
    assert dataset.notes.counts == {"objects without a mask, of which only the boxes count": 1}
    assert "1 masks with an odd number of coordinates, the first: annotation 9 of image 4" in caplog.text


def test_classes_of_one_name_are_told_apart(load):
    assert load(categories=[CATEGORIES[0], CATEGORIES[0] | {"id": 9}]).class_names[1:] == ("dog (7)", "dog (9)")


TWINS = [{"id": i, "name": name} for i, name in enumerate(("__background__", "a", "a", "a (1)", "a (1) (1)", "b"))]


def test_no_two_classes_have_one_name_and_each_is_evaluated_as_itself(load, tmp_path):
    boxes = [BOX | {"id": i + 1, "category_id": i, "bbox": [i, i, 10, 20]} for i in range(len(TWINS))]
    trained = load(categories=TWINS, annotations=boxes)
    assert len(set(trained.class_names)) == 7 and trained.class_names[:2] == ("__background__", "__background__ (0)")
    assert trained.category_ids == (-1, 0, 1, 2, 3, 4, 5) and trained.records.classes.tolist() == [1, 2, 3, 4, 5, 6]
    # The same classes in another order, as a file of validation may list them.
    other = 3, 5, 2, 1, 0, 4
    moved = [one | {"category_id": number} for one, number in zip(boxes, other)]
    swapped = [{"id": number, "name": name} for number, name in zip(other, trained.class_names[1:])]
    aligned = align_classes(load(categories=swapped, annotations=moved), trained.class_names)
    assert aligned.records.classes.tolist() == trained.records.classes.tolist()
    results = [one | {"category_id": aligned.category_ids[one["id"]], "score": 0.9} for one in boxes]
    assert evaluate(results, [tmp_path / "ann.json"]).statistics["AP"] == pytest.approx(1)


def test_a_file_without_annotations_is_for_a_server(tmp_path):
    for content in ({}, {"annotations": None}):
        (tmp_path / "ann.json").write_text(json.dumps({"images": [IMAGE], "categories": CATEGORIES} | content))
        dataset = coco.load(tmp_path / "ann.json", tmp_path)
        assert len(dataset) == 1 and not dataset.annotated
        with pytest.raises(UserError, match=r"ann\.json has no list of 'annotations' to learn from"):
            make_reader.train_reader(dataset, [ScaleChoice((64,), 64)], batch_size=1, seed=0)


def test_backslashes_are_named_where_they_are_the_reason(load):
    with pytest.raises(BadImageError, match=r"backslashes, which part folders on Windows alone"):
        load([IMAGE | {"file_name": "deep\\1.jpg"}]).read(0)


def test_second_entries_of_an_id_and_images_without_size_are_dropped(load):
    images = [IMAGE, IMAGE | {"file_name": "other.jpg"}, IMAGE | {"id": 2, "height": 0}]
    dataset = load(images, [BOX, BOX | {"image_id": 2}], [*CATEGORIES, {"id": 3, "name": "again"}])
    assert dataset.image_name(0).endswith("1.jpg")
    assert dataset.class_names == ("__background__", "cat", "dog")
    assert dataset.faults.counts == {
        "categories with the id of an earlier one": 1,
        "images with the id of an earlier one": 1,
        "images without a proper height and width, nor a file that tells it": 1,
        "annotations of images that cannot be used": 1,
    }


@pytest.mark.parametrize(
    "name", ["../up.jpg", "a/../../up.jpg", "/etc/passwd", "C:\\x.jpg", "..\\x.jpg", "\\\\host\\x", "", None, "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(load, name):
    with pytest.raises(UserError, match=r"ann\.json: image 1 has the file name .* inside the folder"):
        load([IMAGE | {"file_name": name}])


def test_names_may_lead_into_subfolders(load, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "1.jpg").write_bytes(b"content")
    assert load([IMAGE | {"file_name": "deep/1.jpg"}]).read(0) == b"content"


def test_a_missing_image_is_named(load):
    with pytest.raises(BadImageError, match=r"1\.jpg: cannot be read \(No such file"):
        load().read(0)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"images": [], "annotations": []}',
        '{"images": {}, "annotations": [], "categories": []}',
        '{"images": [3], "annotations": [], "categories": []}',
        "[" * 100_000,
    ],
)
def test_what_is_not_coco_json_is_refused(tmp_path, text):
    (tmp_path / "ann.json").write_text(text)
    with pytest.raises(UserError, match=r"ann\.json: not a "):
        coco.load(tmp_path / "ann.json", tmp_path)


def test_binary_is_refused(tmp_path):
    (tmp_path / "ann.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"ann\.json: not a json file"):
        coco.load(tmp_path / "ann.json", tmp_path)


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(UserError, match=r"ann\.json: cannot be read"):
        coco.load(tmp_path / "ann.json", tmp_path)
    with pytest.raises(UserError, match="pictures: this folder of images does not exist"):
        coco.load(tmp_path / "ann.json", tmp_path / "pictures")


@pytest.mark.parametrize("key", [None, 1.5, True, [1]])
def test_ids_of_other_types_are_named(load, key):
    assert load([IMAGE | {"id": key}, IMAGE]).faults.counts == {"images without a proper id": 1}
    with pytest.raises(UserError, match=r"no usable images: 1 images without a proper id, the first: images\[0\]"):
        load([IMAGE | {"id": key}])
    with pytest.raises(UserError, match=r"ann\.json: categories\[0\] has the id"):
        load(categories=[{"id": key, "name": "x"}])


@pytest.mark.parametrize("content, what", [({"images": []}, "usable images"), ({"categories": []}, "categories")])
def test_an_empty_list_is_refused(load, content, what):
    with pytest.raises(UserError, match=f"lists no {what}"):
        load(**content)
