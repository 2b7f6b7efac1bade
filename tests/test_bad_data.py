"""Damaged files and absurd annotations on their way through the loader to a batch."""

import json
import os
import pickle
import shutil

import cv2
import numpy as np
import pytest
from bad_images import (
    CATEGORIES,
    HEIGHT,
    ODD,
    READABLE,
    UNREADABLE,
    WIDTH,
    box,
    claiming,
    claiming_jpeg,
    encoded,
    picture,
    turned,
    write_set,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.data import catalog, coco, decoding, prepare_tfds, tfds
from diou_jax.data.augmentation import Mirror, ScaleChoice
from diou_jax.data.dataset import BadImageError
from diou_jax.data.loader import batches
from diou_jax.data.make_reader import EpochRules, eval_reader, train_reader
from diou_jax.data.reader import BatchRules
from diou_jax.errors import UserError
from diou_jax.reporting.run_log import read_metrics
from diou_jax.training import train


@pytest.fixture
def build(tmp_path):
    """``build(**changes)`` writes the data set of `bad_images` and loads it."""

    def make(masks=False, **changes):
        write_set(tmp_path, **changes)
        return catalog.load(["seven"], tmp_path, masks=masks)

    return make


def reader_of(dataset, *, scales=(48, 32), **options):
    rules = BatchRules(max_boxes=4, on_bad_image=options.pop("on_bad_image", "skip"))
    augmentations = Mirror(), ScaleChoice(scales, 64)
    return train_reader(dataset, augmentations, rules=rules, **{"batch_size": 2, "seed": 1} | options)


def shown_once(dataset, **options):
    rules = BatchRules(max_boxes=4, on_bad_image=options.pop("on_bad_image", "skip"))
    return eval_reader(dataset, [ScaleChoice((48,), 64)], rules=rules, **{"batch_size": 2} | options)


def epoch(reader, **options):
    found = list(batches(reader, 0, reader.steps, **options))
    assert len(found) == reader.steps
    for batch in found:
        check(batch)
    return found


def check(batch):
    """Nothing that is not finite, no box that is degenerate or leaves its image, no class that there is not."""
    assert batch.image.dtype == np.uint8
    for leaf in (batch.rows.weight, batch.columns.weight, batch.placement.scale, batch.gt.boxes):
        assert np.isfinite(leaf).all()
    assert (batch.placement.scale > 0).all()
    assert (batch.image_size > 0).all()
    assert (batch.padded_size >= batch.image_size).all()
    for row in range(len(batch.index)):
        x1, y1, x2, y2 = batch.gt.boxes[row][batch.gt.valid[row]].T
        height, width = batch.original_size[row]
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= width - 1) & (y1 >= 0) & (y1 < y2) & (y2 <= height - 1)).all()
        classes = batch.gt.classes[row][batch.gt.valid[row]]
        assert ((classes >= 1) & (classes <= len(CATEGORIES))).all()
        assert not batch.gt.boxes[row][~batch.gt.valid[row]].any()
        if batch.gt.masks is not None:
            points, part = batch.gt.masks.points[row], batch.gt.masks.part[row]
            assert np.isfinite(points).all() and (points >= [-width - 1, -height]).all()
            assert (points <= [2 * width, 2 * height]).all() and not points[part < 0].any()
            # Vertices come first and part by part, and a part has three or more.
            assert (part[~batch.gt.valid[row] | batch.gt.crowd[row]] == -1).all()
            for numbers in part:
                some = numbers[: (numbers >= 0).sum()]
                assert (np.diff(some, prepend=0) >= 0).all() and set(some) == set(range(numbers.max() + 1))
                assert (np.bincount(numbers + 1)[1:] >= 3).all()


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_file_is_replaced_counted_and_named_and_nothing_else_changes(build, caplog, kind):
    content, message = UNREADABLE[kind]
    untouched = epoch(reader_of(build()))
    dataset = build(files={ODD: content})
    if content is None:
        os.remove(dataset.image_name(ODD))
    with caplog.at_level("WARNING"):
        found = epoch(reader_of(dataset), threads=2)
    for before, after in zip(untouched, found, strict=True):
        same = before.index != ODD
        np.testing.assert_array_equal(after.index[same], before.index[same])
        np.testing.assert_array_equal(after.image[same], before.image[same])
        assert ODD not in after.index
        assert after.present.all()
    (line,) = [record.getMessage() for record in caplog.records if "image skipped" in record.getMessage()]
    assert f"{ODD}.jpg: {message}" in line
    assert "(1 so far)" in line


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_file_is_absent_from_evaluation_or_ends_it(build, kind):
    content, message = UNREADABLE[kind]
    dataset = build(files={ODD: content})
    seen = [index for batch in epoch(shown_once(dataset)) for index in batch.index[batch.present]]
    assert sorted(seen) == [0, 1, 2, 4, 5, 6]
    with pytest.raises(BadImageError, match=rf"{ODD}\.jpg: {message}"):
        epoch(shown_once(dataset, on_bad_image="error"))


