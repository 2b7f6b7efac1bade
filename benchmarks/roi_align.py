"""Microseconds per image of RoIAlign from a pyramid, forward and backward: kernel, XLA reference, two peers.

    python benchmarks/roi_align.py              # 800 x 1344 pixels, 256 channels; minutes on a GPU
    python benchmarks/roi_align.py --smoke      # small, seconds on a CPU, where kernel and reference are one program

The peers are the einsum form, every RoI on every level as two dense interpolation matrices, and torchvision's
MultiScaleRoIAlign, if it can be imported. The first three must agree before they are timed. All are timed alike: bursts
of calls that wait only for the last, over inputs that rotate and together exceed the cache, the median of the bursts.
"""

import argparse
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import timing

from diou_jax.kernels import selection
from diou_jax.kernels.roi_align import roi_align, roi_frames, roi_levels
from diou_jax.kernels.trials import STRIDES, draw_pyramid

KERNELS = ("roi_align", "roi_align_gradient")
SAMPLES = 2
CACHE = 256 * 2**20  # bytes, several times a GPU's


def einsum(features, rois, *, resolution):
    """Dense products, image by image to bound the memory."""

    def matrix(frame, axis, cells, dtype):
        start, side, limit = (frame[:, axis + k, None, None] for k in (0, 2, 4))
        sample = np.arange(resolution)[:, None] + (np.arange(SAMPLES) + 0.5) / SAMPLES
        position = start + sample * side
        inside = (position >= -1) & (position <= limit)
        distance = jnp.abs(jnp.clip(position, 0, limit - 1)[..., None] - np.arange(cells))
        return (jnp.maximum(1 - distance, 0) * inside[..., None]).mean(-2).astype(dtype)  # (R, resolution, cells)

    def of_image(image):
        features, rois = image
        level, total = roi_levels(rois), 0.0
        for index, feature in enumerate(features):
            shape = feature.shape[:2]
            everywhere = jnp.zeros_like(level[None])
            strides = STRIDES[index : index + 1]
            frame = roi_frames(rois[None], everywhere, [shape], resolution=resolution, strides=strides)[0]
            down, across = (matrix(frame, axis, shape[axis], feature.dtype) for axis in (0, 1))
            down = down * (level == index)[:, None, None].astype(feature.dtype)
            rows = jnp.einsum("rih,hwc->riwc", down, feature)
            total += jnp.einsum("rjw,riwc->rijc", across, rows, preferred_element_type=jnp.float32)
        return total.astype(features[0].dtype)

    return jax.lax.map(of_image, (features, rois))


def ours(features, rois, *, resolution):
    """RoIAlign as the detector calls it."""
    return roi_align(features, rois, resolution=resolution, sampling_ratio=SAMPLES)


def measure(calls, wait, *, images: int, bursts: int, length: int) -> float:
    """Microseconds per image: the median over bursts of `length` calls, which take turns."""
    turns = itertools.cycle(calls)
    seconds = timing.measure(lambda: next(turns)(), wait, bursts=bursts, length=length)
    return float(np.median(seconds)) * 1e6 / images


def in_jax(form, names, inputs, dtype, resolution):
    """Forward and backward calls of a form with these kernels, one for each of the inputs, and the first results."""
    jax.clear_caches()
    pool = jax.jit(functools.partial(form, resolution=resolution))

    @jax.jit
    def pull(features, rois, gradient):
        return jax.vjp(lambda features: pool(features, rois), features)[1](gradient)[0]

    placed = []
    for features, rois, gradient in inputs:
        features = [jnp.asarray(feature, dtype) for feature in features]
        placed.append((features, jnp.asarray(rois), jnp.asarray(gradient, dtype)))
    forward = [functools.partial(pool, features, rois) for features, rois, _ in placed]
    backward = [functools.partial(pull, *one) for one in placed]
    with selection.only(names):
        results = [np.asarray(x, np.float32) for x in jax.tree.leaves((forward[0](), backward[0]()))]
    return {"forward": forward, "backward": backward}, results


