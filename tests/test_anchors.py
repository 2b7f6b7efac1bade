"""Golden file: anchors."""

import numpy as np
import pytest

from diou_jax.detection.anchors import cell_anchors, grid_anchors


@pytest.mark.parametrize("level", range(2, 7))
def test_anchors_equal_the_original(golden, level):
    data = golden("anchors.npz")
    cell = cell_anchors(stride=2**level, size=8 * 2**level, aspect_ratios=(0.5, 1.0, 2.0))
    np.testing.assert_array_equal(cell, data[f"cell_anchors_p{level}_f64"])
    height, width = data[f"grid_hw_p{level}"]
    np.testing.assert_array_equal(
        grid_anchors(height, width, stride=2**level, cell=cell), data[f"grid_anchors_p{level}"]
    )


def test_cells_of_several_sizes_equal_the_original(golden):
    """The original's single-level cell: aspect ratios outer, sizes inner."""
    sizes = [cell_anchors(stride=16, size=size, aspect_ratios=(0.5, 1.0, 2.0)) for size in (64, 128, 256, 512)]
    np.testing.assert_array_equal(np.stack(sizes, 1).reshape(-1, 4), golden("anchors.npz")["cell_anchors_c4_f64"])


def test_the_grid_of_a_level_covers_the_image(golden):
    data = golden("anchors.npz")
    height, width = data["input_hw"]
    cell = np.array([[0, 0, 3, 3]], np.float32)
    grid = grid_anchors(height // 4, width // 4, stride=4, cell=cell)
    assert grid.dtype == np.float32 and grid.shape == (np.prod(data["grid_hw_p2"]), 4)
    np.testing.assert_array_equal(grid[-1], [width - 4, height - 4, width - 1, height - 1])


@pytest.mark.parametrize("stride", [4, 7, 64])
def test_anchors_are_centred_on_their_cell_and_have_the_ratios_asked_for(stride):
    ratios = np.array([0.25, 1.0, 3.0])
    cell = cell_anchors(stride=stride, size=1000.0, aspect_ratios=ratios)
    np.testing.assert_allclose(0.5 * (cell[:, :2] + cell[:, 2:]), 0.5 * (stride - 1), atol=1e-4)
    width, height = (cell[:, 2:] - cell[:, :2] + 1).T
    # The window's sides are whole numbers.
    np.testing.assert_allclose(width * stride / 1000, np.sqrt(stride**2 / ratios), atol=0.5 + 1e-4)
    np.testing.assert_allclose(height * stride / 1000, np.round(width * stride / 1000) * ratios, atol=0.5 + 1e-4)


def test_order_is_row_column_anchor():
    cell = np.array([[0, 0, 1, 1], [0, 0, 2, 2]], np.float32)
    grid = grid_anchors(2, 3, stride=10, cell=cell).reshape(2, 3, 2, 4)
    np.testing.assert_array_equal(grid[1, 2, 1], [20, 10, 22, 12])
