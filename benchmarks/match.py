"""Microseconds of matching all anchors of 800 x 1344 pixels to an image's boxes: the kernel and its XLA reference.

python benchmarks/match.py
python benchmarks/match.py --smoke      # few anchors, seconds on a CPU, where kernel and reference are one program
"""

import argparse
import functools

import jax
import numpy as np
import timing

from diou_jax.kernels import selection
from diou_jax.kernels.match import match
from diou_jax.kernels.trials import deviation, draw_match


def main() -> None:
    """Prints a line for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument("--boxes", type=int, default=8, help="boxes that exist, of 128 in an image")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    repeats = {"bursts": 1, "length": 1} if options.smoke else {"bursts": 11, "length": 20}
    images_of, cells = ([1, 2], 400) if options.smoke else (options.images, None)
    print(timing.header("Matching anchors, microseconds for all images"))
    timing.head("images", "anchors", "boxes", "kernel", "XLA", "XLA / kernel")
    for images in images_of:
        arguments = jax.device_put(draw_match(np.random.default_rng(0), images, boxes=options.boxes, cells=cells))
        times, results = [], []
        for names in (("match",), ()):
            jax.clear_caches()
            with selection.only(names):
                call = jax.jit(lambda anchors, boxes, masks: match(anchors, boxes, **masks)).lower(*arguments).compile()
            results.append(jax.device_get(call(*arguments)))
            seconds = timing.measure(functools.partial(call, *arguments), jax.block_until_ready, **repeats)
            times.append(float(np.median(seconds)) * 1e6)
        if deviation(*results, 0.0):
            raise SystemExit(f"{images} images: the kernel differs from its reference")
        timing.line(images, len(arguments[0]), options.boxes, *times, times[1] / times[0])


if __name__ == "__main__":
    main()
