"""Fewer vertices: the area that an outline loses, and that it never gains any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_outlines import square
from test_rings import NESTED, fill
from test_rle import masks

from diou_jax.data import rings
from diou_jax.data.simplification import approximate, enclosed_area, join_loops, loops, simplify, triangle

SHAPE = (64, 64)


def circle(radius, vertices, centre=(32.0, 32.0)):
    turns = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    return np.array(centre) + radius * np.stack([np.cos(turns), np.sin(turns)], 1)


def equal(one, other):
    return (fill(one, SHAPE) == fill(other, SHAPE)).all()


def count(parts):
    return sum(map(len, parts))


@settings(deadline=None, max_examples=100)
@given(masks)
def test_loops_joined_again_fill_the_same_cells(mask):
    for part in rings.parts(mask):
        found = loops(part)
        assert all(len(set(map(tuple, loop.tolist()))) == len(loop) >= 3 for loop in found)
        assert equal([join_loops(found)], [part])
        assert sum(map(len, found)) <= len(part)


def test_a_cut_is_where_a_part_comes_back_to_a_point():
    outer, inner = rings.parts(NESTED)
    assert [len(loop) for part in (outer, inner) for loop in loops(part)] == [4, 4, 4, 4]
    eight = np.array([[0, 0], [10, 10], [10, 0], [5, 5], [0, 10]], float)
    assert len(loops(eight)) == 1, "a crossing that is no vertex is none"
    assert [len(loop) for loop in loops(np.insert(eight, 1, [5, 5], axis=0))] == [3, 3]
    assert loops(np.array([[3, 3], [9, 3], [6, 3.0]])) == loops(np.full((5, 2), 7.0)) == []


@pytest.mark.parametrize("limit", [3, 4, 8, 16, 50, 99])
def test_a_circle_keeps_its_area_as_long_as_it_can(limit):
    (part,) = simplify([circle(25, 100)], limit)
    assert 3 <= len(part) <= limit
    ideal = len(part) / 2 * np.sin(2 * np.pi / len(part)) / np.pi  # of a regular polygon
    assert enclosed_area(part) / (np.pi * 25**2) >= ideal - (0.12 if limit < 8 else 0.02)


def test_what_fits_stays_as_it_is():
    parts = [circle(25, 100), square(1, 1)]
    assert [part.tolist() for part in simplify(parts, 104)] == [part.tolist() for part in parts]


def test_parts_lose_detail_of_one_size():
    """A circle five times as large keeps about sqrt(5) times as many vertices; as arcs are halved, 2 or 4 times."""
    large, small = simplify([circle(25, 200), circle(5, 200, (5, 5))], 40)
    assert 30 <= len(large) + len(small) <= 40
    assert len(large) / len(small) in (2, 4)


def test_the_smallest_parts_go_first():
    """Twenty specks and a circle do not fit into 30 vertices, even as triangles; the circle does."""
    specks = [square(3 * i, 0, 1.0) for i in range(20)]
    (part,) = simplify([*specks[:10], circle(25, 100), *specks[10:]], 30)
    assert enclosed_area(part) > 0.95 * np.pi * 25**2


def test_parts_of_one_size_become_triangles_as_many_as_fit():
    found = simplify([square(8 * i, 0) for i in range(6)], 10)
    assert [len(part) for part in found] == [3, 3, 3]
    assert len({tuple(part.min(0)) for part in found}) == 3


def test_a_hole_stays_a_hole():
    ring = join_loops([circle(25, 80), circle(12, 80)])
    (part,) = simplify([ring], 40)
    assert len(part) <= 40
    filled, wanted = fill([part], SHAPE), fill([ring], SHAPE)
    assert not filled[32, 32]
    assert (filled & wanted).sum() / (filled | wanted).sum() > 0.9


def test_a_line_that_has_no_cell_may_vanish():
    assert simplify([np.stack([np.arange(50.0), np.zeros(50)], 1)], 10) == []


@settings(deadline=None, max_examples=100)
@given(masks, st.integers(3, 40))
def test_no_limit_is_exceeded(mask, limit):
    parts = rings.parts(mask)
    found = simplify(parts, limit)
    assert count(found) <= limit
    assert all(len(part) >= 3 and np.isfinite(part).all() for part in found)
    assert bool(found) == bool(parts)


def test_a_triangle_spans_its_loop():
    assert enclosed_area(triangle(square(0, 0, 10.0))) == 50
    assert enclosed_area(triangle(circle(10, 100))) > 90
    assert len(approximate(square(0, 0, 1.0), 5.0)) < 3
