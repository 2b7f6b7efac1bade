"""Pasting against the original's numbers, against float64 and against pycocotools; run lengths of any string."""

import itertools
import time
from unittest import mock

import numpy as np
import pytest
from conftest import find_golden
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from diou_jax import masks

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def pasted():
    """The original's pasting of smooth masks: at borders, of one pixel, inside out."""
    with np.load(find_golden("mask_targets_paste_loss.npz", "golden2")) as file:
        return {name.removeprefix("paste/"): file[name] for name in file.files if name.startswith("paste/")}


def counts(rles):
    return [rle["counts"] for rle in rles]


@pytest.mark.parametrize(
    ("case", "source", "threshold"),
    [("specific", "masks", 0.5), ("agnostic", "masks_class0", 0.5), ("thresh0.3", "masks", 0.3)],
)
def test_pasted_masks_equal_the_original_to_the_pixel(pasted, case, source, threshold):
    height, width = pasted["im_size"].tolist()
    rles = masks.encode(pasted[source], pasted["boxes"], height=height, width=width, threshold=threshold)
    assert counts(rles) == pasted[f"{case}/rle_counts"].tolist()
    assert all(rle["size"] == [height, width] for rle in rles)
    packed = pasted[f"{case}/masks_packed"]
    wanted = np.unpackbits(packed, axis=1)[:, : height * width].reshape(-1, height, width)
    np.testing.assert_array_equal(masks.decode(rles, height=height, width=width), wanted.astype(bool))


def test_reference_boxes_equal_the_original(pasted):
    ours = masks.reference_boxes(pasted["boxes"], resolution=28)
    np.testing.assert_array_equal(ours, pasted["expanded_int32"])
    assert ours.dtype == np.int32
    # The original's boxes before it cuts off decimals: some are negative, where cutting off is no rounding down.
    assert (np.floor(pasted["expanded_f64"]) != ours).any()


def test_a_photographs_masks_equal_the_original():
    with np.load(find_golden("model_mask_r50fpn.npz", "golden2")) as file:
        data = {name: file[name] for name in ("dets", "mask_prob_own_class", "segm_size", "segm_rle_counts")}
        reference = file["segm_ref_boxes_int32"]
    height, width = data["segm_size"].tolist()
    boxes = data["dets"][:, 1:5]
    np.testing.assert_array_equal(masks.reference_boxes(boxes, resolution=28), reference)
    ours = counts(masks.encode(data["mask_prob_own_class"], boxes, height=height, width=width))
    assert len(ours) == 100 and ours == data["segm_rle_counts"].tolist()


def in_float64(grid, box, *, height, width, threshold):
    """The mask by the formula in double precision, and the pixels whose probability is too near the threshold."""
    x1, y1, x2, y2 = box

    def blend(begin, end, length):
        """Linear interpolation of a grid's axis onto pixels 0 to length - 1, a matrix."""
        size, pixels = len(grid), end - begin + 1
        position = (np.arange(length) - begin + 0.5) * size / pixels - 0.5
        low = np.floor(position).astype(int)
        matrix = np.zeros((length, size))
        for index, weight in ((low, 1 - (position - low)), (low + 1, position - low)):
            np.add.at(matrix, (np.arange(length), np.clip(index, 0, size - 1)), weight)
        matrix[(np.arange(length) < begin) | (np.arange(length) > end)] = 0
        return matrix

    values = blend(y1, y2, height) @ grid.astype(np.float64) @ blend(x1, x2, width).T
    return values > threshold, np.abs(values - threshold) < 1e-5


def random_cases(rng, number):
    """Boxes of any size in, across and around an image, and masks from smooth to noise."""
    centre = rng.uniform(-20, [WIDTH + 20, HEIGHT + 20], (number, 2))
    half = np.exp(rng.uniform(np.log(0.1), np.log(60), (number, 2)))
    half[::7] = 0
    boxes = np.concatenate([centre - half, centre + half], 1)
    boxes[1::3] = np.clip(boxes[1::3], 0, [WIDTH - 1, HEIGHT - 1] * 2)
    boxes[2::9] = np.float32([0, 0, WIDTH - 1, HEIGHT - 1])
    return rng.uniform(0, 1, (number, 28, 28)).astype(np.float32), boxes.astype(np.float32)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.05, 0.95])
def test_pasted_masks_equal_the_formula_in_float64(threshold):
    grids, boxes = random_cases(np.random.default_rng(0), 300)
    ours = masks.decode(
        masks.encode(grids, boxes, height=HEIGHT, width=WIDTH, threshold=threshold), height=HEIGHT, width=WIDTH
    )
    corners = masks.reference_boxes(boxes, resolution=28)
    near = different = 0
    for grid, box, mask in zip(np.pad(grids, ((0, 0), (1, 1), (1, 1))), corners, ours, strict=True):
        wanted, close = in_float64(grid, box, height=HEIGHT, width=WIDTH, threshold=threshold)
        near += close.sum()
        different += ((mask != wanted) & ~close).sum()
    assert different == 0 and ours.any() and near < 1e-3 * ours.size


