"""Golden file: anchors."""

import numpy as np
import pytest

from diou_jax.anchors import cell_anchors, grid_anchors


@pytest.mark.parametrize("level", range(2, 7))
def test_anchors_equal_the_original(golden, level):
    data = golden("anchors.npz")
    cell = cell_anchors(stride=2**level, size=8 * 2**level, aspect_ratios=(0.5, 1.0, 2.0))
    np.testing.assert_array_equal(cell, data[f"cell_anchors_p{level}_f64"])
    height, width = data[f"grid_hw_p{level}"]
    np.testing.assert_array_equal(
        grid_anchors(height, width, stride=2**level, cell=cell), data[f"grid_anchors_p{level}"]
    )


def test_order_is_row_column_anchor():
    cell = np.array([[0, 0, 1, 1], [0, 0, 2, 2]], np.float32)
    grid = grid_anchors(2, 3, stride=10, cell=cell).reshape(2, 3, 2, 4)
    np.testing.assert_array_equal(grid[1, 2, 1], [20, 10, 22, 12])
