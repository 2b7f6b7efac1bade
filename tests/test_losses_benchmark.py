"""The comparison of the losses: its statistics, and that it goes on where it was; trainings are played."""

import copy
import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diou_jax.data import layouts

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def losses():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("losses_benchmark", ROOT / "benchmarks" / "losses.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["losses_benchmark"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_interval_is_students(losses):
    """Of 1, 2, 3: 4.3027, the 97.5th percentile of t with two degrees, times 1 / sqrt(3)."""
    np.testing.assert_allclose(losses.interval([1, 2, 3]), (2, 2.484138), rtol=1e-6)
    mean, half = losses.interval([0.5])
    assert mean == 0.5 and np.isnan(half)


def measures(ap, *, reached=None, small=0.1):
    return {
        "AP": ap,
        "AP50": 2 * ap,
        "AP75": ap,
        "APs": small,
        "APm": ap,
        "APl": ap,
        "reached": reached,
        "seconds": 1.0,
    }


def test_differences_are_paired_by_seed(losses):
    """Both losses vary by tenths over seeds, their difference by hundredths; the order of the runs is no matter."""
    aps = {"smooth_l1": [0.1, 0.2, 0.3], "diou": [0.12, 0.21, 0.33]}
    results = {
        losses.Run("losses", loss, 1.0, seed): measures(ap, reached=100 * seed or None, small=None if seed else 0.2)
        for loss, values in aps.items()
        for seed, ap in reversed(list(enumerate(values)))
    }
    rows = losses.compare(results, list(aps))
    np.testing.assert_allclose(rows["diou"]["difference"], (0.02, 4.302653 * 0.01 / np.sqrt(3)), rtol=1e-5)
    np.testing.assert_allclose(rows["diou"]["seeds"], np.std(aps["diou"], ddof=1))
    assert rows["smooth_l1"]["difference"] == (0.0, 0.0)
    assert rows["diou"]["reached"] == 150 and rows["diou"]["count"] == 2 and rows["diou"]["APs"] is None
    text = losses.report({}, rows, {"greedy": 0.5, "betas": {}}, seeds=3)
    assert "| DIoU | 1 | 0.220 ± " in text and "| +0.020 ± 0.025 |" in text and "| 150 (2 of 3) |" in text


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
def study(losses, coco, tmp_path):
    data = {"tuning": ("--config.a=1",), "losses": ("--config.b=2",)}
    val = str(coco[0] / "truth.json")
    return losses.Study(tmp_path, data, val, steps=100, seeds=2, options=("--config.c=3",), draws=10)


def test_a_study_tunes_trains_compares_and_goes_on(losses, study, coco, monkeypatch, capsys):
    """Runs are played: the AP of a run follows from its options, and its metrics lie where a run writes them."""
    _, _, found = coco
    commands = []

    def play(command, *, stdout, **_):
        commands.append(command)
        options = dict(part.split("=", 1) for part in command if "=" in part)
        weight, seed = float(options["--config.model.loss_bbox_weight"]), int(options["--config.rng_seed"])
        workdir = pathlib.Path(command[command.index("--workdir") + 1])
        workdir.mkdir(parents=True)
        ap = 0.3 + 0.1 * (weight == 6) + 0.01 * (seed % 7) + 0.05 * (options["--config.model.loss_type"] == "diou")
        rows = [
            {
                "step": step,
                "eval/AP": ap,
                "eval/AP50": ap + step / 200,
                **{f"eval/{n}": ap for n in ("AP75", "APm", "APl")},
            }
            for step in (50, 100)
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return subprocess.CompletedProcess(command, 0)

    def found_by(workdir, folder_, options):
        folder_.mkdir(parents=True, exist_ok=True)
        file = folder_ / "found.json"
        file.write_text(json.dumps(found[: len(found) - ("False" in options[0])]))
        return file

    monkeypatch.setattr(losses.subprocess, "run", play)
    monkeypatch.setattr(losses, "detect", found_by)
    weights = {"smooth_l1": (1.0,), "diou": (3.0, 6.0, 12.0)}
    text = losses.run_study(study, weights, jobs=2)
    assert len(commands) == 3 + 4
    tuning = [command for command in commands if "--config.a=1" in command]
    assert len(tuning) == 3 and all("--config.b=2" in one for one in commands if one not in tuning)
    assert all("--config.c=3" in one and "--config.test.every=10" in one for one in commands)
    assert "| DIoU | 6 | 0.455 ± " in text and "| +0.150 ± 0.000 |" in text and "100 (2 of 2)" in text
    assert "| DIoU | 3: 0.410 | 6: 0.510 | 12: 0.410 |" in text
    assert (study.out / "losses.md").read_text() == text and (study.out / "losses.png").stat().st_size > 5000
    numbers = json.loads((study.out / "losses.json").read_text())
    assert set(numbers["suppression"]["betas"]) == {f"{beta:g}" for beta in losses.BETAS}
    assert losses.run_study(study, weights, jobs=1) == text
    assert len(commands) == 7  # nothing is trained again
    (study.out / "losses" / "diou_6_seed1.json").unlink()
    with pytest.raises(FileExistsError):  # the play of this run does not resume
        losses.run_study(study, weights, jobs=1)
    assert len(commands) == 8
    capsys.readouterr()


def test_a_training_that_fails_names_its_log(losses, study, monkeypatch):
    monkeypatch.setattr(losses.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))
    with pytest.raises(SystemExit, match=r"losses/iou_3_seed0 ended with code 2; .*iou_3_seed0\.log has its log"):
        losses.train(study, losses.Run("losses", "iou", 3.0, 0))
    assert not list(study.out.glob("**/*.json"))


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
