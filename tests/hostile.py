"""Boxes that no annotation should have, and the rounding that their arithmetic may add."""

import numpy as np

# The rounding of float32 in a sum of four quotients, each at most two in magnitude and rounded a few times.
ROUNDING = 16 * float(np.finfo(np.float32).eps)
DTYPES = ("float32", "bfloat16")
HEAD = (10.0, 10.0, 5.0, 5.0)  # weights of the box head's deltas


def boxes_of_all_sizes(rng, count):
    """Corners and sides, float64 (count, 2) each: sides from 1e-8 to 1e8 alike or not, about as far from the origin."""

    def magnitude(axes):
        return 10.0 ** rng.integers(-8, 9, (count, axes))

    side = np.where(rng.random((count, 1)) < 0.5, magnitude(1), magnitude(2)) * rng.uniform(0.1, 1, (count, 2))
    return magnitude(1) * rng.uniform(-1, 1, (count, 2)), side


def hostile_boxes(rng, count):
    """Boxes of a pixel and more up to 1e8, some again and again, inside out, infinite or not numbers."""
    low, side = boxes_of_all_sizes(rng, count)
    low = np.where(rng.random((count, 1)) < 0.7, rng.uniform(-50, 50, (count, 2)), low)
    side = np.where(rng.random((count, 1)) < 0.7, rng.uniform(0, 60, (count, 2)), np.round(side))
    boxes = np.concatenate([low, low + side], 1).astype(np.float32)
    boxes = boxes[rng.integers(0, count, count)]
    inverted = rng.random(count) < 0.1
    boxes[inverted] = boxes[inverted][:, [2, 1, 0, 3]]
    return np.where(rng.random((count, 4)) < 0.01, rng.choice([np.nan, np.inf, -np.inf], (count, 4)), boxes)


def inclusive_iou(a, b):
    """Of every box of `a` with every box of `b`, float64; 0 where they do not meet."""
    a, b = np.float64(a)[:, None], np.float64(b)[None]
    shared = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1, 0).prod(-1)
    union = sum((x[..., 2:] - x[..., :2] + 1).prod(-1) for x in (a, b)) - shared
    return np.where(shared > 0, shared / np.where(shared > 0, union, 1), 0)
