"""RoIAlign and its gradient for Hopper and newer GPUs, all levels in one launch (Pallas, Mosaic GPU).

Forward: one warpgroup computes one row of bins of one RoI. Gradient: one warpgroup owns a square of feature cells and
adds the contributions of the RoIs that touch it, in the order of the RoIs. There are no atomic additions, so two runs
give the same bits. In both, each of the 128 threads holds its own channels and does the same as all others: rows of
channels are read and written side by side, and a bilinear weight is one number for all threads.

A RoI is given by its `level`, the index of a map, and its `frame`, float32, in cells of that map: top, left, bin height
and bin width, then height and width of the map.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from diou_jax.kernels.rounding import product
from diou_jax.kernels.warpgroup import THREADS

SAMPLES = 2  # samples of a bin along each axis
TILE = 4  # side of a warpgroup's square of cells; its 16 sums stay in registers
SLOTS = 16  # bins for which weights are kept; the last is always 0
GROUP = 4  # bins read at once, to hide the latency of memory; benchmarks/tune.py tries others
# The order of pooling's blocks, the axis that changes fastest last. Images come one after another, so that the maps of
# one stay in the L2 cache: 46 MB in bfloat16 at 800 x 1344, against 731 MB for 16 images. benchmarks/tune.py tries
# other orders.
POOL_ORDER = ("image", "roi", "row")


def supported(features: jax.Array, *, resolution: int, sampling_ratio: int) -> bool:
    """Whether the kernels support this dtype, number of channels, resolution and sampling ratio."""
    return (
        sampling_ratio == SAMPLES
        and resolution < SLOTS
        and features.dtype in (jnp.bfloat16, jnp.float32)
        and features.shape[-1] in (THREADS, 2 * THREADS, 4 * THREADS)
    )


def pool(
    features: Sequence[jax.Array], level: jax.Array, frame: jax.Array, *, resolution: int, interpret=None
) -> jax.Array:
    """Pools every RoI.

    Args:
      features: bfloat16 or float32 (B, Hl, Wl, C).
      level: int32 (B, R).
      frame: float32 (B, R, 6).
      resolution: bins per side.
      interpret: parameters of Pallas' interpreter; None compiles.

    Returns:
      (B, R, resolution, resolution, C) in the features' dtype, accumulated in float32.
    """
    batch, count = level.shape
    shapes = [feature.shape[1:3] for feature in features]
    dtype, channels = features[0].dtype, features[0].shape[-1]

    def roi_align_pool(*refs):
        *maps, level_ref, frame_ref, pooled = refs
        row, image = jax.lax.axis_index("row"), jax.lax.axis_index("image")
        roi = image * count + jax.lax.axis_index("roi")
        top, left, bin_height, bin_width, height, width = (frame_ref[roi * 6 + k] for k in range(6))
        rows = _taps(top, bin_height, height, row)

        def pool_from(feature, map_height, map_width):
            starts = [(image * map_height + y) * map_width for y, _ in rows]

            @pl.loop(0, resolution)
            def _(column):
                total: Any = 0.0
                for x, across in _taps(left, bin_width, width, column):
                    down = 0.0
                    for start, (_, weight) in zip(starts, rows, strict=True):
                        down += feature[start + x].astype(jnp.float32) * weight
                    total += down * across
                pooled[(roi * resolution + row) * resolution + column] = total.astype(dtype)

        for index, (feature, shape) in enumerate(zip(maps, shapes, strict=True)):
            pl.when(level_ref[roi] == index)(functools.partial(pool_from, feature, *shape))

    kernel = plgpu.kernel(
        roi_align_pool,
        out_type=jax.ShapeDtypeStruct((batch * count * resolution**2, channels), dtype),
        grid=tuple({"row": resolution, "roi": count, "image": batch}[axis] for axis in POOL_ORDER),
        grid_names=POOL_ORDER,
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),  # no thread reads data that another wrote
        interpret=interpret,
    )
    pooled = kernel(*[feature.reshape(-1, channels) for feature in features], level.reshape(-1), frame.reshape(-1))
    return pooled.reshape(batch, count, resolution, resolution, channels)


def scatter(
    gradient: jax.Array, level: jax.Array, frame: jax.Array, *, shapes: Sequence[tuple[int, int]], interpret=None
) -> list[jax.Array]:
    """The transpose of `pool`: the gradient of the maps, from the gradient of the pooled RoIs.

    Args:
      gradient: bfloat16 or float32 (B, R, resolution, resolution, C).
      level: int32 (B, R).
      frame: float32 (B, R, 6).
      shapes: height and width of each map.
      interpret: parameters of Pallas' interpreter; None compiles.

    Returns:
      For each map (B, Hl, Wl, C) in the gradient's dtype, accumulated in float32.
    """
    batch, count, resolution, _, channels = gradient.shape
    dtype = gradient.dtype
    tiles = [(-(-height // TILE), -(-width // TILE)) for height, width in shapes]
    needed = (gradient != 0).any((2, 3, 4))  # fillers may be many, all in one cell
    row_masks, column_masks = (_masks(level, frame, needed, tiles, resolution, axis) for axis in (0, 1))
    words = row_masks.shape[-1]

    def spread(x, vector):
        # Mosaic wants a layout where none can be inferred; the interpreter of jax 0.10 knows none.
        return x if interpret else plgpu.layout_cast(x, plgpu.Layout.WG_STRIDED(x.shape, vec_size=vector))

    def roi_align_scatter(pooled, row_masks_ref, column_masks_ref, frame_ref, *outs_and_scratch):
        *outs, weights = outs_and_scratch
        image, index, row_line, column_line, y, x = _locate(jax.lax.axis_index("tile"), tiles, batch)
        row_words = (image * row_masks.shape[1] + row_line) * words
        column_words = (image * column_masks.shape[1] + column_line) * words
        thread = spread(jax.lax.iota(jnp.int32, THREADS), 1)
        zero = spread(jnp.zeros(channels, jnp.float32), min(8 // dtype.itemsize, channels // THREADS))

        def add_roi(roi, sums):
            frame = [frame_ref[roi * 6 + k] for k in range(6)]
            top, left, bin_height, bin_width, *_ = frame
            plgpu.commit_smem()  # a barrier: all threads have read the last RoI's weights
            weights[...] = _weights(thread, y, x, frame, resolution)
            plgpu.commit_smem()
            first_row, end_row = _bins(top, bin_height, y, resolution)
            first_column, end_column = _bins(left, bin_width, x, resolution)
            groups = (end_column - first_column + GROUP - 1) >> (GROUP.bit_length() - 1)

            def add_row(row, sums):
                def add_group(group, line):
                    for k in range(GROUP):
                        column = first_column + group * GROUP + k
                        bin_ = (roi * resolution + row) * resolution + jnp.minimum(column, resolution - 1)
                        value = pooled[bin_].astype(jnp.float32)
                        slot = TILE * SLOTS + jnp.minimum(column, SLOTS - 1)
                        line = [old + value * weights[slot + j * SLOTS] for j, old in enumerate(line)]
                    return line

                line = jax.lax.fori_loop(0, groups, add_group, [zero] * TILE)
                downs = [weights[row + i * SLOTS] for i in range(TILE)]
                return [[old + down * new for old, new in zip(olds, line)] for olds, down in zip(sums, downs)]

            return jax.lax.fori_loop(first_row, end_row, add_row, sums)

        def add_word(word, sums):
            def add_lowest(carry):
                bits, sums = carry
                lowest = 31 - jax.lax.clz(bits & -bits)
                return bits & (bits - 1), add_roi(image * count + word * 32 + lowest, sums)

            bits = row_masks_ref[row_words + word] & column_masks_ref[column_words + word]
            return jax.lax.while_loop(lambda carry: carry[0] != 0, add_lowest, (bits, sums))[1]

        sums = jax.lax.fori_loop(0, words, add_word, [[zero] * TILE for _ in range(TILE)])

        def write(out, height, width):
            for i in range(TILE):
                for j in range(TILE):

                    @pl.when((y + i < height) & (x + j < width))
                    def _(i=i, j=j):
                        out[(image * height + y + i) * width + x + j] = sums[i][j].astype(dtype)

        for number, (out, shape) in enumerate(zip(outs, shapes, strict=True)):
            pl.when(index == number)(functools.partial(write, out, *shape))

    maps = plgpu.kernel(
        roi_align_scatter,
        out_type=[jax.ShapeDtypeStruct((batch * height * width, channels), dtype) for height, width in shapes],
        scratch_types=[plgpu.SMEM((THREADS,), jnp.float32)],
        grid=(batch * sum(down * across for down, across in tiles),),
        grid_names=("tile",),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),  # `weights` has its own barriers
        interpret=interpret,
    )(gradient.reshape(-1, channels), row_masks.reshape(-1), column_masks.reshape(-1), frame.reshape(-1))
    return [level.reshape(batch, *shape, channels) for level, shape in zip(maps, shapes, strict=True)]


def _sample(start, side, limit, index, k):
    """Position of sample `k` of bin `index`, moved onto the map, and its share of the bin along this axis."""
    position = start + product(index, side) + (k + 0.5) * side / SAMPLES
    inside = (position >= -1) & (position <= limit)
    # A NaN position must be replaced: a share of 0 alone would not do, since 0 * NaN is NaN.
    return jnp.where(inside, jnp.clip(position, 0.0, limit - 1), 0.0), jnp.where(inside, 1 / SAMPLES, 0.0)


def _taps(start, side, limit, index):
    """The cells that bin `index` reads along one axis, each with its weight."""
    taps = []
    for k in range(SAMPLES):
        position, share = _sample(start, side, limit, index.astype(jnp.float32), k)
        low = position.astype(jnp.int32)
        fraction = position - low.astype(jnp.float32)
        high = jnp.where(fraction > 0, low + 1, low)  # the cell beyond the map may be NaN, and 0 * NaN is NaN
        taps += [(low, (1 - fraction) * share), (high, fraction * share)]
    return taps


def _weights(thread, y, x, frame, resolution):
    """One bilinear weight of a RoI per thread: that of bin s for row y + i in thread SLOTS * i + s, and for column
    x + j in thread SLOTS * (TILE + j) + s.
    """
    top, left, bin_height, bin_width, height, width = frame
    slot, cell = thread & (SLOTS - 1), (thread >> 4) & (TILE - 1)

    def either(of_rows, of_columns):
        return jnp.where(thread < TILE * SLOTS, of_rows, of_columns)

    cell = (either(y, x) + cell).astype(jnp.float32)
    start, side, limit = either(top, left), either(bin_height, bin_width), either(height, width)
    weight = 0.0
    for k in range(SAMPLES):
        position, share = _sample(start, side, limit, slot.astype(jnp.float32), k)
        weight += jnp.maximum(1 - jnp.abs(cell - position), 0.0) * share
    return jnp.where(slot < resolution, weight, 0.0)


def _bins(start, side, first, resolution):
    """The range (first, end) of bins that may reach the TILE cells from `first` on, along one axis.

    The samples of a bin lie a quarter of a bin inside its edges and reach less than a cell; the margin of 0.01 covers
    rounding.
    """
    before = jnp.clip((first - 1 - start) / side + 0.24, 0.0, resolution)
    until = jnp.clip((first + TILE - start) / side + 0.76, 0.0, resolution)
    return before.astype(jnp.int32), until.astype(jnp.int32)


def _locate(program, tiles, batch):
    """The tile of a program of `scatter`: image, level, lines of the two tables of masks, first row, first column.

    The coarsest level of all images comes first: the most RoIs touch its tiles, so they take the longest.
    """
    found: Sequence[Any] = ()
    first, lines = 0, [sum(sides) for sides in zip(*tiles, strict=True)]
    for level, (down, across) in reversed(list(enumerate(tiles))):
        lines = [lines[0] - down, lines[1] - across]
        image = jax.lax.div(program - first, down * across)
        within = program - first - image * (down * across)
        row = jax.lax.div(within, across)
        column = within - row * across
        here = (image, level, lines[0] + row, lines[1] + column, row * TILE, column * TILE)
        found = [jnp.where(program >= first, new, old) for new, old in zip(here, found)] if found else here
        first += batch * down * across
    return found


def _masks(level, frame, needed, tiles, resolution, axis):
    """The RoIs that may touch each row (axis 0) or column (1) of tiles, as bits, one level after another.

    Returns:
      int32 (B, lines, W): RoI r is bit r % 32 of word r // 32.
    """
    start, side, limit = frame[..., axis], frame[..., 2 + axis], frame[..., 4 + axis]
    low = jnp.clip(jnp.floor(start), 0, limit - 1)
    high = jnp.minimum(jnp.floor(start + resolution * side) + 1, limit - 1)
    low, high, level = (x[:, None] for x in (low, high, jnp.where(needed, level, -1)))
    by_level = []
    for index, lines in enumerate(tiles):
        first = TILE * jnp.arange(lines[axis])[:, None]
        by_level.append((level == index) & (low < first + TILE) & (high >= first))
    touches = jnp.concatenate(by_level, 1)
    touches = jnp.pad(touches, ((0, 0), (0, 0), (0, -touches.shape[-1] % 32))).reshape(*touches.shape[:2], -1, 32)
    words = (touches.astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.int32)
