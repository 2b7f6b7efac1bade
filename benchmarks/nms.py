"""Microseconds of suppression on the detector's work: ours, its XLA twin, torchvision.

    python benchmarks/nms.py              # seconds on a GPU
    python benchmarks/nms.py --smoke      # small, seconds on a CPU; ours is the twin there, its times mean little

RPN: every image has five levels of 2000 proposals; torchvision runs `batched_nms` image by image, as its detector calls
it. Final: every image has 80 classes of 1000 boxes; likewise. torchvision knows IoU alone, so its column stands for
both. Ours and the twin must agree before they are timed; times are medians of bursts that wait only for the last call.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.kernels.nms import keep_xla, nms
from diou_jax.kernels.suppression import suppresses

ROWS = {"RPN": (5, 2000, 0.7), "final": (80, 1000, 0.5)}
SMOKE_ROWS = {"RPN": (5, 100, 0.7), "final": (4, 60, 0.5)}
KINDS = (("iou", 1.0), ("diou", 1.0), ("diou", 0.9))


def draw(images: int, problems: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (images, problems, count, 4) in clusters around objects, as proposals are, and scores."""
    rng = np.random.default_rng(0)
    shape = (images, problems, count)
    objects = rng.uniform(0, [1344, 800], (images, 1, 40, 2))
    which = rng.integers(0, 40, shape)
    centre = np.take_along_axis(np.broadcast_to(objects, (images, problems, 40, 2)), which[..., None], 2)
    size = np.exp(rng.normal(4.5, 0.7, (images, problems, 40, 2)))
    size = np.take_along_axis(size, which[..., None], 2) * np.exp(rng.normal(0, 0.15, (*shape, 2)))
    centre = centre + rng.normal(0, 0.1, (*shape, 2)) * size
    boxes = np.concatenate([centre - size / 2, centre + size / 2], -1)
    return boxes.astype(np.float32), rng.random(shape, np.float32)


def measure(call, wait, *, bursts: int, length: int) -> float:
    """Microseconds of a call."""
    wait(call())
    times = []
    for _ in range(bursts):
        start = time.perf_counter()
        for _ in range(length):
            result = call()
        wait(result)
        times.append((time.perf_counter() - start) / length)
    return statistics.median(times) * 1e6


def twin(boxes: jax.Array, scores: jax.Array, threshold: float, *, overlap: str, beta: float) -> jax.Array:
    """As `nms`, on the XLA path whatever the device."""
    count = scores.shape[-1]
    order = jnp.argsort(-scores.reshape(-1, count), stable=True)
    ordered = jnp.take_along_axis(boxes.reshape(-1, count, 4), order[..., None], 1)
    counts = jnp.full(len(order), count, jnp.int32)
    test = functools.partial(suppresses, overlap=overlap, beta=beta)
    kept = keep_xla(ordered, counts, jnp.float32(threshold), suppresses=test)
    rows = jnp.arange(len(order))[:, None]
    return jnp.zeros_like(kept).at[rows, order].set(kept, unique_indices=True).reshape(scores.shape)


def in_torch(boxes: np.ndarray, scores: np.ndarray, threshold: float):
    """A call that goes over the images, and what waits for the device."""
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


def main() -> None:
    """Prints a line for each kind of work, number of images and overlap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument("--smoke", action="store_true", help="small problems, one burst")
    options = parser.parse_args()
    rows, bursts, length = (SMOKE_ROWS, 1, 1) if options.smoke else (ROWS, 11, 20)
    images_of = [1, 2] if options.smoke else options.images

    try:
        import torchvision
    except ImportError:
        torchvision = None
    peer = "not installed" if torchvision is None else torchvision.__version__
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torchvision {peer}, {time.strftime('%Y-%m-%d')}")
    print("microseconds for all images, and how many times as long as ours; ours as a multiple of its own for IoU")
    names = "".join(f"{name:>22}" for name in ("ours", "twin", "torchvision"))
    print(f"work   images  problems  overlap  beta  of IoU{names}")
    for work, (problems, count, threshold) in rows.items():
        for images in images_of:
            boxes, scores = draw(images, problems, count)
            peer_time = None
            if torchvision is not None:
                call, synchronize = in_torch(boxes, scores, threshold)
                peer_time = measure(call, lambda _, wait=synchronize: wait(), bursts=bursts, length=1)
            placed = jnp.asarray(boxes), jnp.asarray(scores)
            by_iou = None
            for overlap, beta in KINDS:
                forms = [
                    jax.jit(functools.partial(form, threshold=threshold, overlap=overlap, beta=beta))
                    for form in (nms, twin)
                ]
                # The judge runs on the CPU; not a box may differ.
                judged = forms[1](*jax.device_put(placed, jax.devices("cpu")[0]))
                kept = [np.asarray(forms[0](*placed)), np.asarray(judged)]
                if not (kept[0] == kept[1]).all():
                    raise SystemExit(
                        f"{work}, {overlap}: ours and the twin differ in {(kept[0] != kept[1]).sum()} boxes"
                    )
                times = [
                    measure(functools.partial(form, *placed), jax.block_until_ready, bursts=bursts, length=length)
                    for form in forms
                ]
                times += [peer_time] if peer_time is not None else []
                by_iou = by_iou or times[0]
                cells = "".join(f"{value:13.1f} ({value / times[0]:6.2f})" for value in times)
                row = f"{work:6} {images:6d}  {images * problems:8d}  {overlap:7}  {beta:4g}  {times[0] / by_iou:6.2f}"
                print(row + cells, flush=True)


if __name__ == "__main__":
    main()
