"""The cost of the guard and of checkpoints: a step with and without its guard, and the pause for a checkpoint.

    python benchmarks/guards.py            # R-50-FPN at 800 x 1344, for a GPU
    python benchmarks/guards.py --shapes   # the detector of configs/shapes.py, minutes on a CPU
    python benchmarks/guards.py --smoke    # a sketch of a detector, seconds

The two steps take turns, so that other work on the machine meets both alike. A checkpoint's time is that of `save`
between two steps; writing goes on behind it. The first one, which makes folders, is not counted.
"""

import argparse
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from timing import head, header, line
from workload import CLASSES, draw_batch, make_config, make_variables, prepare

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.configs import shapes
from diou_jax.devices import replicate, to_devices
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.training.step import make_train_step


def shapes_config():
    """The detector of configs/shapes.py, its images one size."""
    config = shapes.get_config()
    side = config.train.max_size
    config.data.buckets = ((side, side),)
    return config


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="images of each device")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--length", type=int, default=10, help="steps in a round")
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    prepare()
    rounds, length = (3, 2) if options.smoke else (options.rounds, options.length)
    config = shapes_config() if options.shapes else make_config(smoke=options.smoke)
    detector = build.detector(config, CLASSES)
    optimizer = build.make_optimizer(config, build.rule(config).schedule)
    steps = {
        guarded: make_train_step(detector, optimizer, seed=0, iter_size=1, log_every=20, guarded=guarded)
        for guarded in (True, False)
    }
    variables = make_variables(config, detector.network)
    # Each step has a copy of the state, since it reuses the state's memory.
    states = {
        guarded: replicate(create_state(jax.tree.map(jnp.array, variables), optimizer, detector.loss_names))
        for guarded in steps
    }
    (batch,) = to_devices([draw_batch(config, options.images * jax.device_count())], ahead=0)

    def advance(guarded, count):
        began = time.perf_counter()
        for _ in range(count):
            states[guarded], metrics = steps[guarded](states[guarded], batch)
        jax.block_until_ready((states[guarded], metrics))
        return (time.perf_counter() - began) / count

    for guarded in steps:
        advance(guarded, 2)
    times = {guarded: [] for guarded in steps}
    for number in range(rounds):
        for guarded in sorted(steps, reverse=number % 2 == 0):
            times[guarded].append(advance(guarded, length))
    with_guard, without = (statistics.median(times[guarded]) * 1e3 for guarded in (True, False))
    ratios = np.array(times[True]) / np.array(times[False])

    print(header("The guard of a step"))
    head("ms with", "ms without", "of the medians, %", "median of the rounds' ratios, %")
    line(with_guard, without, (with_guard / without - 1) * 100, (float(np.median(ratios)) - 1) * 100)

    saves, copies = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:
        for number in range(4):
            advance(True, 1)
            began = time.perf_counter()
            jax.device_get(states[True])
            copies.append(time.perf_counter() - began)
            began = time.perf_counter()
            checkpoints.save(states[True], number, {})
            saves.append(time.perf_counter() - began)
            checkpoints.finish()
    print()
    print(header("A checkpoint"))
    head("ms that `save` takes", "ms of a plain copy to the host", "ms of a step")
    line(*(statistics.median(values[1:]) * 1e3 for values in (saves, copies)), with_guard)


if __name__ == "__main__":
    main()
