"""The "segmentation" of annotations as outlines, faulty ones and run lengths included."""

import json

import numpy as np
import pytest
from conftest import find_golden
from test_outlines import of_set, same
from test_rings import fill
from test_rle import encoded, runs_of

from diou_jax.data import coco, segmentation
from diou_jax.data.simplification import simplify

HEIGHT, WIDTH = 40, 60
TRIANGLE = [10, 10, 20.5, 10, 10, 20]
OTHER = [30, 30, 40, 30, 35, 38]
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[5:20, 10:30] = True
MASK[10:15, 15:20] = False
RUNS = {"size": [HEIGHT, WIDTH], "counts": runs_of(MASK)}
TEXT = {"size": [HEIGHT, WIDTH], "counts": encoded(MASK).decode()}


def read(*values):
    """The outlines of objects in an image, and by kind of fault the objects that have it."""
    outlines, faults = segmentation.read(values, np.full(len(values), HEIGHT), np.full(len(values), WIDTH))
    return outlines, {kind: np.flatnonzero(rows).tolist() for kind, rows in faults.items() if rows.any()}


def points(*parts):
    return [np.reshape(part, (-1, 2)) for part in parts]


@pytest.mark.parametrize(
    "value",
    [
        [TRIANGLE],
        [TRIANGLE, OTHER],
        [[str(number) for number in TRIANGLE]],
        [[-5, -5, 70.25, 3, 20, 45]],
        [[1, 1, 9, 9, 9, 1, 1, 9]],
        [[5, 5, 5, 5, 5, 5]],
        [[-30, -30, -20, -30, -20, -20], TRIANGLE],
        [[0, 0, 2**70 // 2**70, 0, 10**0, 10]],
    ],
    ids=["one", "two", "strings", "partly outside", "crossing itself", "a point", "one part outside", "integers"],
)
def test_legal_polygons_stay_what_they_are(value):
    outlines, faults = read([OTHER], value)
    same(outlines, [points(OTHER), points(*[[float(number) for number in part] for part in value])])
    assert not faults


def test_short_parts_are_left_out_as_in_the_original():
    outlines, faults = read([TRIANGLE, [1, 2, 3, 4], []], [[1, 2, 3]], [OTHER])
    same(outlines, [points(TRIANGLE), [], points(OTHER)])
    assert faults == {segmentation.SHORT: [0, 1]}


@pytest.mark.parametrize(
    "value, kind",
    [
        (None, segmentation.MISSING),
        ([], segmentation.MISSING),
        ([TRIANGLE, [*TRIANGLE, 1]], segmentation.ODD),
        ([[*TRIANGLE, float("nan"), 1]], segmentation.NOT_FINITE),
        ([TRIANGLE, [*OTHER, 1, float("-inf")]], segmentation.NOT_FINITE),
        ([[*TRIANGLE, 10**400, 1]], segmentation.NOT_FINITE),
        ([[*TRIANGLE, None, 1]], segmentation.NOT_FINITE),
        ([[*TRIANGLE, True, 1]], segmentation.NOT_FINITE),
        ([[*TRIANGLE, "x", 1]], segmentation.NOT_FINITE),
        ([[*TRIANGLE, [1], 1]], segmentation.NOT_FINITE),
        ([[60, 1, 70, 1, 65, 9]], segmentation.OUTSIDE),
        ([[1, -9, 9, -9, 5, 0]], segmentation.OUTSIDE),
        ([[1, 1, 9, 9, 1e300, 5]], segmentation.FAR),
        ([[1, 1, 9, 9, 5, -41]], segmentation.FAR),
        (TRIANGLE, segmentation.UNKNOWN),
        ("RLE", segmentation.UNKNOWN),
        (5, segmentation.UNKNOWN),
        ([[TRIANGLE[:2], TRIANGLE[2:4], TRIANGLE[4:]], "x"], segmentation.UNKNOWN),
        ({}, segmentation.UNKNOWN),
        ({"size": [HEIGHT, WIDTH]}, segmentation.UNKNOWN),
        (RUNS | {"size": None}, segmentation.UNKNOWN),
        (RUNS | {"size": [WIDTH, HEIGHT]}, segmentation.OTHER_SIZE),
        (RUNS | {"size": [HEIGHT]}, segmentation.OTHER_SIZE),
        (RUNS | {"size": [HEIGHT, "x"]}, segmentation.OTHER_SIZE),
        (RUNS | {"counts": None}, segmentation.NO_RUNS),
        (RUNS | {"counts": RUNS["counts"][:-1]}, segmentation.NO_RUNS),
        (RUNS | {"counts": [-1, HEIGHT * WIDTH + 1]}, segmentation.NO_RUNS),
        (TEXT | {"counts": TEXT["counts"][:-1]}, segmentation.NO_RUNS),
        (TEXT | {"counts": "é"}, segmentation.NO_RUNS),
        (RUNS | {"counts": [HEIGHT * WIDTH]}, segmentation.NO_PIXEL),
    ],
)
def test_a_faulty_mask_is_none_and_has_one_reason(value, kind):
    outlines, faults = read([OTHER], value, [TRIANGLE])
    same(outlines, [points(OTHER), [], points(TRIANGLE)])
    assert faults == {kind: [1]}


@pytest.mark.parametrize("value", [RUNS, TEXT, TEXT | {"counts": encoded(MASK)}, RUNS | {"size": ["40", 60.0]}])
def test_run_lengths_become_the_outline_of_their_mask(value):
    outlines, faults = read([OTHER], value)
    assert not faults
    np.testing.assert_array_equal(fill(outlines.of(1), (HEIGHT, WIDTH)), MASK)


def target(parts, box, cells=28):
    """The mask that a RoI learns, by the original's arithmetic and pycocotools' filling."""
    corner, side = np.float32(box[:2]), np.maximum(np.float32(box[2:]) - np.float32(box[:2]), np.float32(1))
    return fill([(part.astype(np.float32) - corner) * np.float32(cells) / side for part in parts], (cells, cells))


def golden_polygons():
    """Objects as (parts, height, width) from mask_targets_paste_loss.npz and toy2."""
    with np.load(find_golden("mask_targets_paste_loss.npz", "golden2")) as file:
        size = file["full/size"].tolist()
    content = json.loads((find_golden("toy2", "golden2") / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    toy = [
        (points(*[part for part in entry["segmentation"] if len(part) >= 6]), *sizes[entry["image_id"]])
        for entry in content["annotations"]
        if isinstance(entry["segmentation"], list)
    ]
    return [(parts, *size) for parts in of_set("poly")], toy


def differences(objects, scale):
    """IoU and share of other cells between the masks learned from polygons and from their run lengths, by object.

    The RoI is the polygons' box, cut off at the image, outside which run lengths have nothing to say.
    """
    for parts, height, width in objects:
        parts, height, width = [part * scale for part in parts], height * scale, width * scale
        mask = fill(parts, (height, width))
        if not mask.any():
            continue
        runs = {"size": [height, width], "counts": encoded(mask)}
        outlines, faults = segmentation.read([runs], np.array([height]), np.array([width]))
        assert not any(rows.any() for rows in faults.values())
        vertices = np.concatenate(parts)
        box = [*np.maximum(vertices.min(0), 0), *np.minimum(vertices.max(0), [width, height])]
        one, other = target(parts, box), target(outlines.of(0), box)
        yield (one & other).sum() / max((one | other).sum(), 1), (one ^ other).mean(), outlines.sizes[0]


# The rows of the table in docs/own_data.md.
@pytest.mark.parametrize(
    "name, scale, iou, cells",
    [("golden", 1, 0.957, 0.0174), ("golden", 3, 0.977, 0.0103), ("toy", 1, 0.919, 0.0561), ("toy", 3, 0.969, 0.0205)],
)
def test_the_error_of_run_lengths_is_the_one_stated(name, scale, iou, cells):
    golden, toy = golden_polygons()
    found = np.array(list(differences(golden if name == "golden" else toy, scale)))
    assert len(found) == (47 if name == "golden" else 15)
    assert found[:, 0].mean() == pytest.approx(iou, abs=0.001)
    assert found[:, 1].mean() == pytest.approx(cells, abs=0.0005)


def test_the_vertices_of_real_masks_are_those_stated(real_data, tmp_path):
    """The figures of docs/own_data.md and `outlines.MOST_VERTICES`: COCO128, 738 masks as run lengths."""
    found = real_data("coco128") / "annotations" / "instances_train2017.json"
    outlines = coco.load(found, tmp_path, masks=True).records.outlines
    sizes = outlines.sizes[outlines.sizes > 0]
    assert (len(sizes), (sizes > 256).sum(), (sizes > 128).sum()) == (738, 2, 39)
    assert sizes.mean() == pytest.approx(46.1, abs=0.1)
    overlaps = []
    for row in np.flatnonzero(outlines.sizes > 128).tolist():
        exact, simple = outlines.of(row), simplify(outlines.of(row), 128)
        vertices = np.concatenate(exact)
        box = [*vertices.min(0), *vertices.max(0)]
        one, other = target(exact, box), target(simple, box)
        overlaps.append((one & other).sum() / (one | other).sum())
    assert np.mean(overlaps) > 0.97 and min(overlaps) > 0.9
