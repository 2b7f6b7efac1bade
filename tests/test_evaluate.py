"""Test sets judged one by one; the network's detections are made up, so that nothing is compiled."""

import io
import json
import math
import types

import cv2
import numpy as np
import pytest

from diou_jax.configs import shapes
from diou_jax.errors import UserError
from diou_jax.evaluation import evaluate, report
from diou_jax.evaluation.found import Found
from diou_jax.evaluation.given_options import with_given_options
from diou_jax.reporting.gallery import outline
from diou_jax.reporting.run_log import RunLog, read_metrics
from diou_jax.training import train
from diou_jax.workdir.run_config import keep_config, restore_config
from diou_jax.workdir.run_lock import run_lock

CLASSES = ("__background__", "disc", "square")
PLAIN = ({"id": 1, "name": "disc"}, {"id": 2, "name": "square"})
SWAPPED = ({"id": 7, "name": "square"}, {"id": 9, "name": "disc"})
COUNT = 4


def write_set(root, name, categories=PLAIN, *, edit=None):
    """`COUNT` images, numbered from 1, with a disc in the even ones and a square in the others."""
    folder = root / "images" / name
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    ids = {category["name"]: category["id"] for category in categories}
    content = {"images": [], "annotations": [], "categories": [dict(category) for category in categories]}
    for number in range(COUNT):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((64, 64, 3), 40 * number, np.uint8))
        content["images"].append({"id": number + 1, "file_name": f"{number}.png", "height": 64, "width": 64})
        kind = ids.get(CLASSES[1 + number % 2])
        box = {"id": number + 1, "image_id": number + 1, "category_id": kind, "bbox": [10, 10, 20, 20], "area": 400}
        content["annotations"].append(box)
    if edit:
        edit(content)
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def perfect(detect, variables, stream, **options):
    """Finds everything, by the classes that were trained."""
    present = [int(row) for batch in stream for row in batch.index[batch.present]]
    return {
        row: Found(boxes=np.float32([[10, 10, 29, 29]]), scores=np.float32([0.75]), classes=np.int32([1 + row % 2]))
        for row in present
    }


@pytest.fixture
def make(tmp_path, monkeypatch):
    """``make(*names)``: an evaluator of the sets below tmp_path, whose network finds everything."""
    monkeypatch.setattr(evaluate, "replicate", lambda variables: variables)
    monkeypatch.setattr(evaluate, "detect_all", perfect)
    monkeypatch.setattr(evaluate.Evaluator, "programs", lambda *_: [])

    def build(*names, class_names=CLASSES, **options):
        config = small_config(tmp_path, names)
        config.update(options)
        evaluator = evaluate.Evaluator(config, str(tmp_path / "run"), class_names)
        evaluator.detector = types.SimpleNamespace(network=types.SimpleNamespace(folded=lambda variables: variables))
        return evaluator

    return build


def small_config(root, names):
    config = shapes.get_config()
    config.data.source, config.data.root = "coco", str(root)
    config.test.datasets, config.test.scale, config.test.max_size = names, 64, 64
    config.train.scales, config.train.max_size = (64,), 64
    config.test.compare_nms = False
    config.log.images, config.log.report = 1, False
    return config


def run(evaluator, root, step=5):
    with RunLog(root / "run") as log:
        return evaluator({}, step, log)


def results(root, name):
    return json.loads((root / "run" / f"bbox_{name}_results.json").read_text())


def test_sets_are_judged_one_by_one_each_with_its_own_numbering(make, tmp_path, capsys):
    write_set(tmp_path, "val")
    write_set(tmp_path, "other", SWAPPED)
    rows = run(make("val", "other"), tmp_path)
    assert [(row["dataset"], row["eval/AP"], row["eval/AP/disc"]) for row in rows] == [
        (name, pytest.approx(1), pytest.approx(1)) for name in ("val", "other")
    ]
    assert [(row["step"], row["dataset"]) for row in read_metrics(tmp_path / "run")] == [(5, "val"), (5, "other")]
    assert [row["category_id"] for row in results(tmp_path, "val")] == [1, 2, 1, 2]
    assert [row["category_id"] for row in results(tmp_path, "other")] == [9, 7, 9, 7]
    assert {"copypaste: Dataset: val", "copypaste: Dataset: other"} <= set(capsys.readouterr().out.splitlines())
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 2
    for name in ("val", "other"):
        thresholds = json.loads((tmp_path / "run" / f"thresholds_{name}.json").read_text())
        assert thresholds == {label: pytest.approx(0.75) for label in CLASSES[1:]} and max(thresholds.values()) < 0.75


