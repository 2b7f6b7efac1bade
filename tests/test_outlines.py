"""The table of outlines, and its way from an annotation file to a batch."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest
from conftest import find_golden
from flax import serialization, traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reader import RULES, make_dataset

from diou_jax.data import coco, packing
from diou_jax.data.augmentation import Mirror, ScaleChoice
from diou_jax.data.buckets import Bucket
from diou_jax.data.dataset import join
from diou_jax.data.division import subset
from diou_jax.data.fingerprint import fingerprint
from diou_jax.data.make_reader import EpochRules, eval_reader, train_reader
from diou_jax.data.outlines import concatenate, from_parts
from diou_jax.data.view import flip_points, mirrored, whole
from diou_jax.errors import UserError
from diou_jax.training.diagnosis import load_batch

BUCKET = Bucket(64, 96, 64, 96)


def square(x, y, side=4.0):
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float)


def triangle(x, y):
    return np.array([[x, y], [x + 4, y], [x, y + 3]], float)


THREE = [[square(1, 1), triangle(20, 20)], [], [triangle(5, 6)]]


def same(outlines, wanted):
    assert len(outlines) == len(wanted)
    for index, parts in enumerate(wanted):
        found = outlines.of(index)
        assert len(found) == len(parts)
        for one, other in zip(found, parts, strict=True):
            np.testing.assert_array_equal(one, other)


def of_set(name):
    """The polygons of a golden set as a list of lists of arrays (n, 2)."""
    with np.load(find_golden("mask_targets_paste_loss.npz", "golden2")) as file:
        ends, instance = np.cumsum(file["poly/len"]), file["poly/instance"]
        parts = [part.reshape(-1, 2) for part in np.split(file[f"{name}/coords_f64"], ends[:-1])]
    return [[parts[i] for i in np.flatnonzero(instance == number)] for number in range(instance.max() + 1)]


def batch_of(parts, view):
    """The `Polygons` that a batch has for one image of a view, with a box for each object."""
    count = len(parts)
    masks = from_parts(parts).padded(96)
    boxes = np.tile(np.array([[1.0, 1, 5, 5]]), (count, 1))
    truth = packing.Annotations(boxes, np.ones(count, int), np.zeros(count, bool), masks)
    pixels = np.zeros((*view.source, 3), np.uint8)
    example = packing.example(pixels, view, Bucket(160, 192, 160, 192), annotations=truth, max_boxes=count)
    return packing.pack([example], Bucket(160, 192, 160, 192)).gt.masks


def test_points_are_mirrored_as_the_original_mirrors_polygons():
    """mask_targets_paste_loss.npz: flip; bit for bit in float64, and in a batch the float32 of the same numbers."""
    plain, flipped = of_set("poly"), of_set("flip")
    with np.load(find_golden("mask_targets_paste_loss.npz", "golden2")) as file:
        height, width = file["full/size"].tolist()
    for parts, wanted in zip(plain, flipped, strict=True):
        for one, other in zip(parts, wanted, strict=True):
            np.testing.assert_array_equal(flip_points(one, width), other)
    for view, wanted in ((whole((height, width)), plain), (mirrored((height, width)), flipped)):
        masks = batch_of(plain, view)
        assert masks.points.dtype == np.float32 and masks.part.dtype == np.int32
        assert not masks.points[masks.part < 0].any()
        for row, parts in enumerate(wanted):
            for number, part in enumerate(parts):
                found = masks.points[0, row][masks.part[0, row] == number]
                np.testing.assert_array_equal(found, part.astype(np.float32))
            assert masks.part[0, row].max() == len(parts) - 1


def test_the_order_of_mirroring_and_rounding_matters():
    """So the test above can fail: mirrored in float32, some of the same points are others."""
    points = np.concatenate([part for parts in of_set("poly") for part in parts])
    late = flip_points(points.astype(np.float32), 171)
    assert 0 < (late != flip_points(points, 171).astype(np.float32)).sum() < late.size / 2


def test_the_toy_set_equals_the_originals_roidb(tmp_path):
    """toy2_segm_kps.npz: the polygons of every object, of the originals and of the mirrored copies, exactly."""
    dataset = coco.load(find_golden("toy2", "golden2") / "instances.json", tmp_path, masks=True)
    records = dataset.records
    with np.load(find_golden("toy2_segm_kps.npz", "golden2")) as file:
        for number in range(8):
            entry = {key: file[f"inst/roidb/{number}/{key}"] for key in ("meta_id_h_w_flipped", "poly_len", "boxes")}
            image_id, _, width, flipped = entry["meta_id_h_w_flipped"].tolist()
            outlines = records.outlines_of(records.image_ids.tolist().index(image_id))
            assert len(outlines) == len(entry["boxes"])
            instance = file[f"inst/roidb/{number}/poly_instance"]
            parts = np.split(file[f"inst/roidb/{number}/poly_coords_f64"], np.cumsum(entry["poly_len"])[:-1])
            for row in range(len(outlines)):
                found = [flip_points(part, width) if flipped else part for part in outlines.of(row)]
                wanted = [parts[i].reshape(-1, 2) for i in np.flatnonzero(instance == row)]
                assert list(map(len, found)) == list(map(len, wanted))
                for one, other in zip(found, wanted):
                    np.testing.assert_array_equal(one, other)
    assert dataset.faults.counts == {"parts of masks with fewer than three points, left out": 9}


def test_a_box_detector_reads_none_of_it(tmp_path):
    dataset = coco.load(find_golden("toy2", "golden2") / "instances.json", tmp_path)
    assert dataset.records.outlines is None and dataset.records.outlines_of(0) is None
    assert not dataset.faults.counts


def test_the_table_gives_back_what_it_was_made_of():
    outlines = from_parts(THREE)
    same(outlines, THREE)
    assert outlines.sizes.tolist() == [7, 0, 3]
    same(outlines.slice(1, 3), THREE[1:])
    same(outlines.take(np.array([2, 0, 2])), [THREE[2], THREE[0], THREE[2]])
    same(outlines.without(np.array([True, False, False])), [[], [], THREE[2]])
    same(outlines.spread(np.array([False, True, True, False, True])), [[], THREE[0], [], [], THREE[2]])
    same(concatenate([outlines, from_parts([]), outlines]), [*THREE, *THREE])
    same(from_parts([]), [])


def test_padded_outlines_name_the_part_of_each_vertex():
    masks = from_parts(THREE).padded(8)
    assert masks.part.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1], [-1] * 8, [0, 0, 0, *[-1] * 5]]
    np.testing.assert_array_equal(masks.points[0, :7], np.concatenate(THREE[0]))
    assert not masks.points[masks.part < 0].any()
    with pytest.raises(ValueError, match="an object has 7 vertices; they do not fit into 6"):
        from_parts(THREE).padded(6)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_chosen_objects_are_those_of_the_list(data):
    objects = data.draw(
        st.lists(st.lists(st.integers(3, 5).map(lambda n: np.arange(2.0 * n).reshape(n, 2)), max_size=3), max_size=6)
    )
    rows = data.draw(st.lists(st.integers(0, len(objects) - 1), max_size=8)) if objects else []
    same(from_parts(objects).take(np.array(rows, int)), [objects[row] for row in rows])


def with_masks(counts=(2, 1, 0, 3, 1, 1, 1), shift=0.0):
    """The pictures of test_reader, whose object k of image i is a square at (i, k) and, if i is odd, a triangle."""
    dataset = make_dataset(counts=list(counts))
    parts = [
        [square(i + shift, k), *([triangle(10 + i, 10 + k)] if i % 2 else [])]
        for i, n in enumerate(counts)
        for k in range(n)
    ]
    return dataclasses.replace(dataset, records=dataclasses.replace(dataset.records, outlines=from_parts(parts)))


def readers_of(dataset, **options):
    augmentations = Mirror(), ScaleChoice((32,), 64)
    rules = dataclasses.replace(RULES, **options)
    train = train_reader(dataset, augmentations, batch_size=2, seed=0, epoch=EpochRules(drop_empty=False), rules=rules)
    return train, eval_reader(dataset, augmentations, batch_size=2, rules=rules)


def test_outlines_follow_their_images_through_joining_choosing_and_workers():
    dataset = pickle.loads(pickle.dumps(join([with_masks(), with_masks(shift=0.5)])))
    same(dataset.records.outlines_of(7), [[square(0.5, 0)], [square(0.5, 1)]])
    chosen = subset(dataset, np.array([8, 3]))
    same(chosen.records.outlines_of(0), [[square(1.5, 0), triangle(11, 10)]])
    same(chosen.records.outlines_of(1), [[square(3, k), triangle(13, 10 + k)] for k in range(3)])
    assert join([with_masks(), make_dataset()]).records.outlines is None


def test_the_fingerprint_depends_on_outlines():
    data = with_masks()
    boxes_only = dataclasses.replace(data, records=dataclasses.replace(data.records, outlines=None))
    assert len({fingerprint(one)["digest"] for one in (boxes_only, data, with_masks(shift=0.5))}) == 3
    assert fingerprint(with_masks()) == fingerprint(data)


def test_batches_have_the_outlines_of_their_boxes_mirrored_with_the_image():
    train, shown = readers_of(with_masks())
    assert train.rules.max_vertices == 16
    seen = set()
    for step in range(train.steps):
        batch, _ = train(step)
        assert batch.gt.masks.points.shape == (2, 4, 16, 2)
        for row, index in enumerate(batch.index.tolist()):
            flip, width = bool(batch.placement.mirrored[row]), batch.original_size[row, 1]
            seen.add((index, flip))
            valid = batch.gt.valid[row]
            assert (batch.gt.masks.part[row][~valid] == -1).all()
            for k in range(valid.sum()):
                wanted = [square(index, k), *([triangle(10 + index, 10 + k)] if index % 2 else [])]
                wanted = [flip_points(part, width) if flip else part for part in wanted]
                for number, part in enumerate(wanted):
                    where = batch.gt.masks.part[row, k] == number
                    np.testing.assert_array_equal(batch.gt.masks.points[row, k][where], part)
                assert batch.gt.masks.part[row, k].max() == len(wanted) - 1
    assert seen == {(index, flip) for index in range(7) for flip in (False, True)}
    assert shown(0)[0].gt.masks is None


def test_masks_stay_with_the_largest_boxes():
    """Box k is k pixels larger than its neighbour, so the last four of six are kept."""
    train, _ = readers_of(with_masks(counts=(6, 1, 1, 1, 1, 1, 1)))
    for step in range(train.steps):
        batch, _ = train(step)
        for row in np.flatnonzero((batch.index == 0) & ~batch.placement.mirrored):
            np.testing.assert_array_equal(batch.gt.masks.points[row, :, 0, 1], [2, 3, 4, 5])


def test_blank_batches_have_the_structure_of_real_ones():
    for reader in readers_of(with_masks()):
        batch = reader(0)[0]
        alike = [one for one in reader.blanks(0, reader.steps) if one.image.shape == batch.image.shape]
        (one,) = alike
        assert jax.tree.structure(one) == jax.tree.structure(batch)
        shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(one)]
        assert shapes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)]
        assert one.gt.masks is None or (one.gt.masks.part == -1).all()


@pytest.mark.parametrize("asked, limit", [(0, 48), (3, 3), (20, 20), (100, 100)])
def test_outlines_are_simplified_to_the_limit_and_named(caplog, asked, limit):
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([15 + 9 * np.cos(turns), 15 + 9 * np.sin(turns)], 1)
    dataset = with_masks()
    parts = [dataset.records.outlines.of(row) for row in range(9)]
    parts[4] = [circle]  # the second object of image 3
    dataset = dataclasses.replace(dataset, records=dataclasses.replace(dataset.records, outlines=from_parts(parts)))
    with caplog.at_level("WARNING"):
        train, _ = readers_of(dataset, max_vertices=asked)
    assert train.rules.max_vertices == limit
    sizes = train.dataset.records.outlines.sizes
    assert sizes.max() <= limit and (limit < 8 or sizes[0] == 4) and sizes.min() == min(limit, 4)
    warnings = [record.getMessage() for record in caplog.records if "max_vertices" in record.getMessage()]
    if limit >= 40:
        assert not warnings
        same(train.dataset.records.outlines, parts)
    elif limit == 20:
        (line,) = warnings
        assert line == (
            "pictures: 1 objects have more than data.max_vertices=20 vertices and are simplified to it, "
            "the first: one of 40 vertices in picture3.png"
        )


def test_a_set_without_any_mask_is_refused_with_the_mend():
    dataset = make_dataset()
    outlines = from_parts([[]] * len(dataset.records.boxes))
    dataset = dataclasses.replace(dataset, records=dataclasses.replace(dataset.records, outlines=outlines))
    with pytest.raises(UserError, match=r"none of its 7 objects has a mask to learn from; model\.mask_on=False"):
        readers_of(dataset)


def test_a_batch_that_is_kept_for_diagnosis_keeps_its_outlines(tmp_path):
    train, _ = readers_of(with_masks())
    batch, _ = train(0)
    fields = traverse_util.flatten_dict(serialization.to_state_dict(batch), sep=".")
    np.savez(tmp_path / "batch.npz", **{name: value for name, value in fields.items() if value is not None})
    jax.tree.map(np.testing.assert_array_equal, load_batch(tmp_path / "batch.npz"), batch)
