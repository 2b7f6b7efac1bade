"""Suppression for Hopper and newer GPUs, all problems in two launches (Pallas, Mosaic GPU).

The first kernel writes a row of bits for every box: the later boxes that it would suppress, 32 to a word. A block
handles a few boxes. A row of 128 words holds the rows of several problems side by side, one word per thread. Only the
triangle above the diagonal is needed, so the threads left of the diagonal of tile t (a tile is 32 boxes, W tiles make a
problem) work on tile W - t, whose rows need exactly that many words. Words left of the diagonal are never read.

The second kernel has one warpgroup per problem and walks over the tiles. The 32 words on the diagonal decide which
boxes of a tile are kept; the rows of these boxes then suppress later boxes. Rows are fetched one tile ahead, before it
is known which of them are needed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from diou_jax.kernels.warpgroup import THREADS, spread

BITS = 32  # bits in a word, and boxes in a tile
# Rows that a thread computes at once, by the number of problems side by side. They share the values of a column; more
# rows would need so many registers that a third block no longer fits. benchmarks/tune.py tries other numbers.
ROWS = {1: 8, 2: 8, 4: 4}
MAX_BOXES = THREADS * BITS


def fits(problems: int, count: int) -> bool:
    """Whether `keep` can take `problems` of `count` boxes each; its indices of words have 32 bits."""
    return count <= MAX_BOXES and _layout(problems, count)[2] * THREADS < 2**31


def _layout(problems, count):
    """Words per row of a problem, number of groups of problems side by side, and number of rows in all."""
    width = next(words for words in (32, 64, 128) if words * BITS >= count)
    groups = -(-problems // (THREADS // width))
    return width, groups, groups * (width * BITS + 1)


def keep(
    boxes: jax.Array, counts: jax.Array, threshold: jax.Array, *, suppresses: Callable, interpret=None
) -> jax.Array:
    """Which boxes greedy suppression keeps, in P problems.

    Args:
      boxes: float32 (P, N, 4) by descending priority, for which `fits` is True.
      counts: int32 (P,), the number of boxes that exist in each problem; they come first.
      threshold: float32 scalar.
      suppresses: ``(box, box, threshold) -> bool`` on tuples of four coordinates, symmetric and elementwise.
      interpret: parameters of Pallas' interpreter; None compiles.

    Returns:
      bool (P, N); boxes that do not exist may be True.
    """
    problems, count, _ = boxes.shape
    width, groups, _ = _layout(problems, count)
    side_by_side = THREADS // width
    boxes = jnp.pad(boxes, ((0, groups * side_by_side - problems), (0, width * BITS - count), (0, 0)))
    counts = jnp.pad(counts, (0, groups * side_by_side - problems))
    threshold = jnp.asarray(threshold, jnp.float32).reshape(1)

    words = _suppression_words(boxes, counts, threshold, suppresses, width, groups, interpret)
    kept = _scan(words, counts, width, interpret)[:, :width, None]
    bits = (kept >> jnp.arange(BITS)) & 1
    return bits.reshape(len(kept), -1)[:problems, :count] == 1


def _suppression_words(boxes, counts, threshold, suppresses, width, groups, interpret):
    """Flat int32 (groups, boxes + 1, THREADS): bit b of word w of box i says whether it suppresses box 32 w + b.

    Words are defined from the word of box i on, and for boxes that exist. The extra row behind the last box receives
    the words that the partner tile writes beyond the end of the last row.
    """
    side_by_side, padded, stride = THREADS // width, width * BITS, width * BITS + 1
    at_once = ROWS[side_by_side]
    # Axes (group, coordinate, bit, problem, word): a thread reads the boxes of its own word, neighbours side by side.
    columns = boxes.reshape(groups, side_by_side, width, BITS, 4).transpose(0, 4, 3, 1, 2).reshape(-1)

    def nms_words(columns_ref, rows_ref, counts_ref, threshold_ref, words):
        group, tile, step = (jax.lax.axis_index(name) for name in ("group", "tile", "step"))
        folded = width - tile
        thread = spread(jax.lax.iota(jnp.int32, THREADS), interpret)
        word, place = thread & (width - 1), thread >> (width.bit_length() - 1)
        left = word < tile
        diagonal = jnp.where(left, word == 0, word == tile)
        limit = spread(jnp.broadcast_to(threshold_ref[0], THREADS), interpret)
        first = group * side_by_side
        most = counts_ref[first]
        for k in range(1, side_by_side):
            most = jnp.maximum(most, counts_ref[first + k])

        def row_box(row):
            """For each thread the box of this row in the thread's problem and tile."""
            box = []
            for coordinate in range(4):
                value = None
                for k in range(side_by_side):
                    start = (first + k) * padded
                    own = rows_ref[(start + tile * BITS + row) * 4 + coordinate]
                    # Tile 0 has no partner; no thread of it lies left of the diagonal.
                    other = rows_ref[(start + jnp.minimum(folded, width - 1) * BITS + row) * 4 + coordinate]
                    here = jnp.where(left, other, own)
                    value = here if value is None else jnp.where(place == k, here, value)
                box.append(value)
            return box

        def column_box(bit):
            box = []
            for coordinate in range(4):
                start = ((group * 4 + coordinate) * BITS + bit) * THREADS
                own = columns_ref[pl.ds(start, THREADS)]
                other = columns_ref[pl.ds(start + (folded & (width - 1)), THREADS)]
                box.append(jnp.where(left, other, own))
            return box

        @pl.when(tile * BITS < most)
        def _():
            rows = [row_box(step * at_once + k) for k in range(at_once)]

            def add_bit(bit, found):
                column = column_box(bit)
                flag = jnp.int32(1) << bit
                hits = [suppresses(row, column, limit) for row in rows]
                return [old | jnp.where(hit, flag, 0) for old, hit in zip(found, hits, strict=True)]

            nothing = spread(jnp.zeros(THREADS, jnp.int32), interpret)
            found = jax.lax.fori_loop(0, BITS, add_bit, [nothing] * at_once)
            for k in range(at_once):
                row = step * at_once + k
                later = found[k] & jnp.where(diagonal, jnp.int32(-2) << row, -1)
                words[pl.ds((group * stride + tile * BITS + row) * THREADS, THREADS)] = later

                @pl.when(tile > 0)
                def _(row=row, later=later):
                    # Words beyond the row's end fall left of the next row's diagonal, where nothing is read.
                    words[pl.ds((group * stride + folded * BITS + row) * THREADS + folded, THREADS)] = later

    return plgpu.kernel(
        nms_words,
        out_type=jax.ShapeDtypeStruct((groups * stride * THREADS,), jnp.int32),
        grid=(width // 2 + 1, BITS // at_once, groups),
        grid_names=("tile", "step", "group"),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),  # no thread reads data that another wrote
        interpret=interpret,
    )(jnp.pad(columns, (0, THREADS)), boxes.reshape(-1), counts, threshold)


