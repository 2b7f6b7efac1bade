"""The Mosaic GPU kernels against their reference: interpreted at small sizes, lowered at the detector's, run on a GPU.

Where a memory checker exists: ``compute-sanitizer python -m pytest -n 0 -m gpu tests/test_nms_gpu.py``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from lowering import interpreter, lower_for_cuda

from diou_jax.kernels import nms_gpu
from diou_jax.kernels.nms import keep_xla, nms
from diou_jax.kernels.suppression import suppresses

KINDS = [("iou", 1.0), ("diou", 1.0), ("diou", 0.9)]
LESS = [slow("iou", 1.0), ("diou", 1.0), slow("diou", 0.9)]


def draw(seed, problems, count, side=100):
    """Boxes on a coarse grid, so that many overlaps are equal to a threshold, some identical; scores with ties."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, side, (problems, count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, side // 2, (problems, count, 2))], -1).astype(np.float32)
    boxes[:, count // 3 : count // 2] = boxes[:, : count // 2 - count // 3]
    return boxes, (rng.integers(0, 50, (problems, count)) / 50).astype(np.float32)


def interpreted(boxes, counts, overlap, beta):
    test = functools.partial(suppresses, overlap=overlap, beta=beta)
    operands = jnp.asarray(boxes), jnp.asarray(counts, jnp.int32), jnp.float32(0.5)
    wanted = keep_xla(*operands, suppresses=test)
    found = nms_gpu.keep(*operands, suppresses=test, interpret=interpreter())
    exists = np.arange(boxes.shape[1]) < np.asarray(counts)[:, None]
    assert 0 < (wanted & exists).sum() < exists.sum()
    np.testing.assert_array_equal(found & exists, wanted & exists)


@pytest.mark.parametrize(
    ("overlap", "beta", "bits", "counts"),
    [
        ("diou", 1.0, 8, (34, 0, 1, 17, 32)),
        slow("iou", 1.0, 8, (34, 0, 1, 17, 32)),
        slow("diou", 0.9, 32, (70, 0, 1, 33, 64)),
    ],
)
def test_interpreted_it_keeps_what_the_reference_keeps(monkeypatch, overlap, beta, bits, counts):
    """Four problems a row, in two rows; words of 8 bits meet the same cases in a fifth of the time."""
    monkeypatch.setattr(nms_gpu, "BITS", bits)
    interpreted(draw(1, len(counts), counts[0])[0], counts, overlap, beta)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "counts"), [(300, (40, 300, 3)), (700, (700, 520))])
def test_interpreted_in_rows_of_two_and_one_problem(monkeypatch, count, counts):
    """With words of 8 bits, so that all tiles are met at sizes that the interpreter can bear."""
    monkeypatch.setattr(nms_gpu, "BITS", 8)
    interpreted(draw(count, len(counts), count)[0], counts, "diou", 1.0)


@pytest.mark.slow
def test_boxes_that_are_no_numbers_suppress_nothing(monkeypatch):
    monkeypatch.setattr(nms_gpu, "BITS", 8)
    boxes, _ = draw(3, 2, 40)
    boxes[0, 5], boxes[1, 7, 2], boxes[1, 9, 0] = np.nan, np.inf, -np.inf
    operands = jnp.asarray(boxes), jnp.asarray([40, 39], jnp.int32), jnp.float32(0.3)
    test = functools.partial(suppresses, overlap="iou", beta=1.0)
    found = nms_gpu.keep(*operands, suppresses=test, interpret=interpreter())
    wanted = keep_xla(*operands, suppresses=test)
    np.testing.assert_array_equal(np.asarray(found)[:, :39], np.asarray(wanted)[:, :39])


@pytest.mark.parametrize(("overlap", "beta"), LESS)
@pytest.mark.parametrize("shape", [(16, 5, 2000), (16, 80, 1000), (1, 4096), (3, 1)])
def test_it_lowers_for_cuda_at_the_detectors_sizes(shape, overlap, beta):
    boxes, scores = jax.ShapeDtypeStruct((*shape, 4), jnp.float32), jax.ShapeDtypeStruct(shape, jnp.float32)
    text = lower_for_cuda(
        lambda b, s, threshold: nms(b, s, threshold, overlap=overlap, beta=beta),
        boxes,
        scores,
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    assert text.count("custom_call @mosaic_gpu") == 2 and "stablehlo.while" not in text


@pytest.mark.parametrize("shape", [(2, nms_gpu.MAX_BOXES + 1), (4096, nms_gpu.MAX_BOXES)])
def test_beyond_its_size_the_reference_takes_over(shape):
    boxes, scores = jax.ShapeDtypeStruct((*shape, 4), jnp.float32), jax.ShapeDtypeStruct(shape, jnp.float32)
    assert "mosaic_gpu" not in lower_for_cuda(lambda b, s: nms(b, s, 0.5), boxes, scores)


@pytest.mark.gpu
@pytest.mark.parametrize(("overlap", "beta"), KINDS)
@pytest.mark.parametrize("shape", [(80, 2000), (80, 1000), (2, 4096), (7, 333)])
def test_on_a_gpu_it_keeps_what_the_reference_keeps(hopper, shape, overlap, beta):
    test = functools.partial(suppresses, overlap=overlap, beta=beta)
    kernel = jax.jit(functools.partial(nms_gpu.keep, suppresses=test))
    # On the CPU, which rounds as IEEE has it. So does the GPU: nothing is divided.
    cpu = jax.devices("cpu")[0]
    reference = jax.jit(functools.partial(keep_xla, suppresses=test))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        boxes, _ = draw(seed, *shape, side=800)
        boxes += rng.random(boxes.shape, np.float32) * (seed % 2)
        counts = jnp.asarray(rng.integers(0, shape[1] + 1, shape[0]), jnp.int32)
        operands = jnp.asarray(boxes), counts, jnp.float32(0.3 + 0.1 * seed)
        wanted = np.asarray(reference(*jax.device_put(operands, cpu)))
        exists = np.arange(shape[1]) < np.asarray(counts)[:, None]
        first = np.asarray(kernel(*operands))
        np.testing.assert_array_equal(first & exists, wanted & exists)
        np.testing.assert_array_equal(np.asarray(reference(*operands)) & exists, wanted & exists)
        jnp.full(64 << 20, -1, jnp.int32).block_until_ready()  # poisons the memory that the next call gets
        np.testing.assert_array_equal(np.asarray(kernel(*operands)) & exists, first & exists)
