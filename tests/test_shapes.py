import errno
import fcntl
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from diou_jax.data import catalog, shapes
from diou_jax.data.shape_drawing import CLASSES
from diou_jax.errors import UserError


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest(), len(files)


def test_the_seed_determines_every_byte(shapes_root, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 24, "val": 6})
    shapes.ensure(tmp_path / "again")
    assert digest(tmp_path / "again") == digest(shapes_root)
    before = (tmp_path / "again" / shapes.MARKER).stat().st_mtime_ns
    shapes.ensure(tmp_path / "again")
    assert (tmp_path / "again" / shapes.MARKER).stat().st_mtime_ns == before
    shapes.ensure(tmp_path / "other", seed=1)
    assert digest(tmp_path / "other") != digest(shapes_root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"], "no draft is left"


def test_what_is_not_the_data_set_is_refused_and_left(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="does not hold the shapes") as error:
        shapes.ensure(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert "delete" not in str(error.value) and "remove" not in str(error.value)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 4, "val": 2})


def test_what_a_killed_draw_left_goes_and_other_folders_stay(few, tmp_path):
    (tmp_path / ".shapes-drawing-abc" / "images").mkdir(parents=True)
    (tmp_path / ".shapes-mine").mkdir()
    (tmp_path / ".shapes.lock").write_text("process 1 on nowhere\n")
    shapes.ensure(tmp_path / "shapes")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shapes-mine", "shapes"]


def test_runs_that_draw_at_once_wait_for_each_other(few, tmp_path, monkeypatch):
    drawn, original = [], shapes._draw_split
    monkeypatch.setattr(shapes, "_draw_split", lambda *options: drawn.append(options[1]) or original(*options))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: shapes.ensure(tmp_path / "shapes"), range(4)))
    assert drawn == ["train", "val"]


def test_without_locks_the_slower_one_takes_what_the_faster_drew(few, tmp_path, monkeypatch):
    original = shapes._draw_split

    def overtaken(root, split, *options):
        with monkeypatch.context() as patch:
            patch.setattr(shapes, "_draw_split", original)
            shapes.ensure(tmp_path / "shapes")
        original(root, split, *options)

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(shapes, "_draw_split", overtaken)
    shapes.ensure(tmp_path / "shapes")
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere/shapes"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"set data\.root to"):
        shapes.ensure(tmp_path / place)


def test_it_is_read_like_any_coco_folder(shapes_root):
    data = catalog.load(("train",), shapes_root)
    assert data.class_names[1:] == CLASSES
    assert not data.faults.counts
    assert len(data) == 24


def test_outlines_are_those_of_the_drawn_pixels(few, tmp_path, monkeypatch):
    """COCO's filling of the polygons against the drawn masks: they differ in pixels at the border alone, by 3 %."""
    drawn = []
    original = shapes._annotation
    monkeypatch.setattr(shapes, "COUNTS", {"train": 60, "val": 1})
    monkeypatch.setattr(shapes, "_annotation", lambda *entry: drawn.append(entry) or original(*entry))
    shapes.ensure(tmp_path / "shapes")
    content = [
        json.loads((tmp_path / "shapes" / "annotations" / f"instances_{s}.json").read_text()) for s in ("train", "val")
    ]
    annotations = [annotation for part in content for annotation in part["annotations"]]
    overlaps = {}
    for annotation, (_, _, label, mask, parts) in zip(annotations, drawn, strict=True):
        segmentation = annotation["segmentation"]
        assert annotation["iscrowd"] == (parts is None) == isinstance(segmentation, dict)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert annotation["bbox"] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["area"] == mask.sum()
        runs = segmentation if parts is None else rle.merge(rle.frPyObjects(segmentation, *mask.shape))
        filled = rle.decode(runs).astype(bool)
        iou = (filled & mask).sum() / (filled | mask).sum()
        inner = cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((3, 3)))[1:-1, 1:-1].astype(bool)
        outer = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
        assert iou == 1 if parts is None else filled[inner].all() and not filled[~outer].any()
        overlaps.setdefault(CLASSES[label - 1], []).append(iou)
    assert overlaps.keys() == set(CLASSES)
    assert np.mean([iou for found in overlaps.values() for iou in found]) > 0.97
    assert min(np.mean(found) for found in overlaps.values()) > 0.96


def test_a_ring_has_a_hole_and_a_cross_two_parts(shapes_root):
    outlines = catalog.load(("train",), shapes_root, masks=True).records
    parts = {name: [] for name in CLASSES}
    for row, label in enumerate(outlines.classes):
        if not outlines.crowd[row]:
            parts[CLASSES[label - 1]].append([len(part) for part in outlines.outlines.of(row)])
    expected = {"ellipse": [24], "rectangle": [4], "triangle": [3], "star": [10], "cross": [4, 4], "ring": [50]}
    assert all(found and all(sizes == expected[name] for sizes in found) for name, found in parts.items())


def test_shapes_without_polygons_serve_boxes_and_are_refused_for_masks(few, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "VERSION", 1)
    shapes.ensure(tmp_path / "shapes")
    monkeypatch.undo()
    monkeypatch.setattr(shapes, "COUNTS", {"train": 4, "val": 2})
    before = digest(tmp_path / "shapes")
    shapes.ensure(tmp_path / "shapes")
    assert digest(tmp_path / "shapes") == before
    with pytest.raises(
        UserError, match=r"an earlier version, which have no polygons; set data\.root to another folder"
    ):
        shapes.ensure(tmp_path / "shapes", masks=True)


def test_pictures_and_boxes_are_those_of_the_first_version(shapes_root):
    """So results on boxes stay comparable: the digest was taken before outlines were written."""
    content = json.loads((shapes_root / "annotations" / "instances_train.json").read_text())
    boxes = [
        (entry["image_id"], entry["category_id"], *entry["bbox"], entry["area"]) for entry in content["annotations"]
    ]
    assert hashlib.sha256(repr(boxes).encode()).hexdigest()[:16] == "9258aaecfc393ace"
