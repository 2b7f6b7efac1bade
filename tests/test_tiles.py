"""Tiles: where they lie, which of them reports an object, and detection in them by a detector that sees rectangles."""

import itertools
import types

import cv2
import jax
import numpy as np
import pytest

from diou_jax.data.passes import Pass
from diou_jax.detection.detections import suppress
from diou_jax.detection.rules import DetectionRules, SoftNmsRules, Thresholds
from diou_jax.prediction import tiled
from diou_jax.prediction.batching import Batcher
from diou_jax.prediction.tiled import TiledDetection, unite
from diou_jax.prediction.tiles import TileRules, divide
from diou_jax.structures import Candidates

RULES = TileRules(side=64, overlap=32, whole=False)


def test_an_image_that_fits_is_one_view():
    for size in ((64, 64), (10, 64), (1, 1)):
        (tile,) = divide(size, TileRules(64, 32, True))
        assert tile.window == (0, 0, *size) and not tile.whole
        assert tile.reports(np.array([[0, 0, size[1] - 1, size[0] - 1]]), drop_cut=True).all()
    assert len(divide((5000, 5000), TileRules(0, 0, True))) == 1


@pytest.mark.parametrize("size", [(65, 64), (64, 200), (137, 251), (96, 96), (97, 500), (20, 300)])
@pytest.mark.parametrize("overlap", [0, 1, 13, 32, 63])
def test_tiles_are_equal_cover_the_image_and_overlap_enough(size, overlap):
    tiles = divide(size, TileRules(64, overlap, True))
    *tiles, whole = tiles
    assert whole.whole and whole.window == (0, 0, *size)
    count = np.zeros(size, int)
    for tile in tiles:
        top, left, bottom, right = tile.window
        assert (bottom - top, right - left) == (min(64, size[0]), min(64, size[1]))
        assert top >= 0 and left >= 0
        tile.crop(count)[:] += 1
    assert count.min() >= 1
    for axis in (0, 1):
        spans = sorted({(tile.window[axis], tile.window[axis + 2]) for tile in tiles})
        assert all(end - start >= overlap for (_, end), (start, _) in itertools.pairwise(spans))
        # One tile fewer would not do.
        assert len(spans) == 1 or size[axis] > 64 + (len(spans) - 2) * (64 - overlap)


def seen_in(tile, box):
    """The part of a box that a tile shows, None if there is none."""
    top, left, bottom, right = tile.window
    part = np.array([max(box[0], left), max(box[1], top), min(box[2], right - 1), min(box[3], bottom - 1)])
    return part if (part[:2] <= part[2:]).all() else None


@pytest.mark.parametrize("whole", [False, True])
def test_an_object_of_three_quarters_of_the_overlap_is_reported_whole_and_no_part_of_it(whole):
    rng = np.random.default_rng(0)
    size = (150, 220)
    tiles = [tile for tile in divide(size, TileRules(64, 32, whole)) if not tile.whole]
    for _ in range(2000):
        width, height = rng.integers(1, 25, 2)
        x, y = rng.integers(0, size[1] - width + 1), rng.integers(0, size[0] - height + 1)
        box = np.array([x, y, x + width - 1, y + height - 1])
        views = [(tile, seen_in(tile, box)) for tile in tiles]
        reported = [part for tile, part in views if part is not None and tile.reports(part[None], drop_cut=whole)[0]]
        assert reported and all((part == box).all() for part in reported)


def test_masks_come_from_the_tile_with_most_around_the_box():
    tiles = divide((64, 160), TileRules(64, 32, True))
    assert [tile.window[1] for tile in tiles] == [0, 32, 64, 96, 0]
    boxes = np.array([[40, 10, 60, 20], [0, 0, 5, 5], [20, 0, 120, 63]])
    margins = np.stack([tile.margin(boxes) for tile in tiles])
    assert margins.argmax(0).tolist() == [1, 0, 4]
    assert margins[0].tolist() == [3, 58, -57]


def test_candidates_are_united_by_class_in_the_order_of_views():
    first = np.array([1, 0]), np.array([[1, 1, 2, 2], [3, 3, 4, 4]], np.float32), np.array([0.5, 0.6], np.float32)
    second = np.array([1]), np.array([[5, 5, 6, 6]], np.float32), np.array([0.9], np.float32)
    united = unite([first, second], classes=3)
    assert united.boxes.shape == (1, 3, 64, 4) and united.valid.sum((0, 2)).tolist() == [1, 2, 0]
    assert united.boxes[0, 1, :2].tolist() == [[1, 1, 2, 2], [5, 5, 6, 6]]
    assert united.scores[0, 0, 0] == np.float32(0.6)
    nothing = np.zeros(0, int), np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    assert not unite([nothing], classes=2).valid.any()