@pytest.mark.parametrize("kind", READABLE)
def test_an_unusual_file_is_shown_as_the_picture_that_it_is(build, kind):
    """To 12 grey levels on average, the losses of JPEG, palettes and the way to CMYK and back."""
    dataset = build(files={ODD: READABLE[kind]})
    shown = {int(i): batch.image[row] for batch in epoch(shown_once(dataset)) for row, i in enumerate(batch.index)}
    expected = picture(ODD)
    expected = np.repeat(expected[..., :1], 3, 2) if "grey" in kind else expected
    assert np.abs(shown[ODD][:HEIGHT, :WIDTH].astype(int) - expected).mean() < 12
    assert any(ODD in batch.index for batch in epoch(reader_of(dataset, on_bad_image="error")))


def test_the_limit_holds_for_images_to_detect_in_too():
    with pytest.raises(BadImageError, match=r"^x: it claims more than"):
        decoding.decode_upright(claiming(60000, 60000), "x")


def test_metadata_turn_an_image_where_the_annotated_size_is_the_turned_one(build):
    dataset = build(files={ODD: turned(6)}, images={ODD: {"height": WIDTH, "width": HEIGHT}})
    shown = {int(i): batch.image[row] for batch in epoch(shown_once(dataset)) for row, i in enumerate(batch.index)}
    expected = cv2.rotate(picture(ODD), cv2.ROTATE_90_CLOCKWISE)
    assert np.abs(shown[ODD][:WIDTH, :HEIGHT].astype(int) - expected).mean() < 6


@pytest.mark.parametrize("content", [claiming(60000, 60000), claiming(HEIGHT, HEIGHT), encoded(picture(0, 40, 40))])
def test_size_and_limit_are_judged_by_the_header_before_a_pixel_is_decoded(monkeypatch, content):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadImageError, match=r"^x: (it claims|\d+x\d+ pixels, but)"):
        decoding.decode(content, "x", height=HEIGHT, width=WIDTH)


def test_images_of_any_shape_stand_in_for_the_only_one_of_a_rare_shape(build):
    """Shrunk, so that they fit the input of that shape."""
    dataset = build(files={ODD: b""}, images={ODD: {"height": 60, "width": 30}})
    found = epoch(reader_of(dataset, scales=(32,)))
    rare = [batch for batch in found if batch.rows.weight.shape[1] > batch.columns.weight.shape[1]]
    assert rare
    for batch in rare:
        assert ODD not in batch.index
        assert (batch.image_size <= (64, 32)).all()


ABSURD = [
    box(0, bbox=[1, 2, float("nan"), 5]),
    box(1, bbox=[float("inf"), 2, 5, 5]),
    box(2, bbox=[1e308, 0, 1e308, 5]),
    box(3, bbox=[1, 2, 0, 5]),
    box(4, bbox=[1, 2, -5, 5]),
    box(5, bbox=[500, 2, 5, 5]),
    box(6, bbox=[-50, -50, 5, 5]),
    box(7, category_id=6),
    box(8, category_id=-1),
    box(9, category_id=None),
    box(10, image_id=77),
    box(11, bbox=[]),
    box(12, bbox={"x": 1}),
]


def test_absurd_annotations_are_dropped_and_counted(build):
    dataset = build(annotations=ABSURD)
    assert dataset.faults.counts == {
        "boxes with coordinates that are not finite": 2,
        "boxes without area": 2,
        "boxes outside their image": 3,
        "annotations of unknown categories": 3,
        "annotations of unknown images": 1,
        "annotations without a box of four numbers": 2,
    }
    np.testing.assert_array_equal(np.diff(dataset.records.offsets), 1)
    epoch(reader_of(dataset))