def test_another_set_changes_no_row_of_the_first(make, tmp_path):
    write_set(tmp_path, "val")
    write_set(tmp_path, "other")
    run(make("val"), tmp_path)
    before = read_metrics(tmp_path / "run")
    run(make("other"), tmp_path)
    assert read_metrics(tmp_path / "run")[:1] == before


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ([{"id": 1, "name": "disc"}], "without 'square'"),
        ([{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}, {"id": 3, "name": "ring"}], "with 'ring'"),
        ([{"id": 1, "name": "disc"}, {"id": 2, "name": "Square"}], "without 'square', with 'Square'"),
    ],
)
def test_other_classes_are_refused_before_anything_is_computed(make, tmp_path, categories, words):
    write_set(tmp_path, "val", categories)
    with pytest.raises(UserError, match=f"val: its classes are not those that were trained: {words};"):
        make("val")


def test_images_that_none_can_be_read_are_refused_with_the_reason(make, tmp_path):
    def on_windows(content):
        for image in content["images"]:
            image["file_name"] = "images\\" + image["file_name"]

    write_set(tmp_path, "val", edit=on_windows)
    with pytest.raises(UserError, match=r"val: none of 4 images tried can be read.*backslashes"):
        make("val")


def test_images_that_vanish_before_they_are_read_give_no_ap(make, tmp_path, monkeypatch):
    write_set(tmp_path, "val")
    evaluator = make("val")
    monkeypatch.setattr(evaluate, "detect_all", lambda *_, **options: {})
    with pytest.raises(UserError, match="val: none of its 4 images could be read"):
        run(evaluator, tmp_path)
    assert read_metrics(tmp_path / "run") == []


def test_a_set_without_annotations_gives_a_file_for_the_server(make, tmp_path, capsys):
    write_set(tmp_path, "val", edit=lambda content: content.pop("annotations"))
    assert run(make("val"), tmp_path) == []
    assert len(results(tmp_path, "val")) == COUNT
    assert "val has no annotations, so there is no AP" in capsys.readouterr().out
    assert read_metrics(tmp_path / "run") == []


def test_results_and_metrics_are_there_before_anything_is_printed(make, tmp_path, monkeypatch):
    write_set(tmp_path, "val", edit=lambda content: content["categories"][0].update(name="\ud800"))
    evaluator = make("val", class_names=("__background__", "\ud800", "square"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    (row,) = run(evaluator, tmp_path)
    assert row["eval/AP/\ud800"] == pytest.approx(1)

    def broken(_):
        raise OSError("no console")

    monkeypatch.setattr(evaluate, "print_line", broken)
    with pytest.raises(OSError, match="no console"):
        run(evaluator, tmp_path, step=6)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [5, 6]


def test_more_detections_than_count_are_a_warning(make, tmp_path, caplog):
    write_set(tmp_path, "val")
    make("val", test={"detections_per_im": 300})
    assert "test.detections_per_im=300 exceeds test.max_dets=100" in caplog.text
    caplog.clear()
    make("val", test={"detections_per_im": 300, "max_dets": 300})
    assert "max_dets" not in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: None,
        lambda root: write_set(root, "val", [{"id": 1, "name": "disc"}]),
        lambda root: write_set(root, "val", edit=lambda content: content["images"].clear()),
        lambda root: (write_set(root, "val"), (root / "annotations" / "instances_val.json").write_text("{")),
    ],
    ids=["missing", "other classes", "no images", "damaged"],
)
def test_training_that_will_be_evaluated_refuses_such_a_test_set_at_the_start(tmp_path, damage):
    write_set(tmp_path, "train")
    damage(tmp_path)
    config = small_config(tmp_path, ("val",))
    config.train.datasets = ("train",)
    with pytest.raises(UserError, match="val"):
        train.train(config, str(tmp_path / "run"), then_evaluate=True)
    assert not (tmp_path / "run" / "config.json").exists()


