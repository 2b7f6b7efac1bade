"""Evaluated runs compared, from files that are written by hand; no network runs."""

import json
import re

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from test_report_page import Page

from diou_jax.command.arguments import parse
from diou_jax.configs import shapes
from diou_jax.errors import UserError
from diou_jax.evaluation import compare
from diou_jax.evaluation.compare import compare_runs
from diou_jax.workdir.metrics_file import append_row
from diou_jax.workdir.run_config import keep_config

BOX, OTHER, AWAY = [10, 10, 20, 20], [35, 35, 20, 20], [2, 40, 12, 12]
CATEGORIES = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]


def write_data(root, *, images=6, boxes=(BOX, OTHER), categories=CATEGORIES, masks=False):
    """Images with a disc and a square each."""
    (root / "images" / "val").mkdir(parents=True)
    (root / "annotations").mkdir()
    content = {"images": [], "annotations": [], "categories": categories}
    for number in range(1, images + 1):
        cv2.imwrite(str(root / "images" / "val" / f"{number}.png"), np.full((64, 64, 3), 40 * number % 255, np.uint8))
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
        for place, box in enumerate(boxes):
            x, y, width, height = box
            outline = [x, y, x + width, y, x + width, y + height, x, y + height]
            content["annotations"].append(
                {"id": 2 * number + place, "image_id": number, "category_id": 1 + place, "bbox": box}
                | {"area": width * height, "segmentation": [outline] if masks else []}
            )
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def write_run(folder, root, found, *, step=5, **options):
    """A run's folder after an evaluation with these results: (image, category, box, score)."""
    config = shapes.get_config()
    config.data.source, config.data.root = "coco", str(root)
    config.test.datasets = ("val",)
    for name, value in options.items():
        group, option = name.split("__")
        config[group][option] = value
    keep_config(folder, config.to_dict(), resuming=False)
    results = [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in found]
    (folder / "bbox_val_results.json").write_text(json.dumps(results))
    append_row(folder / "metrics.jsonl", {"step": step, "dataset": "val", "eval/AP": 0.5})
    return folder


def perfect(images=range(1, 7)):
    return [(image, label, box, 0.9) for image in images for label, box in ((1, BOX), (2, OTHER))]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def missing_discs(root, tmp_path_factory):
    """A run that finds everything but the discs of images 2 and 3, and one that finds everything."""
    folder = tmp_path_factory.mktemp("runs")
    worse = [row for row in perfect() if row[:2] not in ((2, 1), (3, 1))] + [(3, 1, AWAY, 0.95)]
    one = write_run(folder / "one", root, worse, step=5)
    two = write_run(folder / "two", root, perfect(), step=9, test__nms=0.6, model__loss_type="iou")
    return one, two


@pytest.fixture
def no_page(monkeypatch):
    """The page, which other tests look at, takes the longest."""
    monkeypatch.setattr(compare, "write_comparison", lambda path, *_, **options: path.write_text(""))


def test_runs_are_compared_with_the_first(missing_discs, tmp_path, capsys):
    (comparison,) = compare_runs(missing_discs, tmp_path / "page.html")
    assert (comparison.dataset, comparison.kind) == ("val", "bbox")
    assert [(side.name, side.step) for side in comparison.sides] == [("one", 5), ("two", 9)]
    assert comparison.sides[1].statistics["AP"] == pytest.approx(1)
    assert comparison.options == {"model.loss_type": ("ciou", "iou"), "test.nms": (0.5, 0.6)}
    (difference,) = comparison.differences
    gain = comparison.sides[1].statistics["AP"] - comparison.sides[0].statistics["AP"]
    interval = difference.intervals.statistics["AP"]
    assert interval.value == pytest.approx(gain) and gain > 0.1
    disc, square = difference.intervals.classes
    assert disc.value == pytest.approx(2 * gain) and (square.value, square.low, square.high) == (0, 0, 0)
    printed = capsys.readouterr().out
    assert re.search(r"^ two +1\.000 .*\+0\.\d{4} \(", printed, re.M) and str(tmp_path / "page.html") in printed
    page = (tmp_path / "page.html").read_text()
    assert "one" in page and "two" in page and "model.loss_type" in page


