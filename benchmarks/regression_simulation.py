"""The simulation of the DIoU paper (section 3.1): how far each loss brings 1,715,000 boxes in 200 steps.

    python benchmarks/regression_simulation.py --plot curves.png    # 2 minutes on 2 CPU cores
    python benchmarks/regression_simulation.py --smoke              # 20 of the 5000 places, seconds

At each of 5000 places in a disc of radius 3 about (10, 10) stand 49 anchors, of seven areas and seven aspect ratios,
and every one is regressed to each of seven targets of area 1 at (10, 10). The gradients are those of `diou_jax.losses`
for plain boxes, through x, y, width and height of the centre form.

The paper shows 1.5e6 for GIoU, and the same simulation with the gradient that its authors wrote by hand gives that
number. The gradient of the GIoU loss itself leads to 2.9e4, here and in the float64 implementation of
tests/test_regression_simulation.py.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.files import replacing
from diou_jax.losses import ciou_loss, diou_loss, giou_loss, iou_loss

NAMES = {"iou": "IoU", "giou": "GIoU", "diou": "DIoU", "ciou": "CIoU"}
LOSSES = {"iou": iou_loss, "giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
# Okabe and Ito's colours, which colour-blind people can tell apart; line styles for those who print in grey.
STYLES = (
    {"color": "#222222", "linestyle": "-"},
    {"color": "#d55e00", "linestyle": "--"},
    {"color": "#0072b2", "linestyle": "-."},
    {"color": "#009e73", "linestyle": ":"},
)
PLACES = 5000
CENTRE, RADIUS = 10.0, 3.0
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
ASPECTS = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)
RATES = np.repeat([0.1, 0.01, 0.001], [160, 20, 20]).astype(np.float32)

# Final errors at full size: the paper's are read off its figure, the replication is other people's code.
KNOWN = {
    "the paper's figure": ("5.9e6", "1.5e6", "~0", "~0"),
    "replication, the authors' gradients": ("5.88e6", "1.50e6", "4.1e3", "4.1e3"),
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
    """Errors of anchors (N, 4) against target (4,), both in centre form, before the first and after every step.

    The result (201, N / 49) has the L1 distances of the anchors of a place summed, so that the sum of the rest is small
    enough to be kept, and float32 has added no more than 49 numbers.
    """

    def total(boxes):
        return loss(corners(boxes), corners(target)).sum()

    def error(boxes):
        return jnp.abs(boxes - target).reshape(-1, len(AREAS) * len(ASPECTS) * 4).sum(-1)

    def step(boxes, rate):
        # The paper's factor: boxes that overlap little move up to twice as far.
        eagerness = 1 + iou_loss(corners(boxes), corners(target))[:, None]
        boxes = boxes - rate * eagerness * jax.grad(total)(boxes)
        return boxes, error(boxes)

    _, errors = jax.lax.scan(step, anchors, RATES)
    return jnp.concatenate([error(anchors)[None], errors])


def curve(anchors: np.ndarray, *, loss) -> np.ndarray:
    """The sum of all errors before the first and after every step: float64 (201,)."""
    return sum(np.asarray(regress(anchors, target, loss=loss)).sum(1, dtype=np.float64) for target in make_targets())


def make_targets() -> np.ndarray:
    """The seven targets in centre form: float32 (7, 4)."""
    return np.concatenate([np.full((len(ASPECTS), 2), CENTRE), shapes((1.0,))], 1).astype(np.float32)


def write_plot(path: str, curves: dict[str, np.ndarray]) -> None:
    """Draws errors over steps, one curve for each loss, into a picture file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    for (name, errors), style in zip(curves.items(), STYLES, strict=True):
        axes.plot(errors, label=f"{NAMES[name]}, at the end {errors[-1]:.2g}", linewidth=2, **style)
    for step in np.flatnonzero(np.diff(RATES)) + 1:
        axes.axvline(step, color="#999999", linewidth=0.8, zorder=0)
    axes.set(
        yscale="log",
        xlim=(0, len(RATES)),
        xlabel="step; grey lines: the learning rate falls to a tenth",
        ylabel="sum of |dx| + |dy| + |dw| + |dh|",
        title="Regression of anchors to seven targets, by loss",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    with replacing(path) as draft:
        figure.savefig(draft, format=pathlib.Path(path).suffix[1:] or "png")


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="20 of the 5000 places")
    parser.add_argument("--seed", type=int, default=0, help="seed of the places")
    parser.add_argument("--plot", metavar="FILE", help="write a picture of the four curves, for example curves.png")
    options = parser.parse_args()

    anchors = make_anchors(20 if options.smoke else PLACES, options.seed)
    curves, seconds = {}, []
    for name, loss in LOSSES.items():
        begin = time.perf_counter()
        curves[name] = curve(anchors, loss=loss)
        seconds.append(time.perf_counter() - begin)

    count = len(anchors) * len(ASPECTS)
    print(f"{count:,} regressions of {len(RATES)} steps on {jax.devices()[0].device_kind}, jax {jax.__version__}")
    rows = {
        "final error, sum of |dx| + |dy| + |dw| + |dh|": [f"{errors[-1]:.3g}" for errors in curves.values()],
        "final error per regression": [f"{errors[-1] / count:.4f}" for errors in curves.values()],
        "seconds, with compilation": [f"{second:.1f}" for second in seconds],
        **{f"{name} (5000 places)": values for name, values in KNOWN.items()},
    }
    print("".join([" " * 52, *(f"{name:>10}" for name in LOSSES)]))
    for name, values in rows.items():
        print(f"{name:52}" + "".join(f"{value:>10}" for value in values))
    if options.plot:
        write_plot(options.plot, curves)
        print(f"the curves are in {options.plot}")


if __name__ == "__main__":
    main()