def test_nothing_to_measure_is_no_number(make, tmp_path):
    write_set(tmp_path, "val", edit=lambda content: content["annotations"].clear())
    (row,) = run(make("val"), tmp_path)
    assert math.isnan(row["eval/AP"])


def test_an_evaluation_leaves_a_report(make, tmp_path):
    write_set(tmp_path, "val")
    write_set(tmp_path, "bare", edit=lambda content: content.pop("annotations"))
    (row,) = run(make("val", "bare", log={"report": True}), tmp_path)
    page = (tmp_path / "run" / "report.html").read_text()
    assert row["eval/AP"] == pytest.approx(1)
    for words in ("Evaluated on val, bare", "4 images, 4 objects, 2 classes", "bare has no annotations"):
        assert words in page
    assert page.count("No kind of error costs AP.") == 1
    for name in ("bbox_val_results.json", "bbox_bare_results.json", "thresholds_val.json"):
        assert f'href="{name}"' in page and (tmp_path / "run" / name).is_file()


@pytest.mark.parametrize("broken", ["analyse", "write_report"])
def test_a_report_that_fails_ends_no_run(make, tmp_path, monkeypatch, caplog, broken):
    def fail(*_, **options):
        raise ValueError("a fault of ours")

    write_set(tmp_path, "val")
    monkeypatch.setattr(report, broken, fail)
    (row,) = run(make("val", log={"report": True}), tmp_path)
    assert row["eval/AP"] == pytest.approx(1)
    assert "report.html cannot be" in caplog.text and "a fault of ours" in caplog.text
    assert not (tmp_path / "run" / "report.html").exists()


