"""How long the host takes to start a training step, by the number of arrays that the state has.

    python benchmarks/dispatch.py
    python benchmarks/dispatch.py --smoke

The state has as many arrays as R-50-FPN's training state, in the same structure, but eight numbers in each: the step
itself takes next to no time, and the rest is dispatch. "joined" has the arrays of fewer than 65536 numbers in one
array, which a step can take apart at no cost; "one" has the whole state in one array, which costs a step two passes
over its memory.
Several processes are joined on this machine, each with one device. Dispatch is hidden where it is shorter than a step.
"""

import argparse
import os
import socket
import subprocess
import sys
import time

SMALL = 65536


def variants(smoke: bool) -> dict[str, dict]:
    """States of arrays of eight numbers, by how many arrays each has."""
    import jax
    import numpy as np
    import workload

    from diou_jax.optimization.state import create_state
    from diou_jax.options import build

    config = workload.make_config(smoke=smoke)
    detector, rule = build.detector(config, 81), build.rule(config)
    optimizer = build.make_optimizer(config, rule.schedule)
    state = jax.eval_shape(
        lambda variables: create_state(variables, optimizer, detector.loss_names), detector.network.variable_shapes()
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    counts = {"as it is": len(sizes), "joined": 1 + sum(size >= SMALL for size in sizes), "one": 1}
    return {
        name: {f"{number:03}": np.ones(8 * len(sizes) // count, np.float32) for number in range(count)}
        for name, count in counts.items()
    }


def measure(state: dict, repeats: int) -> list[float]:
    """Seconds from the call of a step to its return, with the step before done."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diou_jax.devices import AXIS, replicate, to_devices
    from diou_jax.structures import blank_batch

    def step(state, batch):
        change = jax.lax.pmean(batch.placement.scale.sum(), AXIS)
        state = jax.tree.map(lambda x: x + change, state)
        return state, jnp.stack([x[0] for x in state.values()]).sum()

    step = jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)
    host = jax.device_get(blank_batch(jax.local_device_count(), 32, 32))
    (batch,) = to_devices([jax.tree.map(np.asarray, host)], ahead=0)
    state, seconds = replicate(state), []
    for _ in range(repeats + 5):
        start = time.perf_counter()
        state, done = step(state, batch)
        seconds.append(time.perf_counter() - start)
        jax.block_until_ready(done)
    return seconds[5:]


def work(options) -> None:
    """One of the processes: prints a line for each variant, in the first process."""
    import jax
    import numpy as np

    if options.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{options.port}", options.processes, options.process)
    for name, state in variants(options.smoke).items():
        seconds = np.array(measure(state, options.repeats)) * 1e3
        if jax.process_index() == 0:
            low, median, high = np.percentile(seconds, (10, 50, 90))
            print(f"{options.processes},{name},{len(state)},{median:.2f} ({low:.2f}; {high:.2f})", flush=True)


def main() -> None:
    """Prints the table, or is one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--smoke", action="store_true", help="a sketch of the network, few repeats")
    parser.add_argument("--processes", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.repeats = min(options.repeats, 10)
    if options.processes:
        work(options)
        return

    import timing

    print(timing.header("Dispatch of a training step"))
    timing.head("processes", "state", "arrays", "dispatch, ms (10th; 90th percentile)")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    for processes in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = ["--processes", str(processes), "--port", str(port), "--repeats", str(options.repeats)]
        command = [sys.executable, os.path.abspath(__file__), *common, *(["--smoke"] if options.smoke else [])]
        running = [
            subprocess.Popen([*command, "--process", str(number)], stdout=subprocess.PIPE, text=True, env=environment)
            for number in range(processes)
        ]
        outputs = [process.communicate()[0] for process in running]
        for row in filter(None, outputs[0].splitlines()):
            timing.line(*row.split(","))
        if any(process.returncode for process in running):
            sys.exit("a process failed")


if __name__ == "__main__":
    main()
