"""The thresholds with the best F1, by hand."""

import json

import numpy as np
import pytest

from diou_jax.evaluation import coco_results
from diou_jax.evaluation.thresholds_file import write_thresholds

BOX = [10, 10, 20, 20]


def test_the_thresholds_keep_what_has_the_best_f1(tmp_path):
    """Two discs, the second found below a false alarm; a square found last; a star without a right detection."""
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 99, "width": 99} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 400},
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": BOX, "area": 400},
            {"id": 3, "image_id": 1, "category_id": 2, "bbox": BOX, "area": 400},
            {"id": 4, "image_id": 1, "category_id": 3, "bbox": BOX, "area": 400},
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("disc", "square", "star", "none"), 1)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    away = [60, 60, 20, 20]
    found = [
        (1, 1, BOX, 0.9),
        (1, 1, away, 0.8),
        (2, 1, BOX, 0.7),
        (2, 1, away, 0.3),
        (1, 2, away, 0.6),
        (1, 2, BOX, 0.2),
        (1, 3, away, 0.9),
    ]
    results = [
        {"image_id": image, "category_id": label, "bbox": box, "score": float(np.float32(score))}
        for image, label, box, score in found
    ]
    matches = coco_results.evaluate(results, [tmp_path / "truth.json"], with_matches=True).matches
    write_thresholds(tmp_path / "thresholds.json", matches)
    written = json.loads((tmp_path / "thresholds.json").read_text())
    # F1 of the discs is 2/3, 1/2, 4/5, 2/3 after each detection.
    assert written == {"disc": pytest.approx(0.7), "square": pytest.approx(0.2)}
    for name, least in (("disc", 0.7), ("square", 0.2)):
        assert np.float32(least) > np.float32(written[name]) and np.float32(least) > written[name]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["thresholds.json", "truth.json"]
