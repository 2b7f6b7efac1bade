"""Run lengths against pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from diou_jax.data import rle

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(bool, shape))


def runs_of(mask):
    """The runs of a mask, column by column, beginning with those outside the object."""
    flat = mask.T.reshape(-1).astype(int)
    borders = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return np.diff(borders, prepend=0).tolist()


def encoded(mask):
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]


def whole(crop, shape):
    """The full mask of a crop."""
    mask = np.zeros(shape, bool)
    if crop is not None:
        mask[crop.top :, crop.left :][: crop.mask.shape[0], : crop.mask.shape[1]] = crop.mask
    return mask


@settings(deadline=None, max_examples=200)
@given(masks, st.integers(0, 3))
def test_every_spelling_of_a_mask_is_that_mask(mask, scale):
    mask = np.kron(mask, np.ones((1 + 9 * scale, 1 + 13 * scale), bool))  # counts of several characters, too
    text = encoded(mask)
    for counts in (
        text,
        text.decode(),
        runs_of(mask),
        [float(run) for run in runs_of(mask)],
        list(map(str, runs_of(mask))),
    ):
        crop = rle.crop(counts, *mask.shape)
        np.testing.assert_array_equal(whole(crop, mask.shape), mask)
        assert (crop is None) == (not mask.any())
        if crop is not None:
            assert crop.mask.any(0)[[0, -1]].all() and crop.mask.any(1)[[0, -1]].all()


def test_runs_without_pixels_count_for_nothing():
    assert rle.crop([0, 0, 2, 0, 1, 2, 1, 0, 0], 2, 3).mask.tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "counts",
    [
        "",
        b"",
        [],
        [5],
        [7],
        [3, -1, 4],
        [3, 2, 1, 1],
        [3, 2.5, 0.5],
        [3, "x"],
        [3, None],
        [True, 5],
        [float("nan"), 6],
        [float("inf")],
        [2**63, 6],
        [6, 2**64 - 6],
        None,
        6,
        {"0": 6},
    ],
)
def test_what_is_no_mask_of_six_pixels_is_refused(counts):
    with pytest.raises(ValueError):
        rle.crop(counts, 2, 3)


@pytest.mark.parametrize("text", ["6 ", "é", "33\n", "P", "3P", "oooooooooooo3", "\x00", "6pp", "o" * 5000, "3" * 5000])
def test_strings_that_are_no_runs_are_refused(text):
    with pytest.raises(ValueError):
        rle.crop(text, 2, 3)
    with pytest.raises(ValueError):
        rle.crop(text.encode("latin-1"), 2, 3)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=12) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12))
def test_no_string_does_harm(text):
    try:
        crop = rle.crop(text, 4, 5)
    except ValueError:
        return
    text = text if isinstance(text, bytes) else text.encode()
    np.testing.assert_array_equal(whole(crop, (4, 5)), coco_mask.decode({"size": [4, 5], "counts": text}))
