import functools
import json
import os

import numpy as np
import pytest
from bad_images import ODD, PICTURE, READABLE, UNREADABLE, box, claiming, encoded, picture, write_set

from diou_jax.data import catalog
from diou_jax.data.check import check_datasets
from diou_jax.data.dataset import EXAMPLES


@pytest.fixture
def check(tmp_path):
    """``check(**changes)`` writes the data set of `bad_images` and checks it."""

    def run(max_boxes=4, max_vertices=0, masks=False, **changes):
        write_set(tmp_path, **changes)
        sets = load(tmp_path, "seven", masks=masks)
        return check_datasets(sets, max_boxes=max_boxes, max_vertices=max_vertices, threads=2)

    return run


def load(root, *names, **options):
    return {name: functools.partial(catalog.load, [name], root, **options) for name in names}


def test_a_good_data_set_is_clean(check):
    report = check()
    assert report.clean
    assert report.text() == "seven: 7 images, 7 boxes that count\ntotal: 0 problems, 0 notes, 7 images"


KINDS = {
    "other size": "image files of another size than the annotations say",
    "bomb": "image files that claim too many pixels",
    "jpeg bomb": "image files that claim too many pixels",
    "bomb of one row": "image files that claim too many pixels",
    "missing": "image files that cannot be read",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_training_would_skip_is_a_problem_with_its_name(check, name):
    content, message = UNREADABLE[name]
    report = check(files={ODD: content})
    kind = KINDS.get(name, "image files that cannot be decoded")
    assert report.sections[0].problems.counts == {kind: 1}
    assert not report.clean
    assert f"  problem: 1 {kind}\n" in report.text()
    assert f"{ODD}.jpg: {message}" in report.text()


NOTES = {
    "cmyk": ["CMYK images"],
    "grey": ["grey images"],
    "grey, 16 bits": ["image files that are PNG inside", "grey images", "images of more than 8 bits"],
    "16 bits": ["image files that are PNG inside", "images of more than 8 bits"],
    "alpha": ["image files that are PNG inside", "images with transparency"],
    "palette": ["image files that are PNG inside", "images with transparency"],
    "png named jpg": ["image files that are PNG inside"],
    "webp": ["image files that are WEBP inside"],
    "tiff": ["image files that are TIFF inside"],
    "turned by 180 degrees": ["images turned as their metadata say"],
    "turned by 90 degrees": ["images whose metadata would turn or mirror them, taken as stored"],
}


@pytest.mark.parametrize("name", READABLE)
def test_what_is_converted_is_a_note(check, name):
    report = check(files={ODD: READABLE[name]})
    assert report.clean
    found = sorted(report.sections[0].notes.counts)
    assert len(found) == len(NOTES[name])
    for kind, beginning in zip(found, sorted(NOTES[name])):
        assert kind.startswith(beginning)
        assert f"{ODD}.jpg" in report.sections[0].notes.examples[kind][0]


def test_an_image_that_is_turned_to_its_annotated_size_is_a_note(check):
    report = check(files={ODD: READABLE["turned by 90 degrees"]}, images={ODD: {"height": 64, "width": 48}})
    assert report.clean
    (kind,) = report.sections[0].notes.counts
    assert kind.startswith("images turned as their metadata say")


@pytest.mark.parametrize(
    "value, alpha, dim", [(1023, False, 1), (4095, True, 1), (8191, False, 1), (8192, True, 0), (0, False, 0)]
)
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_deep_images_that_become_nearly_black_are_a_problem(check, value, alpha, dim, suffix):
    image = np.full(PICTURE.shape, value, np.uint16)
    if alpha:
        image = np.dstack([image, np.full(image.shape[:2], 65535, np.uint16)])
    report = check(files={ODD: encoded(image, suffix)})
    assert list(report.sections[0].problems.counts.values()) == [1] * dim
    if dim:
        assert f"{ODD}.jpg: its largest value is {value} of 65535; scale its values" in report.text()


def test_ground_truth_that_is_dropped_is_a_problem(check):
    boxes = [box(0, bbox=[1, 2, float("nan"), 5]), box(1, category_id=9), *(box(2 + i) for i in range(5))]
    report = check(annotations=boxes)
    assert report.sections[0].problems.counts == {
        "boxes with coordinates that are not finite": 1,
        "annotations of unknown categories": 1,
        "boxes beyond the data.max_boxes=4 largest of their image": 2,
    }
    assert report.total == 4
    assert f"{ODD}.jpg: 6 boxes" in report.text()


def test_masks_that_are_left_out_are_problems_and_what_is_mended_a_note(check):
    masks = [
        [[1, 1, 9, 1, 9, 9]],
        [[1, 1, 9, 1, 9, 9, 5, 5, 1, 9]],
        [[1, 1, 9, 1, 9]],
        [[1, 1, 9, 1, 9, float("inf")]],
        {"size": [64, 48], "counts": [64 * 48]},
        {"size": [48, 64], "counts": "no runs"},
    ]
    report = check(
        max_boxes=9, max_vertices=4, masks=True, annotations=[box(i, segmentation=m) for i, m in enumerate(masks)]
    )
    (section,) = report.sections
    assert section.problems.counts == {
        "parts of masks with fewer than three points, left out": 1,
        "masks with coordinates that are not finite numbers": 1,
        "masks as RLE of another size than their image": 1,
        "masks as RLE that cannot be decoded": 1,
    }
    assert section.notes.counts == {
        "objects without a mask, of which only the boxes count": 7,
        "outlines simplified to the 4 vertices of data.max_vertices": 1,
    }
    assert section.boxes == 13
    assert "annotation 103 of image 3" in report.text() and f"{ODD}.jpg: 5 vertices" in report.text()


def test_a_set_of_boxes_only_is_a_problem_for_masks(check):
    assert check(masks=True).sections[0].problems.counts == {"data sets without a mask": 1}
    assert check().clean


def test_images_with_nothing_to_learn_and_shared_files_are_notes(check):
    images = {1: {"id": 50}, 2: {"id": 51}, 4: {"file_name": "5.jpg"}}
    boxes = [box(0, image_id=51, iscrowd=1)]
    lost = "annotations of unknown images"  # those of the two that have other ids now
    report = check(images=images, annotations=boxes)
    assert report.sections[0].problems.counts == {lost: 2}
    assert report.sections[0].notes.counts == {
        "images without a box, not trained on unless train.drop_empty=False": 1,
        "images with nothing but crowds, not trained on unless train.drop_empty=False": 1,
        "images that share their file with an earlier one": 1,
    }


def test_the_limits_of_training_do_not_concern_a_set_that_is_evaluated(tmp_path):
    images = {1: {"id": 50}, 2: {"id": 51}}
    boxes = [box(0, image_id=51, iscrowd=1), *(box(1 + i) for i in range(5))]
    corners = [[1, 1, 9, 1, 9, 9, 5, 5, 1, 9]]
    for name in ("train", "val"):
        write_set(tmp_path, name, images=images, annotations=[one | {"segmentation": corners} for one in boxes])
    sets = load(tmp_path, "train", "val", masks=True)
    train, val = check_datasets(sets, evaluated=("val",), max_boxes=4, max_vertices=4, threads=1).sections
    assert "boxes beyond the data.max_boxes=4 largest of their image" in train.problems.counts
    assert "outlines simplified to the 4 vertices of data.max_vertices" in train.notes.counts
    assert val.problems.counts.keys() == {"annotations of unknown images"}
    assert val.notes.counts == {
        "images without a box, where every detection is wrong": 1,
        "objects without a mask, of which only the boxes count": 5,
    }


def test_an_evaluated_set_without_annotations_has_no_notes(tmp_path):
    write_set(tmp_path, "good")
    write_set(tmp_path, "images_only")
    file = tmp_path / "annotations" / "instances_images_only.json"
    content = json.loads(file.read_text())
    del content["annotations"]
    file.write_text(json.dumps(content))
    report = check_datasets(load(tmp_path, "good", "images_only"), evaluated=("images_only",), threads=1)
    assert report.clean and not report.sections[1].notes.counts


def test_listings_are_bounded_and_counts_are_not(check):
    boxes = [box(i, category_id=9) for i in range(1000)]
    report = check(annotations=boxes)
    assert "1000 annotations of unknown categories" in report.text()
    assert f"and {1000 - EXAMPLES} more" in report.text()
    assert len(report.text().splitlines()) == EXAMPLES + 4


def test_a_refused_data_set_is_a_problem_and_the_others_are_checked(tmp_path):
    write_set(tmp_path, "hostile", images={ODD: {"file_name": "../../x.jpg"}, 4: {"file_name": "/etc/passwd"}})
    write_set(tmp_path, "good")
    write_set(tmp_path, "other", categories=[{"id": 5, "name": "dog"}, {"id": 7, "name": "eel"}])
    report = check_datasets(load(tmp_path, "hostile", "absent", "good", "other"), threads=1)
    hostile, absent, good, other = report.sections
    assert hostile.problems.counts == absent.problems.counts == {"data sets that are refused": 1}
    assert (
        "'../../x.jpg'; it must be a path inside the folder"
        in hostile.problems.examples["data sets that are refused"][0]
    )
    assert not good.problems.counts
    assert other.problems.counts == {"data sets whose categories are not those of the first": 1}
    assert report.total == 3


def test_the_report_does_not_depend_on_the_threads(tmp_path):
    write_set(tmp_path, files={0: b"", 2: None, 4: claiming(2**20, 2**20), 5: encoded(picture(1)[..., 0])})
    reports = [check_datasets(load(tmp_path, "seven"), threads=threads).text() for threads in (1, 4)]
    assert reports[0] == reports[1]
    assert "total: 3 problems, 1 notes, 7 images" in reports[0]


def test_a_defect_names_the_image(check, monkeypatch):
    monkeypatch.setattr("diou_jax.data.decoding.decode", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError) as error:
        check()
    assert os.path.basename(error.value.__notes__[0]) == "0.jpg"


def test_what_an_evaluation_would_refuse_is_a_problem_and_what_it_mends_a_note(tmp_path):
    swapped = [{"id": 0, "name": "dog"}, {"id": 5, "name": "cat"}]
    for name, categories in (("seven", None), ("swapped", swapped), ("fewer", swapped[:1])):
        write_set(tmp_path, name, **({"categories": categories} if categories else {}))
    write_set(tmp_path, "sizes", images={ODD: {"height": None}})
    _, swap, few, sizes = check_datasets(load(tmp_path, "seven", "swapped", "fewer", "sizes")).sections
    assert not swap.problems.counts
    assert list(swap.notes.counts) == ["data sets that number the categories in their own way, and are matched by name"]
    assert "without 'cat'" in few.problems.examples["data sets whose categories are not those of the first"][0]
    assert sizes.notes.counts == {"images without a proper height and width, taken from their files": 1}
