"""Golden files: the evaluation of toy_dataset, and its results file."""

import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diou_jax.errors import UserError
from diou_jax.evaluation.coco_results import STATISTICS, evaluate, report, to_results, write_results

CATEGORY_IDS = (-1, 1, 3, 18, 90)


def toy_results(data, image_ids=(72, 79, 86, 93, 100)):
    rows = data["eval/dets_imgindex_class_box_score"]
    results = []
    for index, image_id in enumerate(image_ids):
        mine = rows[rows[:, 0] == index]
        results += to_results(
            mine[:, 2:6], mine[:, 6], mine[:, 1].astype(int), image_id=image_id, category_ids=CATEGORY_IDS
        )
    return results


def by_class(results):
    """The original writes class after class."""
    return sorted(results, key=lambda result: (result["category_id"], result["image_id"]))


def write(path, images=("a",), categories=((5, "cup"),), **content):
    content = {"images": [{"id": i} for i in images], "annotations": []} | content
    content["categories"] = [{"id": i, "name": name} for i, name in categories]
    path.write_text(json.dumps(content))
    return str(path)


def box(image_id="a", category_id=5, bbox=(10, 10, 20, 20), **fields):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), **fields}


def test_results_equal_the_original_to_the_last_bit(golden, golden_path, tmp_path):
    data = golden("toy_dataset.npz")
    write_results(tmp_path / "results.json", toy_results(data))
    ours = by_class(json.loads((tmp_path / "results.json").read_text()))
    assert ours == json.loads((golden_path("toy") / "bbox_results.json").read_text())
    rows = [[r["image_id"], r["category_id"], *r["bbox"], r["score"]] for r in ours]
    np.testing.assert_array_equal(np.float32(rows)[:40], data["eval/first_results"])


