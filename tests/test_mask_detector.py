"""Masks from the network to results: evaluation, prediction and `Detector`, with random weights."""

import copy
import dataclasses
import json

import cv2
import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from diou_jax import masks
from diou_jax.data.loader import batches
from diou_jax.detection.rules import Thresholds
from diou_jax.devices import replicate
from diou_jax.evaluation import evaluate, pictures, true_masks
from diou_jax.options import build
from diou_jax.prediction import predict
from diou_jax.prediction.detector import Detector
from diou_jax.prediction.tiled import to_host
from diou_jax.reporting.run_log import RunLog, read_metrics


@pytest.fixture(scope="module")
def config(tiny_config):
    config = tiny_config()
    config.model.mask_on = True
    config.mrcnn.dim_reduced, config.mrcnn.num_convs = 8, 1
    config.test.score_thresh = 0.02
    config.test.ims_per_batch = 1
    config.log.images = 1
    return config


@pytest.fixture(scope="module")
def data(config):
    return build.dataset(config, config.test.datasets)


@pytest.fixture(scope="module")
def variables(config, data):
    variables = build.network(config, len(data.class_names)).init_variables(jax.random.key(0))
    # Random heads score everything alike and make masks of one half; louder ones give results worth comparing.
    for head in ("box_head", "rpn", "mask_head"):
        variables["params"][head]["logits"]["kernel"] *= 40.0
    return variables


@pytest.fixture(scope="module")
def detector(config, variables, data):
    return Detector(config, variables, data.class_names, category_ids=data.category_ids)


@pytest.fixture(scope="module")
def photos(data):
    return [cv2.imdecode(np.frombuffer(data.read(i), np.uint8), cv2.IMREAD_COLOR) for i in range(len(data))]


@pytest.fixture(scope="module")
def evaluator(config, data, tmp_path_factory):
    return evaluate.Evaluator(config, str(tmp_path_factory.mktemp("run")), data.class_names)


@pytest.fixture(scope="module")
def found(config, evaluator, detector, data):
    """The detections of an evaluation, on two devices."""
    reader = build.eval_reader(config, data)
    stream = batches(reader, 0, reader.steps)
    return evaluate.detect_all(evaluator._detect, replicate(detector._variables), stream)


def test_the_detector_gives_masks_of_the_image(detector, photos, found):
    results = detector(photos)
    assert sum(map(len, results)) > len(photos)
    for row, (photo, result) in enumerate(zip(photos, results, strict=True)):
        assert result.masks.shape == (len(result), *photo.shape[:2]) and result.masks.dtype == bool
        assert len(result.rles) == len(result) and all(rle["size"] == [*photo.shape[:2]] for rle in result.rles)
        np.testing.assert_array_equal(
            [coco_mask.area(rle) for rle in result.rles], result.masks.sum((1, 2)), strict=False
        )
        # Evaluation, on two devices, finds the same.
        assert list(result.rles) == found[row].rles
        np.testing.assert_allclose(result.boxes, found[row].boxes, atol=1e-3)
    assert 0.01 < np.concatenate([result.masks.mean((1, 2)) for result in results]).max() < 1


def test_an_image_without_detections(detector, photos):
    nothing, _ = detector(photos[:2], score_threshold=1.0)
    assert len(nothing) == 0 and nothing.rles == () and nothing.masks.shape == (0, *photos[0].shape[:2])


@pytest.mark.slow
def test_images_of_any_size(detector, photos):
    for image in (photos[0][:1, :1], photos[0][:, :2], np.tile(photos[0], (3, 1, 1))):
        result = detector(image)
        assert result.masks.shape == (len(result), *image.shape[:2])


@pytest.mark.slow
def test_four_images_side_by_side_in_tiles_have_their_own_detections(config, variables, data, detector, photos):
    """Boxes and masks lie at the places of the tiles; both devices share these."""
    side = photos[0].shape[0]
    assert all(photo.shape[:2] == (side, side) for photo in photos[:4])
    config = copy.deepcopy(config)
    config.predict.update(tile=side, tile_overlap=0, tile_whole=False)
    tiled = Detector(config, variables, data.class_names)
    image = np.vstack([np.hstack(photos[:2]), np.hstack(photos[2:4])])
    found = tiled(image)
    wanted = []
    for number, result in enumerate(detector(photos[:4])):
        top, left = side * (number // 2), side * (number % 2)
        for row in range(len(result)):
            mask = np.zeros(image.shape[:2], bool)
            mask[top : top + side, left : left + side] = result.masks[row]
            wanted.append((result.scores[row], result.boxes[row] + [left, top, left, top], mask))
    wanted = sorted(wanted, key=lambda one: -one[0])[: config.test.detections_per_im]
    assert len(found) == len(wanted) == config.test.detections_per_im
    assert found.device == "cpu:0,cpu:1" and found.size == image.shape[:2]
    for row, (score, box, mask) in enumerate(wanted):
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-5)
        np.testing.assert_allclose(found.boxes[row], box, atol=2e-3)
        # A mask of the tile ends at its border; that of the image goes on over the neighbour by less than a cell.
        assert (found.masks[row] & mask).sum() >= 0.9 * mask.sum()
    assert len(tiled(photos[0])) == len(detector(photos[0])), "an image that fits needs no tiles"


