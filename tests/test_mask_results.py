"""The evaluation of masks, against the original's numbers and pycocotools' own; ground truth of any quality."""

import json
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import find_golden
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diou_jax import masks
from diou_jax.errors import UserError
from diou_jax.evaluation import true_masks
from diou_jax.evaluation.coco_results import STATISTICS, evaluate, report, to_mask_results, write_results

CATEGORY_IDS = (-1, 1, 3, 18)
SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


@pytest.fixture(scope="module")
def toy():
    """The original's detections with masks, its twelve numbers, and the annotation file."""
    file = find_golden("toy2", "golden2") / "instances.json"
    with np.load(find_golden("toy2_segm_kps.npz", "golden2")) as golden:
        rows, ids = golden["inst/eval/dets_imgindex_class_box_score"], golden["inst/eval/test_image_order"].tolist()
        counts = golden["inst/eval/rle_counts"].tolist()
        statistics = golden["inst/eval/coco_segm_stats_f64"]
    sizes = {image["id"]: [image["height"], image["width"]] for image in json.loads(file.read_text())["images"]}
    results = []
    for index, image_id in enumerate(ids):
        mine = np.flatnonzero(rows[:, 0] == index)
        rles = [masks.Rle(size=sizes[image_id], counts=counts[row]) for row in mine]
        scores, classes = rows[mine, 6], rows[mine, 1].astype(int)
        results += to_mask_results(rles, scores, classes, image_id=image_id, category_ids=CATEGORY_IDS)
    return results, statistics, file


def test_statistics_equal_the_original(toy):
    results, statistics, file = toy
    summary = evaluate(results, [file], kind="segm")
    assert tuple(summary.statistics) == STATISTICS
    np.testing.assert_array_equal(list(summary.statistics.values()), statistics)


def test_lines_and_classes_are_pycocotools_own(toy, tmp_path, capsys):
    results, _, file = toy
    write_results(tmp_path / "results.json", results)
    truth = COCO(str(file))
    theirs = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "segm")
    theirs.evaluate()
    theirs.accumulate()
    capsys.readouterr()
    theirs.summarize()
    printed = capsys.readouterr().out.splitlines()
    ours = evaluate(json.loads((tmp_path / "results.json").read_text()), [file], kind="segm")
    assert list(ours.lines) == printed
    precision = theirs.eval["precision"][:, :, :, 0, -1]
    assert [row.ap for row in ours.classes] == [part[part > -1].mean() for part in np.moveaxis(precision, 2, 0)]
    assert [row.objects for row in ours.classes] == [5, 3, 7]
    assert capsys.readouterr() == ("", "")


def test_results_are_coco_s(toy, tmp_path):
    results, _, _ = toy
    write_results(tmp_path / "results.json", results)
    first = json.loads((tmp_path / "results.json").read_text())[0]
    assert set(first) == {"image_id", "category_id", "segmentation", "score"}
    assert set(first["segmentation"]) == {"size", "counts"} and isinstance(first["segmentation"]["counts"], str)


def test_report_has_both_tasks_under_one_data_set(toy):
    results, _, file = toy
    boxes = [
        {"image_id": r["image_id"], "category_id": r["category_id"], "score": r["score"]}
        | {"bbox": coco_mask.toBbox(r["segmentation"]).tolist()}
        for r in results
    ]
    of_boxes, of_masks = evaluate(boxes, [file]), evaluate(results, [file], kind="segm")
    lines = report("toy", [of_boxes, of_masks]).splitlines()
    assert [line for line in lines if line.startswith(" Average")] == [*of_boxes.lines, *of_masks.lines]
    values = [",".join(f"{s.statistics[name]:.4f}" for name in STATISTICS[:6]) for s in (of_boxes, of_masks)]
    assert lines[-7:] == [
        "copypaste: Dataset: toy",
        *("copypaste: Task: box", "copypaste: AP,AP50,AP75,APs,APm,APl", f"copypaste: {values[0]}"),
        *("copypaste: Task: mask", "copypaste: AP,AP50,AP75,APs,APm,APl", f"copypaste: {values[1]}"),
    ]
    assert values[1].startswith("0.1386,0.3958")
    rows = of_boxes.metrics() | of_masks.metrics()
    assert len(rows) == 2 * (12 + 3)
    assert rows["eval/segm/AP"] == pytest.approx(0.13862495, abs=1e-8) and rows["eval/AP"] != rows["eval/segm/AP"]
    names = {name for name in rows if "/segm/AP/" in name}
    assert names == {f"eval/segm/AP/{row.name}" for row in of_masks.classes}