def test_the_file_depends_on_the_detections_alone(golden, tmp_path):
    results = toy_results(golden("toy_dataset.npz"), image_ids=(10, 9, "b", "a", 100))
    first, second, empty = (tmp_path / name for name in ("1.json", "2.json", "3.json"))
    write_results(first, results)
    write_results(second, by_class_of_image(results))
    assert first.read_bytes() == second.read_bytes()
    written = json.loads(first.read_text())
    assert list(dict.fromkeys(result["image_id"] for result in written)) == [9, 10, 100, "a", "b"]
    assert len(first.read_text().splitlines()) == len(results) + 2
    write_results(empty, [])
    assert json.loads(empty.read_text()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.json", "2.json", "3.json"]


def by_class_of_image(results):
    """The images in another order, each one's results as they are."""
    return sorted(results, key=lambda result: str(result["image_id"])[::-1])


def test_statistics_equal_the_original(golden, golden_path):
    data = golden("toy_dataset.npz")
    file = golden_path("toy") / "ann.json"
    summary = evaluate(toy_results(data), [file])
    assert tuple(summary.statistics) == STATISTICS
    np.testing.assert_array_equal(np.float32(list(summary.statistics.values())), data["eval/coco_stats"])
    theirs = json.loads((golden_path("toy") / "bbox_results.json").read_text())
    assert evaluate(theirs, [file]) == summary


def test_what_is_printed(golden, golden_path):
    summary = evaluate(toy_results(golden("toy_dataset.npz")), [golden_path("toy") / "ann.json"])
    lines = report("toy", [summary]).splitlines()
    assert lines[0] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.090"
    assert lines[11] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = -1.000"
    assert [line.split()[0] for line in lines[14:18]] == ["person", "car", "dog", "toothbrush"]
    assert lines[-4:] == [
        "copypaste: Dataset: toy",
        "copypaste: Task: box",
        "copypaste: AP,AP50,AP75,APs,APm,APl",
        "copypaste: 0.0902,0.2373,0.0345,0.0902,-1.0000,-1.0000",
    ]


def test_nothing_but_the_caller_prints(golden_path, capfd):
    evaluate([], [golden_path("toy") / "ann.json"])
    assert capfd.readouterr() == ("", "")


def test_classes_average_to_the_whole(golden, golden_path):
    summary = evaluate(toy_results(golden("toy_dataset.npz")), [golden_path("toy") / "ann.json"])
    ap, ap50 = (np.array([getattr(row, name) for row in summary.classes]) for name in ("ap", "ap50"))
    assert ap.mean() == pytest.approx(summary.statistics["AP"], abs=1e-12)
    assert ap50.mean() == pytest.approx(summary.statistics["AP50"], abs=1e-12)
    # 25 annotations, two of them crowds; COCOeval heeds neither "ignore" nor an area of zero.
    assert [row.objects for row in summary.classes] == [10, 2, 7, 4]


def test_metrics_say_nan_where_nothing_can_be_measured(tmp_path):
    file = write(tmp_path / "a.json", categories=[(5, "cup"), (7, "hat")], annotations=[box(id=1)])
    metrics = evaluate([box(score=0.9)], [file]).metrics()
    assert metrics["eval/AP"] == metrics["eval/APs"] == metrics["eval/AP/cup"] == pytest.approx(1)
    assert math.isnan(metrics["eval/APl"]) and math.isnan(metrics["eval/AP/hat"])
    assert set(metrics) == {f"eval/{name}" for name in STATISTICS} | {"eval/AP/cup", "eval/AP/hat"}


def test_classes_of_one_name_are_told_apart(tmp_path):
    file = write(tmp_path / "a.json", categories=[(5, "cup"), (7, "cup")], annotations=[box(id=1)])
    assert [row.name for row in evaluate([], [file]).classes] == ["cup (5)", "cup (7)"]


def test_the_ground_truth_itself_is_perfect_and_no_result_scores_zero(golden_path):
    file = golden_path("toy") / "ann.json"
    truth = json.loads(file.read_text())["annotations"]
    solid = [a for a in truth if not a["iscrowd"] and all(a["bbox"][2:])]
    perfect = [box(a["image_id"], a["category_id"], a["bbox"], score=1.0) for a in solid]
    person, *others = evaluate(perfect, [file]).classes
    assert [row.ap for row in others] == pytest.approx([1, 1, 1])
    # The box of one in ten is empty, so nothing can overlap it; of the 101 recalls, 91 lie at or below 0.9.
    assert person.ap == pytest.approx(91 / 101)
    nothing = evaluate([], [file])
    assert nothing.statistics["AP"] == nothing.statistics["AR100"] == 0
    assert [row.ap for row in nothing.classes] == [0, 0, 0, 0]


def test_neither_truth_nor_results(tmp_path):
    summary = evaluate([], [write(tmp_path / "a.json")])
    assert set(summary.statistics.values()) == {-1}
    assert math.isnan(summary.metrics()["eval/AP"]) and "nan" in report("nothing", [summary])


@pytest.mark.parametrize(
    ("annotation", "ap"),
    [
        (box(id=0), 1),  # COCOeval takes a match with id 0 for none
        (box(), 1),
        (box(id=1, area=None, iscrowd=None), 1),
        (box(id=1, area=5000.0), 1),
        (box(id=1, iscrowd=1), -1),
        (box(id=1, iscrowd=True), -1),
    ],
)
def test_lacking_fields_are_filled_in(tmp_path, annotation, ap):
    file = write(tmp_path / "a.json", annotations=[annotation])
    summary = evaluate([box(score=0.9)], [file])
    assert summary.statistics["AP"] == pytest.approx(ap)
    assert summary.statistics["APm" if annotation.get("area") else "APs"] == pytest.approx(ap)


@pytest.mark.parametrize(
    "useless",
    [{"id": 1}, box(bbox=(1, 2, 3)), box(bbox=(1, 2, 3, math.nan)), box("z"), box(["a"]), box(category_id=9)],
)
def test_annotations_that_cannot_count_do_not(tmp_path, useless):
    file = write(tmp_path / "a.json", annotations=[useless, box(id=1)])
    assert evaluate([box(score=0.9)], [file]).statistics["AP"] == pytest.approx(1)


@pytest.mark.parametrize("ids", [(1, 2), ("1", "2"), ("b", 3), (2**70, -4)])
def test_image_ids_of_any_kind(tmp_path, ids):
    truth = [box(i, id=1) for i in ids]
    file = write(tmp_path / "a.json", images=ids, annotations=truth)
    summary = evaluate([box(i, score=0.9) for i in ids], [file])
    assert summary.statistics["AP"] == pytest.approx(1)
    # A box in the right place of the wrong image is wrong.
    assert evaluate([box(ids[0], score=0.9)] * 2, [file]).statistics["AR100"] == pytest.approx(0.5)


def test_several_files_are_one(tmp_path):
    # Both number their annotations from 1.
    files = [write(tmp_path / f"{i}.json", images=[i], annotations=[box(i, id=1)]) for i in ("a", "b")]
    summary = evaluate([box("a", score=0.9), box("b", score=0.8)], files)
    assert summary.statistics["AP"] == pytest.approx(1)
    assert summary.classes[0].objects == 2


def test_only_the_images_that_count_count(tmp_path):
    file = write(tmp_path / "a.json", images=["a", "b", "c"], annotations=[box("a", id=1), box("b", id=2)])
    results = [box("a", score=0.9), box("c", score=0.99)]
    assert evaluate(results, [file]).statistics["AP"] < 0.5
    assert evaluate(results, [file], ["a"]).statistics["AP"] == pytest.approx(1)
    assert evaluate(results, [file], ["c"]).statistics["AP"] == -1


def test_results_are_left_as_they_are(tmp_path):
    results = [box(score=0.9)]
    evaluate(results, [write(tmp_path / "a.json", annotations=[box(id=1)])])
    assert results == [box(score=0.9)]


@pytest.mark.parametrize(
    ("result", "word"), [(box("nowhere", score=1.0), "image 'nowhere'"), (box(category_id=3, score=1.0), "category 3")]
)
def test_a_result_of_something_unknown_is_refused(tmp_path, result, word):
    with pytest.raises(UserError, match=word):
        evaluate([box(score=0.5), result], [write(tmp_path / "a.json")])


def test_files_that_contradict_each_other_are_refused(tmp_path):
    a = write(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"image 'a' is in .*a\.json and in .*b\.json"):
        evaluate([], [a, write(tmp_path / "b.json")])
    with pytest.raises(UserError, match=r"c\.json: category 5 is 'hat', elsewhere it is 'cup'"):
        evaluate([], [a, write(tmp_path / "c.json", images=["c"], categories=[(5, "hat")])])


def test_the_lines_are_pycocotools_own(golden, golden_path, capsys):
    file, results = golden_path("toy") / "ann.json", toy_results(golden("toy_dataset.npz"))
    truth = COCO(str(file))
    theirs = COCOeval(truth, truth.loadRes(results), "bbox")
    theirs.evaluate()
    theirs.accumulate()
    capsys.readouterr()
    theirs.summarize()
    ours = evaluate(results, [file])
    assert list(ours.lines) == capsys.readouterr().out.splitlines()
    assert list(ours.statistics.values()) == theirs.stats.tolist()


def test_as_many_detections_count_as_max_dets_says(tmp_path, caplog):
    boxes = [box(bbox=(n % 20 * 50, n // 20 * 60, 30, 30)) for n in range(300)]
    file = write(tmp_path / "a.json", annotations=boxes)
    results = [one | {"score": 0.9} for one in boxes]
    limited = evaluate(results, [file])
    assert limited.statistics["AP"] == pytest.approx(34 / 101)  # recall 1/3 reaches 34 of the 101 recalls
    assert "1 images have up to 300 objects of a class; test.max_dets=100" in caplog.text
    caplog.clear()
    whole = evaluate(results, [file], max_dets=300)
    assert whole.statistics["AP"] == whole.statistics["AR300"] == pytest.approx(1)
    assert "AR100" not in whole.statistics and "maxDets=300 ] = 1.000" in whole.lines[0]
    assert not caplog.text


def test_results_of_unknown_images_are_named_with_some_that_are_known(tmp_path):
    file = write(tmp_path / "a.json", images=("a", "b", 3, 4))
    with pytest.raises(
        UserError, match=r"1 are of an image that .* the first of image 9; the files list 'a', 'b', 3, …:"
    ):
        evaluate([box(9, score=0.5)], [file])
    with pytest.raises(UserError, match=r"1 are of a category that .* of category 7; the files list 5: evaluate"):
        evaluate([box("a", category_id=7, score=0.5)], [file])


def test_areas_and_flags_of_a_results_file_do_not_count(tmp_path):
    # pycocotools' loadRes adds such fields, and programs write them out again.
    medium = box(bbox=(50, 50, 40, 40))
    file = write(tmp_path / "a.json", annotations=[box(id=1), medium | {"id": 2}])
    results = [one | {"score": 0.5} for one in (box(), medium)] + [box(bbox=(200, 200, 10, 10), score=0.9)]
    expected = evaluate(results, [file]).statistics
    assert expected["APs"] < expected["APm"], "the false detection is small"
    for fields in ({"area": 1600.0}, {"area": None}, {"iscrowd": 1}, {"iscrowd": None, "id": 0, "ignore": 1}):
        assert evaluate([one | fields for one in results], [file]).statistics == expected
