"""Matching: the reference against float64, the kernel against the reference, interpreted, lowered, and on a GPU.

Where a memory checker exists: ``compute-sanitizer python -m pytest -n 0 -m gpu tests/test_match.py``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from lowering import interpreter, lower_for_cuda, on_both_devices

from diou_jax.kernels import match_gpu
from diou_jax.kernels.match import match, match_box_by_box, match_xla
from diou_jax.kernels.match_gpu import Candidates


def draw(seed, images, anchors, boxes, *, own=False, side=60):
    """Anchors and boxes on a coarse grid, so that many overlaps are equal; image 0 has no box, others have gaps."""
    rng = np.random.default_rng(seed)

    def corners(*shape):
        corner = rng.integers(0, side, (*shape, 2))
        return np.concatenate([corner, corner + rng.integers(0, side // 2, (*shape, 2))], -1).astype(np.float32)

    valid = rng.random((images, boxes)) < 0.5
    valid[0] = False
    shape = (images, anchors) if own else (anchors,)
    found = corners(images, boxes)
    found[~valid] = np.nan
    return corners(*shape), rng.random((images, anchors)) < 0.8, found, valid


def matched(anchors, eligible, boxes, valid):
    return match(anchors, boxes, eligible=eligible, valid=valid)


def brute_force(anchors, eligible, boxes, valid):
    """All of it in float64, image by image."""
    for image in range(len(boxes)):
        own = (anchors if anchors.ndim == 2 else anchors[image]).astype(np.float64)
        overlaps = np.zeros((len(own), len(boxes[image])))
        for column in np.flatnonzero(valid[image]):
            box = boxes[image, column].astype(np.float64)
            shared = np.minimum(own[:, 2:], box[2:]) - np.maximum(own[:, :2], box[:2]) + 1
            shared = np.maximum(shared, 0).prod(1)
            area = (own[:, 2:] - own[:, :2] + 1).prod(1) + (box[2:] - box[:2] + 1).prod()
            overlaps[:, column] = np.where(eligible[image], shared / (area - shared), 0)
        best = overlaps.max(0)
        yield overlaps, ((overlaps == best) & (best > 0)).any(1)


@pytest.mark.parametrize("own", [False, True])
def test_every_anchor_finds_its_box_and_every_box_its_anchors(own):
    images = draw(0, 3, 400, 6, own=own)
    found = matched(*images)
    for image, (overlaps, is_best) in enumerate(brute_force(*images)):
        np.testing.assert_allclose(found.overlap[image], overlaps.max(1), atol=1e-6)
        np.testing.assert_array_equal(found.box[image], overlaps.argmax(1))
        np.testing.assert_array_equal(found.is_best[image], is_best)
    assert not found.is_best[0].any() and found.is_best[1:].any(1).all()


@pytest.mark.parametrize("own", [False, True])
def test_box_by_box_a_cpu_finds_what_the_matrix_holds(own):
    anchors, eligible, boxes, valid = map(jnp.asarray, draw(1, 3, 400, 6, own=own))
    boxes = jnp.where(valid[..., None], boxes, jnp.array([1e9, 1e9, -1e9, -1e9], jnp.float32))
    candidates = Candidates(anchors, eligible, boxes, jnp.where(valid, jnp.arange(1, 7), 0).max(1))
    found, right = (jax.jit(form)(candidates) for form in (match_box_by_box, match_xla))
    for one, other in zip(found, right, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def interpreted(images):
    anchors, eligible, boxes, valid = map(jnp.asarray, images)
    wanted = matched(anchors, eligible, boxes, valid)
    counts = jnp.where(valid, jnp.arange(1, valid.shape[1] + 1), 0).max(1)
    boxes = jnp.where(valid[..., None], boxes, jnp.array([1e9, 1e9, -1e9, -1e9]))
    found = match_gpu.match(Candidates(anchors, eligible, boxes, counts), interpret=interpreter())
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_float64_where_jax_has_it():
    anchors, eligible, boxes, valid = draw(8, 2, 50, 6)
    with jax.enable_x64(True):
        found = jax.eval_shape(match, np.float64(anchors), np.float64(boxes), eligible=eligible, valid=valid)
    assert found.overlap.dtype == jnp.float32 and found.box.dtype == jnp.int32


def test_devices_can_divide_the_images_by_shard_map():
    anchors, _, boxes, valid = draw(6, 4, 100, 6)

    def all_eligible(boxes, valid):
        return match(anchors, boxes, eligible=jnp.ones((len(boxes), 100), bool), valid=valid)

    # The types are what it checks, so that tracing suffices.
    assert jax.eval_shape(on_both_devices(all_eligible), boxes, valid).overlap.shape == (4, 100)


@pytest.mark.parametrize("own", [slow(False), True])
def test_interpreted_it_finds_what_the_reference_finds(own):
    """Two blocks of anchors, the second not full."""
    interpreted(draw(1, 2, 1100, 5, own=own))


@pytest.mark.slow
def test_interpreted_with_more_boxes_than_threads():
    interpreted(draw(2, 2, 200, 131))


@pytest.mark.parametrize("own", [False, True])
def test_it_lowers_for_cuda_at_the_detectors_size(own):
    """Two kernels for sixteen images."""
    count = 268569
    shapes = (16, count, 4) if own else (count, 4)
    program = lower_for_cuda(
        matched,
        jax.ShapeDtypeStruct(shapes, jnp.float32),
        jax.ShapeDtypeStruct((16, count), bool),
        jax.ShapeDtypeStruct((16, 128, 4), jnp.float32),
        jax.ShapeDtypeStruct((16, 128), bool),
    )
    assert program.count("mosaic_gpu_v2") == 2


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(3))
def test_on_a_gpu_it_finds_what_the_reference_finds_on_the_cpu(hopper, seed):
    """With whole numbers for sides; ties between other quotients are the device's, which divides to two units."""
    images = draw(seed, 16, 268569, 128, side=1000)
    with jax.default_device(jax.devices("cpu")[0]):
        wanted = jax.device_get(matched(*images))
    found = jax.device_get(jax.jit(matched)(*images))
    np.testing.assert_allclose(found.overlap, wanted.overlap, rtol=1e-6)
    np.testing.assert_array_equal(found.box, wanted.box)
    np.testing.assert_array_equal(found.is_best, wanted.is_best)