def test_two_images_have_no_interval(tmp_path, capsys):
    root = write_data(tmp_path / "data", images=2)
    runs = [
        write_run(tmp_path / "none", root, [(1, 1, BOX, 0.9)]),
        write_run(tmp_path / "all", root, perfect(range(1, 3))),
    ]
    (comparison,) = compare_runs(runs, tmp_path / "page.html")
    change = comparison.differences[0].intervals.statistics["AP"]
    assert change.value > 0 and np.isnan(change.low)
    printed = capsys.readouterr().out
    assert "(too few images for an interval)" in printed
    page = Page((tmp_path / "page.html").read_text()).text()
    assert "too few images for an interval" in page
    assert not re.search(r"\bnan\b", printed + page, re.IGNORECASE)


def test_the_images_that_differ_most_are_named_with_what_differs(missing_discs, tmp_path, no_page):
    (comparison,) = compare_runs(missing_discs, tmp_path / "page.html")
    images = comparison.differences[0].images
    assert [one.image_id for one in images] == [3, 2]  # a false alarm besides the missing disc costs more
    first, second = images
    true = comparison.sides[0].matches.true
    for one in images:
        assert one.gain > 0 and len(one.lost) == 0
        (row,) = one.gained
        assert true.boxes[row].tolist() == BOX and true.images[row] == one.image
    (false,) = first.false
    assert comparison.sides[0].matches.found.boxes[false].tolist() == AWAY
    assert len(second.false) == len(first.other_false) == 0
    (back,) = compare_runs(missing_discs[::-1], tmp_path / "page.html")
    assert [(one.image_id, one.gain) for one in back.differences[0].images] == [
        (one.image_id, pytest.approx(-one.gain)) for one in images
    ]
    assert [len(one.lost) for one in back.differences[0].images] == [1, 1]


def test_a_run_equals_itself(missing_discs, tmp_path, no_page):
    one, _ = missing_discs
    copy = write_run(tmp_path / "copy", json.loads((one / "config.json").read_text())["data"]["root"], [])
    (copy / "bbox_val_results.json").write_text((one / "bbox_val_results.json").read_text())
    (comparison,) = compare_runs([one, copy], tmp_path / "page.html")
    (difference,) = comparison.differences
    assert difference.images == () and comparison.options == {}
    assert {(one.low, one.high) for one in difference.intervals.statistics.values() if one.value == 0} == {(0, 0)}