@pytest.mark.parametrize("threshold", [0.5, 0.05, -1.0])
def test_run_lengths_are_those_of_pycocotools(threshold):
    """At a threshold of -1 a mask fills its box, from column to column where the box is as high as the image."""
    grids, boxes = random_cases(np.random.default_rng(1), 300)
    rles = masks.encode(grids, boxes, height=HEIGHT, width=WIDTH, threshold=threshold)
    decoded = masks.decode(rles, height=HEIGHT, width=WIDTH)
    assert decoded.shape == (300, HEIGHT, WIDTH) and decoded.dtype == bool
    again = coco_mask.encode(np.asfortranarray(np.moveaxis(decoded, 0, 2), np.uint8))
    assert counts(rles) == [rle["counts"].decode() for rle in again]
    corners = masks.reference_boxes(boxes, resolution=28)
    rows, columns = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
    within = [(x1 <= columns) & (columns <= x2) & (y1 <= rows) & (rows <= y2) for x1, y1, x2, y2 in corners.tolist()]
    assert not (decoded & ~np.array(within)).any()
    if threshold < 0:
        np.testing.assert_array_equal(decoded, within)
        assert any(mask.all() for mask in decoded)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_images_of_a_few_pixels(size):
    height, width = size
    corners = [(x1, y1, x2, y2) for x1, x2 in [(0, 0), (0, width - 1)] for y1, y2 in [(0, 0), (0, height - 1)]]
    for box, value in itertools.product(corners, (0.0, 1.0)):
        grid = np.full((1, 28, 28), value, np.float32)
        (rle,) = masks.encode(grid, np.float32([box]), height=height, width=width)
        mask = masks.decode([rle], height=height, width=width)[0]
        assert rle["counts"] == coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        assert mask[: box[3] + 1, : box[2] + 1].all() == bool(value)


def test_no_detections():
    nothing = masks.encode(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), height=5, width=7)
    assert nothing == []
    assert masks.decode(nothing, height=5, width=7).shape == (0, 5, 7)


def test_a_mirrored_mask_is_pasted_mirrored_where_the_box_mirrors_onto_pixels():
    """Cutting off decimals is not symmetric, so that only boxes whose expanded sides are whole mirror exactly."""
    rng = np.random.default_rng(2)
    grids = rng.uniform(0, 1, (20, 28, 28)).astype(np.float32)
    # With sides of 28 the expanded box is larger by exactly 1 pixel on each side.
    corner = rng.integers(2, 12, (20, 2))
    boxes = np.concatenate([corner, corner + 28], 1).astype(np.float32)
    flipped = boxes.copy()
    flipped[:, [0, 2]] = WIDTH - 1 - boxes[:, [2, 0]]
    one = masks.decode(masks.encode(grids, boxes, height=HEIGHT, width=WIDTH), height=HEIGHT, width=WIDTH)
    other = masks.encode(grids[..., ::-1], flipped, height=HEIGHT, width=WIDTH)
    np.testing.assert_array_equal(masks.decode(other, height=HEIGHT, width=WIDTH), one[..., ::-1])


def test_large_images_cost_as_much_as_their_boxes():
    height, width = 3000, 4000
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 2500, (100, 2))
    boxes = np.concatenate([corner, corner + 100], 1).astype(np.float32)
    boxes[0] = [0, 0, width - 1, height - 1]
    began = time.perf_counter()
    rles = masks.encode(rng.uniform(0, 1, (100, 28, 28)), boxes, height=height, width=width)
    # The images would be 1.2 GB, which take seconds.
    assert time.perf_counter() - began < 2
    assert [rle["size"] for rle in rles] == [[height, width]] * 100
    assert coco_mask.area(rles[0]) == pytest.approx(0.5 * height * width, rel=0.1)


@pytest.mark.parametrize("safe", [masks.SAFE_RUN, 0])
@given(runs=st.lists(st.lists(st.integers(0, 2**23), min_size=1, max_size=9), min_size=1, max_size=4))
def test_compressed_strings_are_those_of_pycocotools(safe, runs):
    wanted = coco_mask.frPyObjects([{"size": [1, sum(run)], "counts": run} for run in runs], 1, 1)
    with mock.patch.object(masks, "SAFE_RUN", safe):
        assert masks.compress([np.array(run) for run in runs]) == [rle["counts"].decode() for rle in wanted]


def test_runs_beyond_the_range_of_pycocotools_survive():
    for run in ([2**40], [0, 2**31, 5, 2**45, 2**31, 1], [2**29 - 1, 2**29, 2**30]):
        assert masks.run_lengths(masks.compress([np.array(run)])[0]).tolist() == run


def test_run_lengths_of_strings():
    rng = np.random.default_rng(4)
    for _ in range(50):
        mask = rng.uniform(size=rng.integers(1, 90, 2)) < rng.uniform(0, 1)
        mask = np.repeat(mask, rng.integers(1, 50), 0)
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        lengths = masks.run_lengths(rle["counts"].decode())
        assert lengths.sum() == mask.size
        again = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(mask.shape, order="F")
        np.testing.assert_array_equal(again, mask)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "empty"), ("a b", "characters"), ("\x7f", "characters"), ("0P", "breaks off"), ("P" * 30 + "0", "breaks off"),
     ("O", "negative")],
)  # fmt: skip
def test_what_is_no_rle_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        masks.run_lengths(text)


def test_letters_beyond_ascii_are_refused():
    with pytest.raises(ValueError, match="ascii"):
        masks.run_lengths("5ä")