def write(path, *objects, **image):
    """An annotation file of one image of 40 by 50 pixels with some objects."""
    fields = {"image_id": 7, "category_id": 5, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    content = {
        "images": [{"id": 7, "height": 40, "width": 50} | image],
        "categories": [{"id": 5, "name": "cup"}],
        "annotations": [fields | {"id": number} | one for number, one in enumerate(objects)],
    }
    path.write_text(json.dumps(content))
    return [path]


def found(mask, score=0.9):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    rle["counts"] = rle["counts"].decode()
    return {"image_id": 7, "category_id": 5, "segmentation": rle, "score": score}


def square(height=40, width=50):
    mask = np.zeros((height, width), bool)
    mask[10:30, 10:30] = True
    return mask


def compressed(mask):
    return found(mask)["segmentation"]


def listed(mask):
    lengths = masks.run_lengths(compressed(mask)["counts"]).tolist()
    return {"size": list(mask.shape), "counts": lengths}


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        [[str(value) for value in SQUARE[0]]],
        [*SQUARE, [1, 2]],  # a part of a point is left out
        [[10, 10, 20, 10, 20, 30, 10, 30], [20, 10, 30, 10, 30, 30, 20, 30]],
        compressed(square()),
        listed(square()),
        listed(square()) | {"size": [40.0, "50"]},
    ],
)
def test_a_perfect_mask_of_any_spelling(tmp_path, segmentation, caplog):
    file = write(tmp_path / "a.json", {"segmentation": segmentation})
    summary = evaluate([found(square())], file, kind="segm")
    assert summary.statistics["AP"] == pytest.approx(1)
    assert not caplog.text
    assert evaluate([found(~square())], file, kind="segm").statistics["AP"] == 0


BROKEN = [
    (None, "it has none"),
    ([], "it has none"),
    ([[]], "no part has three points"),
    ([[1, 2, 3, 4]], "no part has three points"),
    ("polygon", "neither a list of polygons nor an RLE"),
    ([1, 2, 3, 4, 5, 6], "neither a list of polygons nor an RLE"),
    ([[1, 2, 3, 4, 5, 6, 7]], "not pairs of finite numbers"),
    ([[1, 2, 3, 4, 5, math.nan]], "not pairs of finite numbers"),
    ([[1, 2, 3, 4, 5, None]], "not pairs of finite numbers"),
    ([[1, 2, 3, 4, 5, "wide"]], "no numbers"),
    ([[1, 2, 3, 4, 5, {}]], "no numbers"),
    ([[1, 2, 3, 4, 5, 10**400]], "no numbers"),
    ([[60, 5, 70, 5, 70, 9]], "its image is 50x40"),
    ([[5, 5, 1e9, 5, 5, 9]], "its image is 50x40"),
    ({}, "RLE of size None"),
    ({"counts": "aaa"}, "RLE of size None"),
    (compressed(square(30, 50)), r"RLE of size \[30, 50\], its image has \[40, 50\]"),
    ({"size": [40, 50], "counts": None}, "cannot be decoded"),
    ({"size": [40, 50], "counts": ""}, "cannot be decoded: it is empty"),
    ({"size": [40, 50], "counts": "no RLE"}, "cannot be decoded"),
    ({"size": [40, 50], "counts": "PPPP"}, "cannot be decoded: it breaks off"),
    ({"size": [40, 50], "counts": []}, "cannot be decoded"),
    ({"size": [40, 50], "counts": [1, -1, 2000]}, "cannot be decoded"),
    ({"size": [40, 50], "counts": [1, 10**30]}, "cannot be decoded"),
    ({"size": [40, 50], "counts": [100, 100]}, "200 pixels long, its image has 2000"),
    ({"size": [40, 50], "counts": [2000]}, "no pixel"),
]