def test_too_many_candidates_leave_the_best(monkeypatch):
    monkeypatch.setattr(tiled, "MOST", 64)
    scores = np.random.default_rng(0).random(150).astype(np.float32)
    boxes = np.arange(600, dtype=np.float32).reshape(150, 4)
    united = unite([(np.zeros(150, int), boxes, scores), (np.array([1]), boxes[:1], scores[:1])], classes=2)
    assert united.valid.sum((0, 2)).tolist() == [64, 1]
    kept = np.sort(np.argsort(-scores)[:64])
    np.testing.assert_array_equal(united.boxes[0, 0], boxes[kept])
    np.testing.assert_array_equal(united.scores[0, 0], scores[kept])


class Eyes:
    """In the place of the network: finds every rectangle of one colour that an image shows, whole or in part.

    Blue's value is the class. Around each it finds two worse boxes as well, as a network does.
    """

    devices = (None,)

    def compiled(self, function):
        return self

    def __call__(self, batch, thresholds, *, devices):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch) if devices > 1 else batch
        boxes = np.zeros((len(flat.image), 2, 90, 4), np.float32)
        scores = np.zeros((len(flat.image), 2, 90), np.float32)
        for slot, label in itertools.product(range(len(flat.image)), (1, 2)):
            height, width = flat.original_size[slot]
            mine = (flat.image[slot, :height, :width, 0] == label).astype(np.uint8)
            for row, (x, y, w, h, _) in enumerate(cv2.connectedComponentsWithStats(mine)[2][1:]):
                for copy, (shift, score) in enumerate(((0, 0.9), (1, 0.8), (-1, 0.7))):
                    box = np.array([x + shift, y, x + w - 1 + shift, y + h - 1])
                    boxes[slot, label - 1, 3 * row + copy] = np.clip(box, 0, [width - 1, height - 1] * 2)
                    scores[slot, label - 1, 3 * row + copy] = score
        found = Candidates(boxes, scores, np.ones((len(boxes), 1, 90), bool))
        return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), found) if devices > 1 else found


SUPPRESSIONS = {}


def seeing(rules, **options):
    """Detection in tiles by `Eyes`, with the suppression of the detector."""
    kept = DetectionRules(Thresholds(0.05, 0.5), diou_nms=True, beta1=1.0, detections_per_im=60, **options)
    head = types.SimpleNamespace(
        detection=kept,
        suppress=lambda united, *, thresholds: suppress(
            united.boxes, united.scores, united.valid, thresholds=thresholds, rules=kept
        ),
    )
    batcher = Batcher((Pass(64, 128),), shapes=((64, 128), (128, 64)), stride=32, per_device=1, augmented=False)
    detection = TiledDetection(types.SimpleNamespace(heads=(head,)), Eyes(), batcher=batcher, rules=rules)
    # Compiled once for all divisions into tiles.
    detection._suppress = SUPPRESSIONS.setdefault(tuple(options), detection._suppress)
    return detection


def drawn(size, boxes, labels):
    image = np.zeros((*size, 3), np.uint8)
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        image[y1 : y2 + 1, x1 : x2 + 1, 0] = label
    return image


THRESHOLDS = Thresholds(np.full((2, 1), 0.05, np.float32), np.float32(0.5))


def found_by(detection, image):
    found = detection(image, THRESHOLDS)
    rows = np.flatnonzero(found.valid)
    return {(int(found.classes[row]), *found.boxes[row].astype(int).tolist()): float(found.scores[row]) for row in rows}


@pytest.mark.parametrize("whole", [False, True])
def test_objects_at_borders_of_tiles_are_found_once_at_their_place(whole):
    """Rectangles of 20 x 12 pixels in every place relative to the borders of tiles of 64 pixels."""
    detection = seeing(TileRules(64, 32, whole))
    size = (100, 230)
    assert len(detection.tiles(size)) == 21 + whole
    for shift in range(0, 32, 5):
        boxes = [
            (x + shift, y + shift // 2, x + shift + 19, y + shift // 2 + 11)
            for x in range(0, 171, 34)
            for y in range(0, 70, 26)
        ]
        labels = [1 + number % 2 for number in range(len(boxes))]
        found = found_by(detection, drawn(size, boxes, labels))
        assert set(found) == {(label, *box) for label, box in zip(labels, boxes, strict=True)}
        assert all(abs(score - 0.9) < 1e-6 for score in found.values())


def test_an_object_larger_than_a_tile_is_found_once_by_the_whole_view_only():
    box = (30, 20, 190, 80)
    image = drawn((100, 230), [box], [2])
    assert set(found_by(seeing(TileRules(64, 32, True)), image)) == {(2, *box)}
    parts = found_by(seeing(TileRules(64, 32, False)), image)
    assert len(parts) > 1 and (2, *box) not in parts


def test_soft_nms_lowers_a_score_once_however_many_views_there_are():
    """Two boxes of one object in one tile: their scores are those of the same image in one piece."""
    rules = {"soft_nms": SoftNmsRules("linear", beta1=float("inf"))}
    image = drawn((60, 200), [(10, 10, 29, 21)], [1])
    in_tiles = found_by(seeing(TileRules(64, 32, False), **rules), image)
    in_one = found_by(seeing(TileRules(0, 0, False), **rules), image)
    assert len(in_one) == 3 and in_tiles == in_one
