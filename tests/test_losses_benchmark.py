"""The comparison of the losses: its parts and its statistics over images; trainings are played."""

import copy
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_study_benchmark import load_benchmark, play_trainings

from diou_jax.data import layouts


@pytest.fixture(scope="module")
def losses():
    return load_benchmark("losses")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Files of ground truth and of results: 8 images, two classes, boxes that are found more or less well."""
    folder, random = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(8)]
    objects, found = [], []
    for image in images:
        for _ in range(random.integers(0, 4)):
            box = [*random.uniform(0, 60, 2).tolist(), *random.uniform(10, 40, 2).tolist()]
            kind = int(random.integers(1, 3))
            objects.append({"id": len(objects) + 1, "image_id": image["id"], "category_id": kind, "bbox": box})
            moved = (np.array(box) + random.normal(0, 3, 4)).tolist()
            found.append({"image_id": image["id"], "category_id": kind, "bbox": moved, "score": float(random.random())})
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    truth = {"images": images, "annotations": objects, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))
    return folder, truth, found


def test_a_resampled_set_scores_as_one_with_copies_of_its_images(losses, coco, capsys):
    """Against COCOeval of files in which an image that is drawn twice is there twice."""
    folder, truth, found = coco
    draws = np.random.default_rng(1).integers(0, 8, (3, 8))
    aps = losses.resampled(str(folder / "truth.json"), str(folder / "found.json"), draws)
    assert 0.1 < aps[0] < 0.9
    for ap, rows in zip(aps, [range(8), *draws.tolist()], strict=True):
        copied, objects, detections = [], [], []
        for number, row in enumerate(rows, start=1):
            image = truth["images"][row]
            copied.append({**image, "id": number})
            of_image = [copy.copy(one) for one in truth["annotations"] if one["image_id"] == image["id"]]
            objects += [one | {"image_id": number, "iscrowd": 0, "area": 1000.0} for one in of_image]
            detections += [{**one, "image_id": number} for one in found if one["image_id"] == image["id"]]
        gt = COCO()
        gt.dataset = {**truth, "images": copied, "annotations": [o | {"id": i} for i, o in enumerate(objects, 1)]}
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        np.testing.assert_allclose(ap, evaluation.stats[0], atol=1e-12)
    capsys.readouterr()


@pytest.fixture
def comparison(losses, coco, tmp_path):
    data = {"tuning": ("--config.a=1",), "losses": ("--config.b=2",)}
    study = losses.Study(tmp_path, ("--config.c=3",), jobs=2)
    return losses.Losses(study, data, str(coco[0] / "truth.json"), steps=100, seeds=2, draws=10)


def test_losses_are_tuned_trained_and_compared(losses, comparison, coco, monkeypatch, capsys):
    """The AP of a played run follows from its options."""
    _, _, found = coco
    out = comparison.study.out

    def ap(options):
        weight, seed = float(options["--config.model.loss_bbox_weight"]), int(options["--config.rng_seed"])
        better = 0.05 * (options["--config.model.loss_type"] == "diou")
        return 0.3 + 0.1 * (weight == 6) + 0.01 * (seed % 7) + better

    def found_by(workdir, folder_, options):
        folder_.mkdir(parents=True, exist_ok=True)
        file = folder_ / "found.json"
        file.write_text(json.dumps(found[: len(found) - ("False" in options[0])]))
        return file

    commands = play_trainings(monkeypatch, ap)
    monkeypatch.setattr(losses, "detect", found_by)
    weights = {"smooth_l1": (1.0,), "diou": (3.0, 6.0, 12.0)}
    text = losses.run_all(comparison, weights)
    assert len(commands) == 3 + 4
    tuning = [command for command in commands if "--config.a=1" in command]
    assert len(tuning) == 3 and all("--config.b=2" in one for one in commands if one not in tuning)
    assert all(f"--config.solver.max_iter={50 if one in tuning else 100}" in one for one in commands)
    assert "| DIoU | 6 | 0.455 ± " in text and "| +0.150 ± 0.000 |" in text and "64 (2 of 2)" in text
    assert "| DIoU | 3: 0.410 | 6: 0.510 | 12: 0.410 |" in text
    assert (out / "losses.md").read_text() == text and (out / "losses.png").stat().st_size > 5000
    numbers = json.loads((out / "losses.json").read_text())
    assert set(numbers["suppression"]["betas"]) == {f"{beta:g}" for beta in losses.BETAS}
    assert numbers["weights"] == {"smooth_l1": 1.0, "diou": 6.0}
    assert losses.run_all(comparison, weights) == text
    assert len(commands) == 7  # nothing is trained again
    capsys.readouterr()


def test_a_fifth_of_the_training_images_is_held_out_with_its_objects(losses, coco, tmp_path):
    folder, truth, _ = coco
    options = losses.hold_out(layouts.Part(str(folder / "truth.json"), str(folder)), tmp_path)
    train, val = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "val"))
    assert (len(train["images"]), len(val["images"])) == (6, 2)
    assert sorted(one["id"] for part in (train, val) for one in part["images"]) == list(range(10, 18))
    for part in (train, val):
        inside = {image["id"] for image in part["images"]}
        assert part["annotations"] == [one for one in truth["annotations"] if one["image_id"] in inside]
    assert options[0] == f"--config.data.train_annotations={tmp_path / 'train.json'}" and len(options) == 4