def test_three_runs_and_masks(root, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(compare, "write_comparison", lambda *_, albums: shown.append(albums["val"]))
    data = write_data(tmp_path / "masks", masks=True)
    folders = [write_run(tmp_path / name, data, perfect(), model__mask_on=True) for name in "abc"]
    for number, folder in enumerate(folders):
        whole = [(x, y) for x, y in ((10, 10), (35, 35))]
        masks = []
        for image, label, _, score in perfect(range(1 + number, 7)):
            x, y = whole[label - 1]
            canvas = np.zeros((64, 64), np.uint8, order="F")
            canvas[y : y + 20, x : x + 20] = 1
            rle = coco_mask.encode(canvas)
            rle["counts"] = rle["counts"].decode()
            masks.append({"image_id": image, "category_id": label, "segmentation": rle, "score": score})
        (folder / "segmentations_val_results.json").write_text(json.dumps(masks))
    boxes, masks = compare_runs(folders, tmp_path / "page.html")
    assert (boxes.kind, masks.kind) == ("bbox", "segm")
    assert [side.name for side in masks.sides] == ["a", "b", "c"] and len(masks.differences) == 2
    values = [difference.intervals.statistics["AP"].value for difference in masks.differences]
    assert 0 > values[0] > values[1]
    assert shown[0].true_mask(1, BOX)["size"] == [64, 64], "the page draws the masks of objects"
    (folders[2] / "segmentations_val_results.json").unlink()
    assert [one.kind for one in compare_runs(folders, tmp_path / "page.html")] == ["bbox"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": 5}, "val in .*one and in .*other has other images: 1 images are only in .*one, the first 6;"),
        ({"images": 7}, "has other images: 1 images are only in .*other, the first 7;"),
        ({"boxes": ([11, 10, 20, 20], OTHER)}, "has other objects, the first in image 1: 2 and 2 boxes"),
        ({"boxes": (BOX,)}, "has other objects, the first in image 1: 2 and 1 boxes"),
        (
            {"categories": [CATEGORIES[0], {"id": 2, "name": "star"}]},
            "other classes: 'disc', 'square' and 'disc', 'star'",
        ),
    ],
)
def test_other_images_or_objects_are_refused(missing_discs, tmp_path, change, words):
    data = write_data(tmp_path / "data", **change)
    other = write_run(tmp_path / "other", data, [])
    with pytest.raises(UserError, match=words):
        compare_runs([missing_discs[0], other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_training_data_are_compared_where_all_weights_tell(missing_discs, tmp_path, no_page, monkeypatch):
    known = {"one": "6 images", "two": "7 images"}
    monkeypatch.setattr(compare._Run, "trained_on", lambda run: known.get(run.folder.name))
    (comparison,) = compare_runs(missing_discs, tmp_path / "page.html")
    assert comparison.options["training data"] == ("6 images", "7 images")
    del known["two"]  # as of a setting of a sweep
    (comparison,) = compare_runs(missing_discs, tmp_path / "page.html")
    assert "training data" not in comparison.options


def test_ids_of_images_may_be_spelled_in_two_ways(missing_discs, tmp_path, no_page):
    data = write_data(tmp_path / "data")
    file = data / "annotations" / "instances_val.json"
    file.write_text(re.sub(r'("image_id"|"id"): (\d+), "(category_id|file_name)"', r'\1: "\2", "\3"', file.read_text()))
    assert '"id": "6", "file_name"' in file.read_text() and '"image_id": "6", "cat' in file.read_text()
    other = write_run(tmp_path / "other", data, [(str(image), *rest) for image, *rest in perfect()])
    (comparison,) = compare_runs([missing_discs[0], other], tmp_path / "page.html")
    assert comparison.sides[1].statistics["AP"] == pytest.approx(1)


def test_folders_without_an_evaluation_are_named(missing_discs, root, tmp_path):
    one, _ = missing_discs
    page = tmp_path / "page.html"
    with pytest.raises(UserError, match="nowhere holds no run"):
        compare_runs([one, tmp_path / "nowhere"], page)
    with pytest.raises(UserError, match="name two or more folders"):
        compare_runs([one], page)
    with pytest.raises(UserError, match="a folder is named twice"):
        compare_runs([one, one], page)
    new = write_run(tmp_path / "new", root, [])
    (new / "bbox_val_results.json").unlink()
    with pytest.raises(UserError, match=r"new/bbox_val_results\.json is missing; evaluate the run first: --work"):
        compare_runs([one, new], page)
    proposals = write_run(tmp_path / "rpn", root, [], model__rpn_only=True)
    with pytest.raises(UserError, match="there are proposals, which have no AP"):
        compare_runs([one, proposals], page)


@pytest.mark.parametrize("content", ["{", "[1]", '[{"image_id": 1}]', '{"a": 1}', "{}"])
def test_a_damaged_results_file_is_named(missing_discs, root, tmp_path, content):
    damaged = write_run(tmp_path / "damaged", root, [])
    (damaged / "bbox_val_results.json").write_text(content)
    with pytest.raises(UserError, match=r"damaged/bbox_val_results\.json: it is no file of COCO results"):
        compare_runs([missing_discs[0], damaged], tmp_path / "page.html")


def test_results_of_another_data_set_are_named(missing_discs, root, tmp_path):
    wrong = write_run(tmp_path / "wrong", root, [(99, 1, BOX, 0.5)])
    with pytest.raises(UserError, match=r"wrong/bbox_val_results\.json: .*image 99"):
        compare_runs([missing_discs[0], wrong], tmp_path / "page.html")


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = parse(["--mode", "compare", "--workdirs", "runs/a", "runs/b", "--output", "page.html"])
    assert command.flags["workdirs"] == ["runs/a", "runs/b"] and command.flags["output"] == "page.html"
    assert parse(["--workdirs=a", "--workdirs", "b,c", "--mode=compare"]).flags["workdirs"] == ["a", "b,c"]
    with pytest.raises(UserError, match="--mode compare needs --workdirs"):
        parse(["--mode", "compare"])
    with pytest.raises(UserError, match="leave --config out"):
        parse(["--mode", "compare", "--workdirs", "a", "b", "--config", "ciou"])
    with pytest.raises(UserError, match=r"leave --config\.test\.nms=0\.4 out"):
        parse(["--mode", "compare", "--workdirs", "a", "b", "--config.test.nms=0.4"])


def test_a_record_that_is_no_result_is_named_with_its_file(missing_discs, root, tmp_path):
    damaged = write_run(tmp_path / "damaged", root, [(1, 1, BOX, 0.9), (1, 1, [1, 2, float("nan"), 4], 0.9)])
    with pytest.raises(UserError, match=r"damaged/bbox_val_results\.json: .*\(record 2: its bbox is \[1, 2, nan, 4\]"):
        compare_runs([missing_discs[0], damaged], tmp_path / "page.html")
    masked = [write_run(tmp_path / name, root, []) for name in "ab"]
    record = {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": {"size": [3, 3], "counts": "09"}}
    for folder in masked:
        (folder / "segmentations_val_results.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match=r"a/segmentations_val_results\.json: .*3 rows and 3 columns, its image of 64"):
        compare_runs(masked, tmp_path / "page.html")


def test_a_page_that_cannot_be_written_is_named(missing_discs, tmp_path, capsys, monkeypatch):
    (tmp_path / "page").mkdir()
    for place, words in (
        (tmp_path / "page", "exists already and is no regular file"),
        (tmp_path / "nowhere" / "page.html", "there is no folder"),
        (tmp_path / ("n" * 300), "the name is too long"),
    ):
        with pytest.raises(UserError, match=f"--output .*{words}"):
            compare_runs(missing_discs, place)
    assert capsys.readouterr().out == "", "before any work"

    def full(path, *_, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compare, "write_comparison", full)
    with pytest.raises(UserError, match=r"cannot be written: .*page\.html \(No space left on device\)"):
        compare_runs(missing_discs, tmp_path / "page.html")
    assert "one" in capsys.readouterr().out, "the tables are printed all the same"
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_names_that_no_system_takes_are_no_runs(missing_discs, tmp_path):
    with pytest.raises(UserError, match="nnn holds no run"):
        compare_runs([missing_discs[0], tmp_path / ("n" * 300)], tmp_path / "page.html")


def test_an_evaluation_with_other_options_is_compared_by_these(root, tmp_path, no_page):
    one = write_run(tmp_path / "one", root, perfect())
    two = write_run(tmp_path / "two", "moved away since", perfect())
    options = {"data.root": str(root), "test.nms": 0.7, "test.diou_nms.beta1": "inf"}
    append_row(two / "metrics.jsonl", {"step": 5, "dataset": "val", "eval/AP": 0.5, "options": options})
    (comparison,) = compare_runs([one, two], tmp_path / "page.html")
    assert comparison.options == {"test.diou_nms.beta1": (1.0, np.inf), "test.nms": (0.5, 0.7)}


def test_another_set_that_was_evaluated_is_compared(root, tmp_path, no_page, capsys):
    runs = [write_run(tmp_path / name, root, perfect(), test__datasets=("test",)) for name in ("one", "two")]
    with pytest.raises(UserError, match=r"one/bbox_test_results\.json is missing"):
        compare_runs(runs, tmp_path / "page.html")
    for run in runs:
        row = {"step": 7, "dataset": "val", "eval/AP": 0.5, "options": {"test.datasets": ["val"]}}
        append_row(run / "metrics.jsonl", row)
    (comparison,) = compare_runs(runs, tmp_path / "page.html")
    assert (comparison.dataset, comparison.sides[0].step) == ("val", 7)


def test_the_run_whose_data_are_missing_is_named_with_the_remedy(missing_discs, tmp_path, no_page):
    gone = write_run(tmp_path / "gone", "moved away", perfect())
    words = r"gone was evaluated on val, which cannot be read \(moved away.*--mode eval --config\.data\.root=FOLDER"
    with pytest.raises(UserError, match=words):
        compare_runs([missing_discs[0], gone], tmp_path / "page.html")


def test_a_set_without_annotations_is_left_out(root, tmp_path, no_page, capsys):
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    del content["annotations"]
    (root / "annotations" / "instances_hidden.json").write_text(json.dumps(content))
    (root / "images" / "hidden").mkdir()
    runs = [write_run(tmp_path / name, root, perfect(), test__datasets=("hidden", "val")) for name in ("one", "two")]
    for run in runs:
        (run / "bbox_hidden_results.json").write_text("[]")
    (comparison,) = compare_runs(runs, tmp_path / "page.html")
    assert comparison.dataset == "val"
    assert "hidden has no annotations, so there is no AP to compare: left out" in capsys.readouterr().out
    for run in runs:
        (run / "bbox_val_results.json").unlink()
    with pytest.raises(UserError, match="no data set that all have evaluated has annotations"):
        compare_runs(runs, tmp_path / "page.html")