@pytest.mark.parametrize(("segmentation", "reason"), BROKEN)
def test_an_object_without_a_usable_mask_is_a_region_to_ignore(tmp_path, segmentation, reason, caplog):
    good = {"segmentation": [[35, 5, 45, 5, 45, 15, 35, 15]], "bbox": [35, 5, 10, 10]}
    file = write(tmp_path / "a.json", {"segmentation": segmentation}, good)
    other = np.zeros((40, 50), bool)
    other[5:15, 35:45] = True
    # The detection in the region scores higher, and would halve the precision if it counted.
    summary = evaluate([found(square(), 0.95), found(other, 0.9)], file, kind="segm")
    assert summary.statistics["AP"] == pytest.approx(1) and summary.statistics["AR100"] == 1
    assert summary.classes[0].objects == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert "1 objects without a usable mask, regions to ignore" in line and "annotation 0 of image 7" in line
    with pytest.raises(true_masks.UnusableMaskError, match=reason):
        true_masks.of_segmentation(segmentation, height=40, width=50)
    # Boxes are evaluated as before.
    box = {"image_id": 7, "category_id": 5, "bbox": [10, 10, 20, 20], "score": 0.9}
    assert evaluate([box], file).classes[0].objects == 2


def test_one_line_counts_all_of_them(tmp_path, caplog):
    file = write(tmp_path / "a.json", *({"segmentation": segmentation} for segmentation, _ in BROKEN))
    summary = evaluate([found(square())], file, kind="segm")
    assert summary.statistics["AP"] == -1 and summary.classes[0].objects == 0
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        f"{len(BROKEN)} objects without a usable mask, regions to ignore in the evaluation of masks, the first"
    ]


@pytest.mark.parametrize(
    ("bbox", "rows", "columns"),
    [
        ([10, 5, 20, 15], slice(5, 20), slice(10, 30)),
        ([-5, 30, 20, 20], slice(30, 40), slice(0, 15)),
        ([10, 10, 1e300, 1e300], slice(10, 40), slice(10, 50)),
        ([-20, -20, 10, 10], slice(0), slice(0)),
        ([10, 10, 0, 0], slice(0), slice(0)),
    ],
)
def test_the_region_is_the_part_of_the_box_inside_the_image(tmp_path, bbox, rows, columns):
    mask = true_masks.of_box(bbox, height=40, width=50)
    wanted = np.zeros((40, 50), bool)
    wanted[rows, columns] = True
    np.testing.assert_array_equal(coco_mask.decode(mask), wanted)
    file = write(tmp_path / "a.json", {"segmentation": None, "bbox": bbox}, {"segmentation": SQUARE})
    assert evaluate([found(square())], file, kind="segm").statistics["AP"] == pytest.approx(1)


def test_masks_are_found_by_the_box_that_training_sees(tmp_path):
    hidden = {"segmentation": None, "bbox": [1, 1, 5, 5]}
    across = {"segmentation": SQUARE, "bbox": [-5, 10, 35, 100]}
    file = write(tmp_path / "a.json", {"segmentation": SQUARE}, hidden, across)
    masks_by_box = true_masks.by_box(file, {"7": (40, 50)})
    rle = compressed(square())
    assert masks_by_box == {(7, 10, 10, 29, 29): rle, (7, 0, 10, 29, 39): rle}
    assert true_masks.by_box(file, {8: (40, 50)}) == {}


def test_crowds_are_compared_by_their_masks(tmp_path):
    left = np.zeros((40, 50), bool)
    left[:, :25] = True
    crowd = {"segmentation": listed(left), "iscrowd": 1, "bbox": [0, 0, 25, 40], "area": 1000}
    file = write(tmp_path / "a.json", {"segmentation": SQUARE}, crowd)
    inside = np.zeros((40, 50), bool)
    inside[32:40, 2:20] = True
    outside = inside[:, ::-1]
    results = [found(square(), 0.5), found(inside, 0.9)]
    assert evaluate(results, file, kind="segm").statistics["AP"] == pytest.approx(1)
    assert evaluate([*results, found(outside, 0.9)], file, kind="segm").statistics["AP"] < 0.6