def _scan(words, counts, width, interpret):
    """Bits of the boxes that are kept: int32 (P, THREADS), the words of a problem first."""
    side_by_side, stride = THREADS // width, width * BITS + 1

    def nms_scan(words_ref, counts_ref, kept_ref, shared):
        problem = jax.lax.axis_index("problem")
        group = problem // side_by_side
        start = group * stride * THREADS + (problem - group * side_by_side) * width
        thread = spread(jax.lax.iota(jnp.int32, THREADS), interpret)
        nothing = spread(jnp.zeros(THREADS, jnp.int32), interpret)

        def fetch(tile):
            base = start + tile * BITS * THREADS
            rows = [words_ref[pl.ds(base + k * THREADS, THREADS)] for k in range(BITS)]
            return rows, [words_ref[base + k * THREADS + tile] for k in range(BITS)]

        def settle(tile, carry):
            removed, kept, (rows, on_diagonal) = carry
            coming = fetch(jnp.minimum(tile + 1, width - 1))
            plgpu.commit_smem()  # a barrier: all threads have read the last tile's words
            shared[...] = removed
            plgpu.commit_smem()
            alive = ~shared[tile]
            stays = []
            for k in range(BITS):
                stay = -((alive >> k) & 1)  # all bits or none
                alive &= ~(on_diagonal[k] & stay)
                stays.append(stay)
            for row, stay in zip(rows, stays, strict=True):
                removed |= row & stay
            return removed, kept | (jnp.where(thread == tile, thread | -1, nothing) & alive), coming

        tiles = (counts_ref[problem] + BITS - 1) >> (BITS.bit_length() - 1)
        _, kept, _ = jax.lax.fori_loop(0, tiles, settle, (nothing, nothing, fetch(0)))
        kept_ref[pl.ds(problem * THREADS, THREADS)] = kept

    problems = len(counts)
    return plgpu.kernel(
        nms_scan,
        out_type=jax.ShapeDtypeStruct((problems * THREADS,), jnp.int32),
        scratch_types=[plgpu.SMEM((THREADS,), jnp.int32)],
        grid=(problems,),
        grid_names=("problem",),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),  # `shared` has its own barriers
        interpret=interpret,
    )(words, counts).reshape(problems, THREADS)
