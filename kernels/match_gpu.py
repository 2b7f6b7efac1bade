"""Matching for Hopper and newer GPUs: only boxes that exist are compared, no overlap is stored (Pallas, Mosaic GPU).

A thread holds a few anchors, and all threads walk over the image's boxes. The first kernel writes the largest overlap
of each box in every block of anchors. The second receives the maximum over all blocks, computes the overlaps again, to
the same bits, and marks the anchors that reach it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from diou_jax.kernels.iou import iou
from diou_jax.kernels.warpgroup import THREADS, spread

ITEMS = 8  # anchors per thread; one read of a box serves all of them; benchmarks/tune.py tries other numbers


class Candidates(NamedTuple):
    """The anchors and boxes of B images that may match.

    Attributes:
      anchors: float32 (A, 4) or (B, A, 4).
      eligible: bool (B, A); anchors that are not eligible meet no box.
      boxes: float32 (B, G, 4); boxes to be ignored lie far from all anchors.
      counts: int32 (B,); boxes with an index of at least `counts` are ignored.
    """

    anchors: jax.Array | np.ndarray
    eligible: jax.Array | np.ndarray
    boxes: jax.Array
    counts: jax.Array


def match(candidates: Candidates, *, interpret=None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest IoU of each anchor, the box it has it with, and whether the anchor is the best of some box.

    Args:
      candidates: the anchors and the boxes.
      interpret: parameters of Pallas' interpreter; None compiles.

    Returns:
      float32 (B, A), int32 (B, A) and bool (B, A).
    """
    anchors, eligible, boxes, counts = candidates
    images, count = eligible.shape
    blocks = -(-count // (THREADS * ITEMS))
    padded = blocks * THREADS * ITEMS
    fill = [(0, 0), (0, padded - count)]
    # Coordinates become the leading axis, so that the threads of a warp read neighbouring addresses.
    anchors = jnp.pad(jnp.moveaxis(anchors, -1, 0).reshape(-1, count), fill).reshape(-1)
    eligible = jnp.pad(eligible, fill).astype(jnp.int32).reshape(-1)
    operands = anchors, eligible, boxes.reshape(-1), counts
    launch = _Launch(images, blocks, boxes.shape[1], interpret)

    best = _best_of_boxes(operands, launch)
    overlap, box, is_best = (x.reshape(images, padded)[:, :count] for x in _best_of_anchors(operands, best, launch))
    return overlap, box.astype(jnp.int32), is_best != 0


class _Launch(NamedTuple):
    """The sizes of both kernels: images, blocks of anchors, boxes per image; and the interpreter's parameters."""

    images: int
    blocks: int
    most: int
    interpret: Any


def _best_of_boxes(operands, launch):
    """Flat float32 (B * G,): the largest IoU of each box; undefined for indices of at least `counts[image]`."""
    images, blocks, most, interpret = launch
    rows = -(-most // THREADS)

    def match_boxes(anchors_ref, eligible_ref, boxes_ref, counts_ref, best_ref):
        image, block = jax.lax.axis_index("image"), jax.lax.axis_index("block")
        overlaps_of = _overlaps((anchors_ref, eligible_ref, boxes_ref), image, block, launch)
        thread = spread(jax.lax.iota(jnp.int32, THREADS), interpret)
        for row in range(rows):
            first = row * THREADS

            def visit(place, best, first=first):
                largest = functools.reduce(jnp.maximum, overlaps_of(first + place))
                return jnp.where(thread == place, largest.max(), best)

            nothing = spread(jnp.zeros(THREADS, jnp.float32), interpret)
            here = jnp.clip(counts_ref[image] - first, 0, THREADS)
            best = jax.lax.fori_loop(0, here, visit, nothing)
            best_ref[pl.ds(((image * blocks + block) * rows + row) * THREADS, THREADS)] = best

    out = jax.ShapeDtypeStruct((images * blocks * rows * THREADS,), jnp.float32)
    best = _kernel(match_boxes, [out], launch)(*operands)
    return best[0].reshape(images, blocks, -1).max(1)[:, :most].reshape(-1)


def _best_of_anchors(operands, best, launch):
    """Three flat float32 arrays over all anchors: largest IoU, its box, and 1 where the anchor is the best of a box.

    Indices and flags are floats, because a select of integers loses their sign in jax 0.10's Mosaic.
    """
    images, blocks, most, interpret = launch

    def match_anchors(anchors_ref, eligible_ref, boxes_ref, counts_ref, best_ref, *outs):
        image, block = jax.lax.axis_index("image"), jax.lax.axis_index("block")
        overlaps_of = _overlaps((anchors_ref, eligible_ref, boxes_ref), image, block, launch)
        zero = spread(jnp.zeros(THREADS, jnp.float32), interpret)

        def visit(index, found):
            largest = best_ref[image * most + index]
            # No IoU equals 2, so a box that meets no anchor marks none.
            largest = jnp.where(largest > 0, largest, 2.0)
            number = index.astype(jnp.float32)
            news = []
            for overlap, (old, box, is_best) in zip(overlaps_of(index), found, strict=True):
                larger = overlap > old
                is_best = jnp.where(overlap == largest, 1.0, is_best)
                news.append((jnp.where(larger, overlap, old), jnp.where(larger, number, box), is_best))
            return news

        found = jax.lax.fori_loop(0, counts_ref[image], visit, [(zero, zero, zero)] * ITEMS)
        for item, values in enumerate(found):
            place = pl.ds(((image * blocks + block) * ITEMS + item) * THREADS, THREADS)
            for out, value in zip(outs, values, strict=True):
                out[place] = value

    out = jax.ShapeDtypeStruct((images * blocks * ITEMS * THREADS,), jnp.float32)
    return _kernel(match_anchors, [out] * 3, launch)(*operands, best)


def _overlaps(refs, image, block, launch):
    """A function from a box's index to the IoUs of this thread's anchors with it."""
    anchors_ref, eligible_ref, boxes_ref = refs
    images, blocks, most, _ = launch
    length = blocks * ITEMS * THREADS
    shared = anchors_ref.shape[0] == 4 * length
    rows = 1 if shared else images
    own = 0 if shared else image
    starts = [(block * ITEMS + item) * THREADS for item in range(ITEMS)]
    anchors = [[anchors_ref[pl.ds((i * rows + own) * length + start, THREADS)] for i in range(4)] for start in starts]
    counted = [eligible_ref[pl.ds(image * length + start, THREADS)] != 0 for start in starts]

    def overlaps_of(index):
        box = [boxes_ref[(image * most + index) * 4 + i] for i in range(4)]
        return [jnp.where(here, iou(anchor, box), 0.0) for here, anchor in zip(counted, anchors, strict=True)]

    return overlaps_of


def _kernel(body, outs, launch):
    return plgpu.kernel(
        body,
        out_type=outs,
        grid=(launch.blocks, launch.images),
        grid_names=("block", "image"),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),  # no thread reads data that another wrote
        interpret=launch.interpret,
    )
