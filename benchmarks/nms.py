"""Microseconds of suppression on the detector's work: the kernel, its XLA reference, torchvision.

    python benchmarks/nms.py              # seconds on a GPU
    python benchmarks/nms.py --smoke      # small, seconds on a CPU, where kernel and reference are one program

RPN: every image has five levels of 2000 proposals; torchvision runs `batched_nms` image by image, as its detector calls
it. Final: every image has 80 classes of 1000 boxes; likewise. torchvision knows IoU alone, so its column stands for
both. The kernel must keep the boxes that the reference keeps on the CPU before it is timed; times are medians of bursts
that wait only for the last call.
"""

import argparse
import functools

import jax
import numpy as np
import timing

from diou_jax.kernels import selection
from diou_jax.kernels.nms import nms
from diou_jax.kernels.trials import draw_clusters

ROWS = {"RPN": (5, 2000, 0.7), "final": (80, 1000, 0.5)}
SMOKE_ROWS = {"RPN": (5, 100, 0.7), "final": (4, 60, 0.5)}
KINDS = (("iou", 1.0), ("diou", 1.0), ("diou", 0.9))


def measure(call, wait, *, bursts: int, length: int) -> float:
    """Microseconds of a call, the median of bursts."""
    return float(np.median(timing.measure(call, wait, bursts=bursts, length=length))) * 1e6


def in_torch(boxes: np.ndarray, scores: np.ndarray, threshold: float):
    """A call that goes over the images, and a function that waits for the device."""
    import torch
    from torchvision.ops import batched_nms

    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, problems, count = scores.shape
    group = torch.arange(problems, device=device).repeat_interleave(count)
    of_images = [
        (torch.tensor(b.reshape(-1, 4), device=device), torch.tensor(s.reshape(-1), device=device))
        for b, s in zip(boxes, scores, strict=True)
    ]

    def call():
        return [batched_nms(b, s, group, threshold) for b, s in of_images]

    return call, torch.cuda.synchronize if device == "cuda" else lambda: None


def compile(names: tuple[str, ...], arguments, **options) -> jax.stages.Compiled:
    """`nms` of these arguments with these kernels."""
    with selection.only(names):
        return jax.jit(lambda boxes, scores: nms(boxes, scores, **options)).lower(*arguments).compile()


def main() -> None:
    """Prints a line for each kind of work, number of images and overlap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument("--smoke", action="store_true", help="small problems, one burst")
    options = parser.parse_args()
    rows, bursts, length = (SMOKE_ROWS, 1, 1) if options.smoke else (ROWS, 11, 20)
    images_of = [1, 2] if options.smoke else options.images

    print(timing.header("Suppression, microseconds for all images"))
    timing.head(
        "work",
        "images",
        "problems",
        "overlap",
        "beta",
        "kernel",
        "XLA",
        "torchvision",
        "XLA / kernel",
        "torchvision / kernel",
        "kernel / kernel by IoU",
    )
    for work, (problems, count, threshold) in rows.items():
        for images in images_of:
            boxes, scores = draw_clusters(np.random.default_rng(0), images=images, problems=problems, count=count)
            theirs = None
            if timing.has_torchvision():
                call, synchronize = in_torch(boxes, scores, threshold)
                theirs = measure(call, lambda _, wait=synchronize: wait(), bursts=bursts, length=1)
            placed = jax.device_put((boxes, scores))
            on_cpu = jax.device_put((boxes, scores), jax.devices("cpu")[0])
            by_iou = None
            for overlap, beta in KINDS:
                choice = {"threshold": threshold, "overlap": overlap, "beta": beta}
                kernel, reference = (compile(names, placed, **choice) for names in (("nms",), ()))
                judged = np.asarray(compile((), on_cpu, **choice)(*on_cpu))
                differ = (np.asarray(kernel(*placed)) != judged).sum()
                if differ:
                    raise SystemExit(f"{work}, {overlap}: the kernel differs from its reference in {differ} boxes")
                ours, xla = (
                    measure(functools.partial(form, *placed), jax.block_until_ready, bursts=bursts, length=length)
                    for form in (kernel, reference)
                )
                by_iou = by_iou or ours
                ratio = None if theirs is None else theirs / ours
                timing.line(
                    work, images, images * problems, overlap, beta, ours, xla, theirs, xla / ours, ratio, ours / by_iou
                )


if __name__ == "__main__":
    main()
