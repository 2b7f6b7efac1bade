"""Golden file: toy_dataset, its evaluation."""

import json

import numpy as np
import pytest

from diou_jax.coco_results import STATISTICS, evaluate, to_results, write_results

CATEGORY_IDS = (-1, 1, 3, 18, 90)
IMAGE_IDS = [72, 79, 86, 93, 100]


def toy_results(data):
    rows = data["eval/dets_imgindex_class_box_score"]
    results = []
    for label in range(1, 5):  # the original writes class after class
        for index, image_id in enumerate(IMAGE_IDS):
            mine = rows[(rows[:, 0] == index) & (rows[:, 1] == label)]
            results += to_results(
                mine[:, 2:6], mine[:, 6], np.full(len(mine), label), image_id=image_id, category_ids=CATEGORY_IDS
            )
    return results


def test_the_results_file_equals_the_original(golden, golden_path, tmp_path):
    write_results(tmp_path / "results.json", toy_results(golden("toy_dataset.npz")))
    ours = json.loads((tmp_path / "results.json").read_text())
    assert ours == json.loads((golden_path("toy") / "bbox_results.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_the_twelve_numbers_equal_the_original(golden, golden_path):
    data = golden("toy_dataset.npz")
    summary = evaluate(toy_results(data), [str(golden_path("toy") / "ann.json")], IMAGE_IDS)
    np.testing.assert_allclose(list(summary.statistics.values()), data["eval/coco_stats"], atol=1e-6)
    assert len(summary.lines) == 12
    report = summary.report("toy")
    assert "copypaste: AP,AP50,AP75,APs,APm,APl" in report
    assert "copypaste: 0.0902,0.2373,0.0345,0.0902,-1.0000,-1.0000" in report
    by_class = [row.ap for row in summary.classes]
    assert np.nanmean(by_class) == pytest.approx(summary.statistics["AP"], abs=1e-9)
    assert [row.name for row in summary.classes] == ["person", "car", "dog", "toothbrush"]
    assert summary.metrics()["eval/AP/car"] == by_class[1]


def test_the_ground_truth_itself_scores_nearly_one_and_nothing_scores_zero(golden_path):
    file = golden_path("toy") / "ann.json"
    truth = json.loads(file.read_text())["annotations"]
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
        for a in truth
        if not a["iscrowd"]
    ]
    # Not one: the file holds identical and empty boxes, which no detector could tell apart.
    assert evaluate(perfect, [str(file)], IMAGE_IDS).statistics["AP"] > 0.95
    assert evaluate([], [str(file)], IMAGE_IDS).statistics["AP"] == 0


def small_truth(**changes):
    annotation = {"id": 0, "image_id": "a", "category_id": 5, "bbox": [10, 10, 20, 20]} | changes
    return {"images": [{"id": "a"}, {"id": "b"}], "annotations": [annotation], "categories": [{"id": 5, "name": "x"}]}


def test_files_that_lack_fields_and_number_from_zero_are_read(tmp_path):
    """pycocotools takes a match with annotation 0 for none, and needs area and iscrowd."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps(small_truth()))
    results = [{"image_id": "a", "category_id": 5, "bbox": [10, 10, 20, 20], "score": 0.9}]
    assert evaluate(results, [str(file)], ["a", "b"]).statistics["AP"] == pytest.approx(1)


def test_several_files_are_one(tmp_path):
    other = small_truth(image_id="c")
    other["images"] = [{"id": "c"}]
    files = []
    for name, content in (("a", small_truth()), ("c", other)):
        (tmp_path / name).write_text(json.dumps(content))
        files.append(str(tmp_path / name))
    results = [{"image_id": "a", "category_id": 5, "bbox": [10, 10, 20, 20], "score": 0.9}]
    summary = evaluate(results, files, ["a", "b", "c"])
    assert summary.statistics["AR100"] == pytest.approx(0.5)
    assert summary.classes[0].boxes == 2
    assert np.isnan(evaluate([], files, ["b"]).classes[0].ap)