def test_what_reaches_beyond_the_border_is_cut_off_and_category_zero_is_a_class(build):
    annotations = [box(0, bbox=[-10, -10, 1e30, 1e30], category_id=0), box(1, bbox=[60.5, 40.25, 9, 9], category_id=0)]
    dataset = build(annotations=annotations)
    boxes, classes, _ = dataset.records.annotations(ODD)
    np.testing.assert_array_equal(boxes[1:], [[0, 0, WIDTH - 1, HEIGHT - 1], [60.5, 40.25, WIDTH - 1, HEIGHT - 1]])
    assert classes.tolist() == [2, 1, 1]
    epoch(reader_of(dataset))


def test_of_images_with_one_id_the_first_counts(build):
    dataset = build(images={ODD: {"id": 0}})
    assert dataset.faults.counts == {"images with the id of an earlier one": 1, "annotations of unknown images": 1}
    assert [os.path.basename(dataset.image_name(i)) for i in range(len(dataset))] == [
        f"{i}.jpg" for i in (0, 1, 2, 4, 5, 6)
    ]
    epoch(reader_of(dataset))


def test_the_largest_boxes_are_kept_in_their_order(build, caplog):
    sides = [3, 30, 9, 25, 4, 28]
    with caplog.at_level("WARNING"):
        dataset = build(annotations=[box(i, bbox=[2, 2, side, side]) for i, side in enumerate(sides)])
        found = epoch(shown_once(dataset))
    assert "1 images have more than data.max_boxes=4 boxes and keep the largest, the first: " in caplog.text
    (kept,) = [batch.gt.boxes[row] for batch in found for row in np.flatnonzero((batch.index == ODD) & batch.present)]
    np.testing.assert_array_equal(kept[:, 2] - kept[:, 0] + 1, [20, 30, 25, 28])


def test_images_with_nothing_or_only_crowds_are_left_out_or_pass_without_a_box(build):
    content = {ODD: {"id": 50}, 4: {"id": 51}}
    dataset = build(images=content, annotations=[box(0, image_id=51, iscrowd=1)])
    seen = {int(i) for batch in epoch(reader_of(dataset)) for i in batch.index}
    assert {int(dataset.records.image_ids[i]) for i in seen} == {0, 1, 2, 5, 6}
    found = epoch(reader_of(dataset, epoch=EpochRules(drop_empty=False)))
    rows = [(batch, row) for batch in found for row in range(2) if dataset.records.image_ids[batch.index[row]] >= 50]
    assert {
        (int(batch.gt.valid[row].sum()), int((batch.gt.crowd & batch.gt.valid)[row].sum())) for batch, row in rows
    } == {
        (0, 0),
        (1, 1),
    }


NUMBERS = st.integers(-(10**30), 10**30) | st.floats() | st.sampled_from([0, 1, 5, ODD])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "id": JUNK,
        "image_id": JUNK | st.just(ODD),
        "category_id": JUNK | st.just(5),
        "bbox": JUNK | st.lists(NUMBERS, min_size=4, max_size=4),
        "area": JUNK,
        "iscrowd": JUNK,
        "ignore": JUNK,
    },
)
POINTS = st.lists(st.floats(-100, 200) | st.integers(0, 60), min_size=6, max_size=12) | st.lists(NUMBERS, max_size=9)
COUNTS = st.lists(st.integers(-1, HEIGHT * WIDTH), max_size=5) | st.text(st.characters(max_codepoint=127), max_size=9)
RUNS = st.integers(0, HEIGHT * WIDTH).map(lambda start: [start, HEIGHT * WIDTH - start])
SEGMENTATIONS = (
    JUNK
    | st.lists(POINTS | JUNK, max_size=3)
    | st.fixed_dictionaries({"size": st.just([HEIGHT, WIDTH]) | JUNK, "counts": RUNS | COUNTS | JUNK})
)


