"""The simulation of the DIoU paper (section 3.1): how far each loss brings 1,715,000 boxes in 200 steps.

    python benchmarks/regression_simulation.py            # a minute on 4 CPU cores
    python benchmarks/regression_simulation.py --smoke    # 20 of the 5000 places, seconds

At each of 5000 places in a disc of radius 3 about (10, 10) stand 49 anchors, of seven areas and seven aspect ratios,
and every one is regressed to each of seven targets of area 1 at (10, 10). The gradients are those of `diou_jax.losses`
for plain boxes, through x, y, width and height of the centre form.

IoU, DIoU and CIoU end where the replication with true gradients ends. GIoU does not: it ends some fifty times lower
than all three known numbers. The same simulation in float64 numpy with GIoU's gradient derived by hand agrees with
ours, so the gradient is not the reason; what is has not been found.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.losses import ciou_loss, diou_loss, giou_loss, iou_loss

LOSSES = {"iou": iou_loss, "giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
PLACES = 5000
CENTRE, RADIUS = 10.0, 3.0
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
ASPECTS = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)
RATES = np.repeat([0.1, 0.01, 0.001], [160, 20, 20]).astype(np.float32)

# Final errors at full size: the paper's are read off its figure, the replications are other people's code.
KNOWN = {
    "the paper's figure": ("5.9e6", "1.5e6", "~0", "~0"),
    "replication, the authors' gradients": ("5.88e6", "1.50e6", "4.1e3", "4.1e3"),
    "replication, true gradients": ("5.88e6", "1.64e6", "5.3e4", "7.5e3"),
}


def shapes(areas: tuple[float, ...]) -> np.ndarray:
    """Widths and heights of every area in every aspect ratio: (len(areas) * 7, 2)."""
    area, aspect = (axis.ravel() for axis in np.meshgrid(areas, ASPECTS, indexing="ij"))
    return np.sqrt(np.stack([area * aspect, area / aspect], 1))


def make_anchors(places: int, seed: int) -> np.ndarray:
    """Anchors in centre form, at `places` points uniform in the disc: float32 (places * 49, 4)."""
    random = np.random.default_rng(seed)
    radius, angle = RADIUS * np.sqrt(random.random(places)), 2 * np.pi * random.random(places)
    centres = CENTRE + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    sizes = shapes(AREAS)
    pairs = np.broadcast_arrays(centres[:, None], sizes[None])
    return np.concatenate(pairs, -1).reshape(-1, 4).astype(np.float32)


def corners(boxes: jax.Array) -> jax.Array:
    """Centre form to x1, y1, x2, y2, without the one of inclusive pixels."""
    return jnp.concatenate([boxes[..., :2] - 0.5 * boxes[..., 2:], boxes[..., :2] + 0.5 * boxes[..., 2:]], -1)


@functools.partial(jax.jit, static_argnames="loss")
def regress(anchors: jax.Array, target: jax.Array, *, loss) -> jax.Array:
    """L1 distances (N,) of anchors (N, 4) from target (4,) after the last step, both in centre form."""

    def total(boxes):
        return loss(corners(boxes), corners(target)).sum()

    def step(boxes, rate):
        # The paper's factor: boxes that overlap little move up to twice as far.
        eagerness = 1 + iou_loss(corners(boxes), corners(target))[:, None]
        return boxes - rate * eagerness * jax.grad(total)(boxes), None

    boxes, _ = jax.lax.scan(step, anchors, RATES)
    return jnp.abs(boxes - target).sum(-1)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="20 of the 5000 places")
    parser.add_argument("--seed", type=int, default=0, help="of the places")
    options = parser.parse_args()

    places = 20 if options.smoke else PLACES
    anchors = make_anchors(places, options.seed)
    targets = np.concatenate([np.full((len(ASPECTS), 2), CENTRE), shapes((1.0,))], 1).astype(np.float32)
    errors, seconds = [], []
    for loss in LOSSES.values():
        begin = time.perf_counter()
        errors.append(sum(np.asarray(regress(anchors, t, loss=loss)).sum(dtype=np.float64) for t in targets))
        seconds.append(time.perf_counter() - begin)

    count = len(anchors) * len(targets)
    print(f"{count:,} regressions of {len(RATES)} steps on {jax.devices()[0].device_kind}, jax {jax.__version__}")
    rows = {
        "final error, sum of |dx| + |dy| + |dw| + |dh|": [f"{error:.3g}" for error in errors],
        "final error per regression": [f"{error / count:.4f}" for error in errors],
        "seconds, with compilation": [f"{second:.1f}" for second in seconds],
        **{f"{name} (5000 places)": values for name, values in KNOWN.items()},
    }
    print("".join([" " * 52, *(f"{name:>10}" for name in LOSSES)]))
    for name, values in rows.items():
        print(f"{name:52}" + "".join(f"{value:>10}" for value in values))


if __name__ == "__main__":
    main()