def test_a_mirrored_image_gives_mirrored_masks(detector, photos):
    """Two batches with the same input of the network; the second says that it is that of mirrored images."""
    (group,) = detector._batcher.groups(enumerate(photos[:2]))
    rows, batch = group.rows, group.batch
    mirrored = batch.replace(placement=batch.placement.replace(mirrored=np.ones_like(batch.placement.mirrored)))
    thresholds = Thresholds(np.full((len(detector.class_names) - 1, 1), 0.02, np.float32), np.float32(0.5))
    plain, other = (to_host(detector._detect(one, thresholds, devices=2), devices=2) for one in (batch, mirrored))
    np.testing.assert_array_equal(other.masks[other.valid], plain.masks[plain.valid][..., ::-1])
    alike, unlike = [], []
    for slot in range(len(rows)):
        height, width = group.sizes[slot]
        valid = plain.valid[slot]
        one, two = (
            masks.decode(
                masks.encode(each.masks[slot][valid], each.boxes[slot][valid], height=height, width=width),
                height=height,
                width=width,
            )
            for each in (plain, other)
        )
        # Boxes lose their decimals before pasting, so that a mirrored mask may lie a pixel further left.
        moved = np.stack([np.roll(two, shift, 2) for shift in (-1, 0, 1)])
        alike += (moved != one[..., ::-1]).mean((2, 3)).min(0).tolist()
        unlike += (moved != one).mean((2, 3)).min(0).tolist()
    assert len(alike) > 4 and max(alike) == 0 and max(unlike) > 0.02


def test_evaluation_names_masks_beside_boxes(evaluator, found, variables, data, capsys):
    workdir, name = evaluator._folder, data.name
    with RunLog(workdir) as log:
        (row,) = evaluator(variables, 3, log)
    boxes, shapes = (
        json.loads((workdir / f"{kind}_{name}_results.json").read_text()) for kind in ("bbox", "segmentations")
    )
    assert len(boxes) == len(shapes) > 0
    for box, shape in zip(boxes, shapes, strict=True):
        assert [box[key] for key in ("image_id", "category_id", "score")] == [
            shape[key] for key in ("image_id", "category_id", "score")
        ]
        assert set(shape["segmentation"]) == {"size", "counts"}
    printed = capsys.readouterr().out
    assert printed.count("Average Precision") == 12 and printed.count("Average Recall") == 12
    assert "copypaste: Task: box" in printed and "copypaste: Task: mask" in printed
    assert printed.count("copypaste: Dataset") == 1
    assert {"eval/AP", "eval/segm/AP", *(f"eval/segm/AP/{label}" for label in data.class_names[1:])} < set(row)
    (logged,) = read_metrics(workdir)
    assert logged["eval/segm/AP"] == pytest.approx(row["eval/segm/AP"], nan_ok=True)
    assert len(list((workdir / "pictures").iterdir())) == 1


def test_pictures_show_the_masks_of_detections_and_ground_truth(data, found):
    records = data.records
    size = int(records.heights[0]), int(records.widths[0])
    true = true_masks.by_box(data.annotation_files, {records.image_ids.tolist()[0]: size})
    boxes, _, _ = records.annotations(0)
    assert len(boxes) > 0 and {key[1:] for key in true} >= {tuple(box) for box in boxes.tolist()}
    bare = pictures.draw_beside_truth(data, 0, dataclasses.replace(found[0], rles=None), score_threshold=0.05)
    picture = pictures.draw_beside_truth(data, 0, found[0], score_threshold=0.05, true=true)
    changed, middle = (picture != bare).any(-1), picture.shape[1] // 2
    assert changed[:, :middle].any() and changed[:, middle:].any()


def test_prediction_writes_masks(config, detector, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(predict.Detector, "from_checkpoint", lambda *_, **__: detector)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), photos[0])
    assert predict.predict(
        config, tmp_path, tmp_path / "in", output=tmp_path / "with", wishes=predict.Wishes(draw_threshold=0.05)
    )
    (entry,) = json.loads((tmp_path / "with" / "detections.json").read_text())["images"]
    wanted = detector(photos[0])
    assert entry["masks"] == list(wanted.rles) and len(entry["masks"]) == len(entry["boxes"])
    picture = cv2.imread(str(tmp_path / "with" / "a.png.jpg"))
    bare = Detector.stream

    def without(self, images, **options):
        return (dataclasses.replace(result, rles=None) for result in bare(self, images, **options))

    monkeypatch.setattr(Detector, "stream", without)
    assert predict.predict(
        config, tmp_path, tmp_path / "in", output=tmp_path / "without", wishes=predict.Wishes(draw_threshold=0.05)
    )
    assert (cv2.imread(str(tmp_path / "without" / "a.png.jpg")) != picture).any()