def test_pictures_of_a_report_link_to_their_files_and_know_masks(make, tmp_path):
    def with_masks(content):
        for one in content["annotations"]:
            one["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]

    write_set(tmp_path, "val", edit=with_masks)
    (tmp_path / "images" / "val" / "3.png").write_bytes(b"no image")
    (dataset,) = make("val")._datasets
    mask = {"size": [64, 64], "counts": "0"}
    album = report.DatasetAlbum(dataset, {"bbox": [{}], "segm": [{"segmentation": mask}]})
    photo = album.photo(1)
    assert photo.link == (tmp_path / "images" / "val" / "0.png").as_uri() and photo.size == (64, 64)
    assert photo.source.startswith("data:image/jpeg;base64,")
    assert album.photo(4).source == ""
    assert album.found_mask("bbox", 0) == mask
    assert outline(album.true_mask(1, [10, 10, 20, 20])).startswith("M10.5 10.5L")
    assert album.true_mask(1, [1, 1, 20, 20]) is None
    assert report.DatasetAlbum(dataset, {"bbox": [{}]}).true_mask(1, [10, 10, 20, 20]) is None


def test_files_that_cannot_be_written_cost_no_number_and_are_named(make, tmp_path, capsys, caplog):
    write_set(tmp_path, "val")
    for name in ("bbox_val_results.json", "thresholds_val.json"):
        (tmp_path / "run" / name).mkdir(parents=True)  # no file can take this name
    evaluator = make("val", log={"report": True})
    (row,) = run(evaluator, tmp_path)
    assert row["eval/AP"] == pytest.approx(1) and evaluator.done == (5, [row])
    assert [one["eval/AP"] for one in read_metrics(tmp_path / "run")] == [pytest.approx(1)]
    assert "copypaste: Dataset: val" in capsys.readouterr().out
    assert "bbox_val_results.json cannot be written, and the work goes on without: Is a directory" in caplog.text
    assert not list((tmp_path / "run").rglob("*.tmp"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Evaluated on val" in page and "bbox_val_results.json" not in page
    with pytest.raises(UserError, match=r"bbox_val_results\.json \(Is a directory\), .*thresholds_val\.json \("):
        evaluator.unwritten.check()
    for name in ("bbox_val_results.json", "thresholds_val.json"):
        (tmp_path / "run" / name).rmdir()
    run(evaluator, tmp_path, step=6)
    evaluator.unwritten.check()  # that of the last evaluation counts


def test_the_server_gets_no_file_that_is_not_there(make, tmp_path, capsys):
    write_set(tmp_path, "val", edit=lambda content: content.pop("annotations"))
    (tmp_path / "run" / "bbox_val_results.json").mkdir(parents=True)
    assert run(make("val"), tmp_path) == []
    printed = capsys.readouterr().out
    assert "so there is no AP" in printed and "for the server" not in printed


def test_proposals_that_cannot_be_written_cost_no_recall(make, tmp_path, capsys):
    write_set(tmp_path, "val")
    (tmp_path / "run" / "rpn_proposals_val.npz").mkdir(parents=True)
    evaluator = make("val", model={"rpn_only": True})
    (row,) = run(evaluator, tmp_path)
    assert row["eval/AR@10"] == pytest.approx(1)
    printed = capsys.readouterr().out
    assert "4 images of val" in printed and "proposals in" not in printed
    with pytest.raises(UserError, match=r"rpn_proposals_val\.npz \(Is a directory\)"):
        evaluator.unwritten.check()


@pytest.fixture
def saved(monkeypatch):
    """Runs have weights, though none were written."""

    class Saved:
        def __init__(self, *_, **options):
            pass

        __enter__, __exit__ = lambda self: self, lambda *_: None
        restore_variables, chosen = (lambda *_, **options: {}), lambda self: 5

    monkeypatch.setattr(evaluate, "Checkpoints", Saved)


def test_the_command_ends_with_an_error_after_all_numbers(make, saved, tmp_path, capsys):
    write_set(tmp_path, "val")
    (tmp_path / "run" / "thresholds_val.json").mkdir(parents=True)
    evaluator = make("val")
    evaluator.detector.network.variable_shapes = dict
    config = small_config(tmp_path, ("val",))
    for _ in range(2):  # the second time the training has just evaluated this step
        with pytest.raises(UserError, match=r"cannot be written: .*thresholds_val\.json"):
            evaluate.evaluate(config, str(tmp_path / "run"), evaluator)
    assert "copypaste: Dataset: val" in capsys.readouterr().out
    assert (tmp_path / "run" / "curves.png").is_file()


def test_an_evaluation_beside_a_training_run_leaves_its_page_going_on(make, saved, tmp_path):
    write_set(tmp_path, "val")
    config = small_config(tmp_path, ("val",))
    config.log.report = True
    index = tmp_path / "run" / "index.html"

    def evaluated():
        evaluator = make("val")
        evaluator.detector.network.variable_shapes = dict
        evaluate.evaluate(config, str(tmp_path / "run"), evaluator)
        return index.read_text()

    with run_lock(tmp_path / "run"):
        page = evaluated()
        assert "The run is training" in page and 'http-equiv="refresh"' in page
        assert (tmp_path / "run" / "lock").is_file()
    (tmp_path / "run" / "lock").write_text("process 1, which was killed\n")
    page = evaluated()
    assert "was not training" in page and "refresh" not in page


def test_rows_name_the_options_that_differ_from_the_runs(make, tmp_path):
    write_set(tmp_path, "val")
    keep_config(tmp_path / "run", small_config(tmp_path, ("val",)).to_dict(), resuming=False)
    run(make("val"), tmp_path)
    assert "options" not in read_metrics(tmp_path / "run")[-1]
    run(make("val", test={"nms": 0.75, "diou_nms": {"beta1": math.inf}}), tmp_path)
    own, row = read_metrics(tmp_path / "run")
    assert "options" not in own and row["options"] == {"test.nms": 0.75, "test.diou_nms.beta1": "inf"}
    config = with_given_options(restore_config(tmp_path / "run"), row)
    assert (config.test.nms, config.test.diou_nms.beta1, config.test.datasets) == (0.75, math.inf, ("val",))