def in_torch(inputs, dtype, resolution):
    """Forward and backward calls of torchvision, and a function that waits for the device.

    Channels first and contiguous, as its kernels compute; bfloat16 under autocast, as they know no bfloat16.
    """
    import torch
    from torchvision.ops import MultiScaleRoIAlign

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    align = MultiScaleRoIAlign([str(stride) for stride in STRIDES], resolution, SAMPLES)
    to = functools.partial(torch.tensor, device=device)

    def pool(maps, boxes, sizes):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return align(maps, boxes, sizes)

    forward, backward = [], []
    for features, rois, gradient in inputs:
        channels_first = [to(feature.transpose(0, 3, 1, 2).copy()).to(dtype).requires_grad_() for feature in features]
        maps = {str(stride): one for stride, one in zip(STRIDES, channels_first, strict=True)}
        size = tuple(side * STRIDES[0] for side in features[0].shape[1:3])
        call = functools.partial(pool, maps, [to(boxes) for boxes in rois], [size] * len(rois))
        pooled = call()
        weights = to(gradient).to(pooled.dtype).permute(0, 1, 4, 2, 3).reshape(pooled.shape).contiguous()
        forward.append(torch.no_grad()(call))
        backward.append(functools.partial(torch.autograd.grad, pooled, channels_first, weights, retain_graph=True))
    return {"forward": forward, "backward": backward}, torch.cuda.synchronize if device == "cuda" else lambda: None


def main() -> None:
    """Prints a line for each dtype, number of images, number of RoIs and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument("--rois", type=int, nargs="+", default=[512, 1000])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--resolution", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="128 x 192 pixels, 8 channels, one burst")
    options = parser.parse_args()
    height, width, channels, bursts, length = 800, 1344, 256, 11, 10
    if options.smoke:
        options.images, options.rois = [1, 2], [16]
        height, width, channels, bursts, length = 128, 192, 8, 1, 1

    print(timing.header(f"RoIAlign, microseconds per image, {height} x {width} pixels, {channels} channels"))
    names = ("kernel", "XLA", "einsum", "torchvision")
    ratios = tuple(f"{name} / kernel" for name in names[1:])
    timing.head("dtype", "images", "RoIs", "direction", *names, *ratios)
    for dtype, images, count in itertools.product(options.dtypes, options.images, options.rois):
        pixels = images * channels * sum(height * width // s**2 for s in STRIDES) * jnp.dtype(dtype).itemsize
        size = {"height": height, "width": width, "channels": channels, "resolution": options.resolution}
        inputs = [
            draw_pyramid(np.random.default_rng(seed), images, count, **size)
            for seed in range(1 if options.smoke else -(-CACHE // pixels))
        ]
        table = {"forward": [], "backward": []}
        wanted = None
        for name, form, kernels in (("kernel", ours, KERNELS), ("XLA", ours, ()), ("einsum", einsum, ())):
            calls, results = in_jax(form, kernels, inputs, dtype, options.resolution)
            wanted = results if wanted is None else wanted
            for result, right in zip(results, wanted, strict=True):
                if not np.linalg.norm(result - right) <= 0.02 * np.linalg.norm(right):  # bfloat16 weights: 0.003
                    raise SystemExit(f"{name} and kernel differ")
            for direction, row in table.items():
                row.append(
                    measure(calls[direction], jax.block_until_ready, images=images, bursts=bursts, length=length)
                )
        if timing.has_torchvision():
            calls, synchronize = in_torch(inputs, dtype, options.resolution)
            for direction, row in table.items():
                wait = lambda _: synchronize()  # noqa: B023, E731
                row.append(measure(calls[direction], wait, images=images, bursts=bursts, length=length))
        for direction, row in table.items():
            row += [None] * (len(names) - len(row))
            times = [None if time is None else time / row[0] for time in row[1:]]
            timing.line(dtype, images, count, direction, *row, *times)


if __name__ == "__main__":
    main()
