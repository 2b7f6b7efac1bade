import json
import sys
import types

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from diou_jax.errors import UserError
from diou_jax.prediction.result import Result

SIZE = (120, 160)
BOXES = np.array([[2, 3, 11, 7], [0, 0, 29, 19]], np.float32)


def encoded(box):
    x1, y1, x2, y2 = box.astype(int)
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    rle = coco_mask.encode(mask)
    return {"size": [*SIZE], "counts": rle["counts"].decode()}


@pytest.fixture
def result():
    return Result(
        BOXES,
        np.array([0.9, 0.25], np.float32),
        np.array([3, 1], np.int32),
        names=("dog", "cat"),
        size=SIZE,
        rles=tuple(map(encoded, BOXES)),
        category_ids=(18, 17),
    )


@pytest.fixture
def bare(result):
    return Result(**{**vars(result), "rles": None})


def test_coco_results_are_plain_values_with_both_border_pixels(result, bare):
    first, second = result.to_coco("photo 7")
    assert first == {
        "image_id": "photo 7",
        "category_id": 18,
        "bbox": [2, 3, 10, 5],
        "score": float(np.float32(0.9)),
        "segmentation": encoded(BOXES[0]),
    }
    assert second["bbox"] == [0, 0, 30, 20] and second["category_id"] == 17
    assert json.loads(json.dumps(result.to_coco(3)))[0]["image_id"] == 3
    assert coco_mask.area(first["segmentation"]) == 50
    assert "segmentation" not in bare.to_coco(1)[0]


def test_a_table_of_pandas(result, bare):
    pandas = pytest.importorskip("pandas")
    table = bare.to_pandas()
    wanted = {"x1": [2.0, 0.0], "y1": [3.0, 0.0], "x2": [11.0, 29.0], "y2": [7.0, 19.0]}
    wanted |= {"score": np.float32([0.9, 0.25]), "class": np.int32([3, 1]), "name": ["dog", "cat"]}
    expected = pandas.DataFrame(wanted | {"category_id": [18, 17]}).astype(
        dict.fromkeys(("x1", "y1", "x2", "y2"), "f4")
    )
    pandas.testing.assert_frame_equal(table, expected)
    assert result.to_pandas()["rle"].tolist() == list(result.rles)


def test_detections_of_supervision(result, bare, monkeypatch):
    """The package is an extra; with it in the place of this double the fields are the same."""
    try:
        import supervision
    except ImportError:
        supervision = types.SimpleNamespace(Detections=lambda **fields: types.SimpleNamespace(**fields))
        monkeypatch.setitem(sys.modules, "supervision", supervision)
    found = result.to_supervision()
    np.testing.assert_array_equal(found.xyxy, [[2, 3, 12, 8], [0, 0, 30, 20]])
    assert found.class_id.tolist() == [2, 0] and found.data["class_name"].tolist() == ["dog", "cat"]
    np.testing.assert_array_equal(found.confidence, result.scores)
    assert found.mask.sum((1, 2)).tolist() == [50, 600]
    assert bare.to_supervision().mask is None


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_a_missing_package_is_named_with_its_extra(result, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'diou-jax\[{package}\]'"):
        getattr(result, f"to_{package}")()


def test_a_drawing_has_the_size_and_colours_of_its_image(result, bare, tmp_path):
    image = np.zeros((*SIZE, 3), np.uint8)
    picture = result.draw(image)
    assert picture.shape == image.shape and (image == 0).all() and picture.any()
    np.testing.assert_array_equal(result.draw(image, color="rgb"), picture[..., ::-1])
    cv2.imwrite(str(tmp_path / "a.png"), image)
    np.testing.assert_array_equal(result.draw(tmp_path / "a.png"), picture)
    assert (bare.draw(image) != picture).any(), "masks are drawn"
    one = bare.draw(image, score_threshold=0.5)
    assert (one != bare.draw(image)).any() and not bare.draw(image, score_threshold=0.9).any()
    assert max(bare.draw(image, enlarge=True).shape) >= 720
    with pytest.raises(UserError, match="has 161x120 pixels, but these are detections in an image of 160x120"):
        result.draw(np.zeros((120, 161, 3), np.uint8))
