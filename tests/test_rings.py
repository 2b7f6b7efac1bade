"""The outlines of masks along the edges of their pixels, against pycocotools' filling."""

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools import mask as coco_mask
from test_rle import masks

from diou_jax.data import rings

CROSSED = np.array([[1, 0], [0, 1]], bool)
NESTED = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 1, 0, 1, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ],
    bool,
)


def fill(parts, shape):
    """COCO's filling of parts, united."""
    runs = coco_mask.frPyObjects([part.reshape(-1).tolist() for part in parts], *shape)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


@settings(deadline=None, max_examples=300)
@given(masks)
def test_the_outline_of_a_mask_fills_to_that_mask(mask):
    """Holes, islands in holes, pieces, touching corners: whatever there is, bit for bit by COCO's filling."""
    if mask.any():
        np.testing.assert_array_equal(fill(rings.parts(mask), mask.shape), mask)


@pytest.mark.parametrize(
    "mask, vertices",
    [
        (np.ones((1, 1)), [4]),
        (np.ones((3, 5)), [4]),
        (CROSSED, [4 + 4 + 2]),
        (CROSSED[::-1], [8]),
        (NESTED, [4 + 4 + 2, 4 + 4 + 2]),
        (np.array([[1, 0, 1]]), [4, 4]),
        (np.array([[1, 1], [1, 0]]), [6]),
    ],
)
def test_each_piece_of_a_mask_is_one_part(mask, vertices):
    mask = mask.astype(bool)
    assert [len(part) for part in rings.parts(mask)] == vertices
    for turns in range(4):
        turned = np.rot90(mask, turns)
        np.testing.assert_array_equal(fill(rings.parts(turned), turned.shape), turned)


@pytest.mark.parametrize("tolerance, share", [(0.5, 0.85), (1.0, 0.35)])
def test_an_outline_with_tolerance_stays_within_it(tolerance, share):
    """A ring's outline has fewer vertices, keeps its area, and moves no pixel further from a border than it may."""
    y, x = np.mgrid[:80, :90] + 0.5
    distance = np.hypot(x - 45, y - 40)
    mask = (distance < 35) & (distance > 18)
    exact, simple = rings.parts(mask), rings.parts(mask, tolerance=tolerance)
    assert len(simple) == 1 and len(simple[0]) < share * len(exact[0])
    differing = fill(simple, mask.shape) != mask
    border = np.minimum(abs(distance - 35), abs(distance - 18))
    assert border[differing].max(initial=0) <= tolerance + 0.5
    assert fill(simple, mask.shape).sum() == pytest.approx(mask.sum(), rel=0.02)