def test_sizes_follow_the_stated_area(tmp_path):
    file = write(tmp_path / "a.json", {"segmentation": SQUARE, "area": 5000})
    statistics = evaluate([found(square())], file, kind="segm").statistics
    assert statistics["APm"] == pytest.approx(1) and statistics["APs"] == -1
    # An unmatched detection counts by the pixels of its mask.
    small, noise = np.zeros((2, 40, 50), bool)
    small[:5, :5] = True
    noise[:, 20:] = True
    file = write(tmp_path / "a.json", {"segmentation": SQUARE, "area": 400})
    with_small = evaluate([found(square(), 0.5), found(small, 0.9)], file, kind="segm").statistics
    with_noise = evaluate([found(square(), 0.5), found(noise, 0.9)], file, kind="segm").statistics
    assert with_small["APs"] == pytest.approx(0.5) and with_noise["APs"] == pytest.approx(1)


def test_an_image_whose_size_the_file_does_not_state(tmp_path):
    file = write(tmp_path / "a.json", {"segmentation": SQUARE}, height=None)
    with pytest.raises(UserError, match="image 7: its height and width are needed"):
        evaluate([found(square())], file, kind="segm")
    summary = evaluate([found(square())], file, kind="segm", sizes={"7": (40, 50)})
    assert summary.statistics["AP"] == pytest.approx(1)


def test_no_results(tmp_path):
    file = write(tmp_path / "a.json", {"segmentation": SQUARE})
    assert evaluate([], file, kind="segm").statistics["AP"] == 0
    assert evaluate([], write(tmp_path / "a.json"), kind="segm").statistics["AP"] == -1


NUMBER = st.one_of(
    st.integers(-10, 70),
    st.floats(-10, 70),
    st.sampled_from([math.inf, -math.nan, 1e308, 10**400, "7", "x", None, True, -0.0, 1e-320]),
)
TEXT = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12)
COUNTS = st.one_of(st.none(), TEXT, st.lists(NUMBER, max_size=6), st.just([500, 1000, 500]), st.just(7))
SIZE = st.one_of(st.just([40, 50]), st.just([40.0, "50"]), st.lists(NUMBER, max_size=3), st.none())
SEGMENTATION = st.one_of(
    st.recursive(st.one_of(NUMBER, TEXT), lambda inner: st.lists(inner, max_size=8), max_leaves=30),
    st.lists(st.lists(st.floats(-60, 120), min_size=6, max_size=12), min_size=1, max_size=3),
    st.fixed_dictionaries({}, optional={"size": SIZE, "counts": COUNTS, "more": NUMBER}),
)


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(SEGMENTATION)
def test_any_json_is_a_mask_or_a_reason(segmentation):
    """A mask that is taken has runs that fill the image, so that pycocotools can do anything with it."""
    try:
        mask = true_masks.of_segmentation(segmentation, height=40, width=50)
    except true_masks.UnusableMaskError as reason:
        assert str(reason)
        return
    assert mask["size"] == [40, 50]
    assert masks.run_lengths(mask["counts"].decode()).sum() == 40 * 50


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(st.one_of(TEXT, st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=9)))
def test_strings_are_read_as_pycocotools_reads_them(text_or_lengths):
    """Lengths have five characters at most: pycocotools writes past its buffer if all have six."""
    if isinstance(text_or_lengths, str):
        try:
            lengths = masks.run_lengths(text_or_lengths)
        except ValueError:
            return
        text = text_or_lengths
    else:
        lengths = np.array(text_or_lengths)
        runs = {"size": [1, 1], "counts": lengths}
        text = coco_mask.frPyObjects([runs], 1, 1)[0]["counts"].decode()
        np.testing.assert_array_equal(masks.run_lengths(text), lengths)
    if lengths.max() < 2**28:  # pycocotools reads numbers of 30 bits
        assert coco_mask.area({"size": [1, 1], "counts": text}) == lengths[1::2].sum() % 2**32