@settings(deadline=None, max_examples=60)
@given(st.lists(FIELDS, max_size=8))
def test_no_annotation_whatever_spoils_a_batch(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("junk")
    (folder / "1.jpg").write_bytes(encoded(picture(1)))
    content = {
        "images": [{"id": ODD, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [box(0), *({**box(1), **change} for change in changes)],
        "categories": CATEGORIES,
    }
    (folder / "set.json").write_text(json.dumps(content))
    dataset = coco.load(folder / "set.json", folder)
    assert 1 <= len(dataset.records.boxes) <= 1 + len(changes)
    check(reader_of(dataset, on_bad_image="error")(0)[0])


@settings(deadline=None, max_examples=100)
@given(st.lists(SEGMENTATIONS | st.just(...), max_size=4), st.booleans(), st.sampled_from([0, 3, 5]))
def test_no_mask_whatever_spoils_a_batch_or_costs_a_box(tmp_path_factory, values, crowd, limit):
    folder = tmp_path_factory.mktemp("junk")
    (folder / "1.jpg").write_bytes(encoded(picture(1)))
    changes = [{} if value is ... else {"segmentation": value} for value in values]
    content = {
        "images": [{"id": ODD, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            box(0, segmentation=[[1, 1, 9, 1, 9, 9, 1, 9]]),
            *({**box(1, iscrowd=int(crowd)), **change} for change in changes),
        ],
        "categories": CATEGORIES,
    }
    (folder / "set.json").write_text(json.dumps(content))
    dataset = coco.load(folder / "set.json", folder, masks=True)
    assert len(dataset.records.boxes) == len(dataset.records.outlines) == 1 + len(changes)
    boxes_only = coco.load(folder / "set.json", folder)
    np.testing.assert_array_equal(dataset.records.boxes, boxes_only.records.boxes)
    unknown = sum(1 for row in range(1, 1 + len(changes)) if not crowd and not dataset.records.outlines.sizes[row])
    kinds = {**dataset.faults.counts, **dataset.notes.counts}
    assert sum(kinds.values()) >= unknown
    rules = BatchRules(max_boxes=8, max_vertices=limit, on_bad_image="error")
    for mirrored in (False, True):
        reader = train_reader(dataset, [Mirror()], batch_size=1, seed=int(mirrored), rules=rules)
        for step in range(reader.steps):
            batch = reader(step)[0]
            check(batch)
            assert (batch.gt.masks.part[0, 0] >= 0).sum() == min(reader.rules.max_vertices, 4)


def test_runs_of_an_absurd_size_cost_no_memory(build):
    side = 2**20 - 1
    runs = {"size": [side, side], "counts": [0, side * side]}
    dataset = build(masks=True, images={ODD: {"height": side, "width": side}}, annotations=[box(0, segmentation=runs)])
    assert dataset.faults.counts == {"masks as RLE that cannot be decoded": 1}


@pytest.mark.parametrize("side", [0, -1, 2**20, 2**31, 10**30, 2.5, None, True, "tall", float("nan")])
def test_the_size_of_an_image_without_a_proper_one_is_its_files(build, side):
    dataset = build(images={ODD: {"height": side}})
    assert (dataset.records.heights == HEIGHT).all() and (dataset.records.widths == WIDTH).all()
    assert not dataset.faults.counts
    assert dataset.notes.counts == {"images without a proper height and width, taken from their files": 1}
    epoch(reader_of(dataset))


def test_the_size_of_a_turned_file_is_the_one_that_a_viewer_shows(build):
    dataset = build(files={ODD: turned(6)}, images={ODD: {"height": None, "width": None}})
    assert (dataset.records.heights[ODD], dataset.records.widths[ODD]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("size", [(48.0, 64.0), ("48", "64"), (" 48.0 ", 64)])
def test_a_size_may_be_written_as_any_number(build, size):
    dataset = build(images={ODD: {"height": size[0], "width": size[1]}})
    assert (dataset.records.heights[ODD], dataset.records.widths[ODD]) == (HEIGHT, WIDTH)
    assert not dataset.faults.counts and not dataset.notes.counts


@pytest.mark.parametrize("kind", ["empty", "bomb", "missing"])
def test_an_image_without_a_size_anywhere_is_left_out_with_the_reason(build, kind):
    content, reason = UNREADABLE[kind]
    dataset = build(files={ODD: content}, images={ODD: {"height": None}})
    assert len(dataset) == 6
    counts = dataset.faults.counts
    assert counts["images without a proper height and width, nor a file that tells it"] == 1
    assert counts["annotations of images that cannot be used"] == 1
    assert reason in dataset.faults.examples["images without a proper height and width, nor a file that tells it"][0]


def test_an_absurd_size_in_the_annotations_costs_no_memory(build, caplog):
    dataset = build(images={ODD: {"height": 2**20 - 1, "width": 2**20 - 1}})
    with caplog.at_level("WARNING"):
        for batch in epoch(reader_of(dataset)):
            assert batch.image.nbytes < 10**6
    assert f"{ODD}.jpg: 64x48 pixels, but the annotations say 1048575x1048575" in caplog.text


def test_preparing_records_reads_no_file_outside_and_reading_them_decodes_no_bomb(tmp_path):
    write_set(tmp_path, images={ODD: {"file_name": "../../3.jpg"}})
    with pytest.raises(UserError, match=r"instances_seven\.json: image 3 has the file name '\.\./\.\./3\.jpg'"):
        prepare_tfds.prepare(str(tmp_path), str(tmp_path / "hostile"), {"train": "seven"})
    write_set(tmp_path, files={ODD: claiming_jpeg(65500, 65500)})
    directory = prepare_tfds.prepare(str(tmp_path), str(tmp_path / "records"), {"train": "seven"})
    with pytest.raises(BadImageError, match="train: image 3: it claims more than"):
        tfds.load(["train"], directory)


@pytest.mark.parametrize("name", ["a\nb.jpg", "\x1b[2Jx.jpg", "\ud800.jpg", "x" * 1025, "../../1.jpg", "/etc/passwd"])
def test_hostile_names_are_refused_in_one_line(build, name):
    with pytest.raises(UserError, match=r"image 3 has the file name .*\(1 others are refused too\)") as error:
        build(images={ODD: {"file_name": name}, 5: {"file_name": name}})
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 2000


def test_only_what_is_a_file_in_the_end_is_opened(build):
    dataset = build()
    replaced = {number: dataset.image_name(number) for number in (1, 2, 4, 5)}
    for path in replaced.values():
        os.remove(path)
    os.mkfifo(replaced[1])
    os.symlink("/dev/zero", replaced[2])
    os.mkdir(replaced[4])
    with open(replaced[5], "wb") as file:
        file.truncate(coco.MAX_BYTES + 1)
    for number in (1, 2, 4):
        with pytest.raises(BadImageError, match=rf"{number}\.jpg: cannot be read \(it is no regular file\)"):
            dataset.read(number)
    with pytest.raises(BadImageError, match=r"5\.jpg: cannot be read \(1073741825 bytes; the limit is 1073741824\)"):
        dataset.read(5)
    assert {int(i) for batch in epoch(reader_of(dataset)) for i in batch.index} == {0, 3, 6}


def test_the_kind_of_an_error_survives_the_way_from_a_worker():
    with pytest.raises(BadImageError) as error:
        decoding.decode(encoded(picture(0)), "x", height=1, width=1)
    copy = pickle.loads(pickle.dumps(error.value))
    assert (str(copy), copy.kind) == (
        "x: 64x48 pixels, but the annotations say 1x1",
        "image files of another size than the annotations say",
    )


def test_links_are_followed(build, tmp_path):
    dataset = build()
    os.rename(dataset.image_name(ODD), tmp_path / "elsewhere.jpg")
    os.symlink(tmp_path / "elsewhere.jpg", dataset.image_name(ODD))
    assert dataset.read(ODD) == encoded(picture(ODD))
    os.remove(tmp_path / "elsewhere.jpg")
    with pytest.raises(BadImageError, match="No such file"):
        dataset.read(ODD)


@pytest.mark.slow
def test_a_run_over_a_damaged_data_set_goes_on(shapes_root, tiny_config, tmp_path, caplog):
    root = tmp_path / "shapes"
    shutil.copytree(shapes_root, root)
    damaged = sorted((root / "images" / "train").iterdir())[:3]
    for path, (content, _) in zip(damaged, UNREADABLE.values()):
        path.write_bytes(content)
    annotation_file = root / "annotations" / "instances_train.json"
    content = json.loads(annotation_file.read_text())
    content["annotations"] += ABSURD
    annotation_file.write_text(json.dumps(content))
    config = tiny_config()
    config.data.root = str(root)
    config.data.on_bad_image = "skip"
    with caplog.at_level("WARNING"):
        train.train(config, str(tmp_path / "run"))
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert len(losses) == config.solver.max_iter // config.log.every
    assert np.isfinite(losses).all()
    skipped = [record.getMessage() for record in caplog.records if "image skipped" in record.getMessage()]
    assert 1 <= len(skipped) <= len(damaged)
    assert all(any(str(path) in message for path in damaged) for message in skipped)
