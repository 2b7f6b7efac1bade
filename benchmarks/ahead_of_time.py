"""The work and the traffic of a step on a GPU, from the program that XLA compiles for it; no GPU is needed.

    pip install -e '.[cuda13]'                              # brings the compiler; a GPU is used where there is one
    python benchmarks/ahead_of_time.py --images 2 16
    python benchmarks/ahead_of_time.py --devices 8 --images 2
    python benchmarks/ahead_of_time.py --detect --longest 20
    python benchmarks/ahead_of_time.py --masks              # Mask R-CNN
    python benchmarks/ahead_of_time.py --smoke              # a sketch of the network, compiled for the CPU

Each kernel of the compiled step reads its operands and writes its results once, and does the multiplications of its
convolutions and products; at the given peaks, and with a fixed time to start each kernel, that takes the time "at
least". It is a limit to compare programs by, not a prediction: libraries choose their algorithms on the device, and of
a hand-written kernel only whole inputs and outputs can be seen. Sums over devices count as if they stayed on one.

The tables: by kind of kernel; by the part of the step, from the operation's name, with the time by its kernels' longest
task; and, with --longest, kernel by kernel.
"""

import argparse
import collections
import os

import jax
import timing
import workload
from compiled_kernels import kernels
from jax.experimental import topologies

from diou_jax.compilation import set_flags
from diou_jax.kernels import selection
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.training.step import make_train_step

# Without a driver the plugin's check of NVIDIA's versions fails, though its compiler needs none.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
# The target on a machine without a GPU, by NVIDIA's H100 SXM5 data sheet and the CUDA programming guide.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(count: int, smoke: bool, target: str = H100) -> list[jax.Device]:
    """Devices to compile for; without a GPU they are of the target's kind."""
    if smoke or jax.default_backend() == "gpu":
        return jax.devices()[:count]
    try:
        found = topologies.get_topology_desc("", "cuda", topology=f"1x1x{count}", target_config=target)
    except Exception as error:
        raise SystemExit(
            f"no compiler for NVIDIA GPUs here ({error}); pip install -e '.[cuda13]' brings one"
        ) from error
    return found.devices


def compile(images: int, devices: list[jax.Device], options) -> jax.stages.Compiled:
    """The train step, or detection on the first device, of this many images a device."""
    config = workload.make_config(smoke=options.smoke, masks=options.masks)
    config.train.batch_size = images
    config.test.diou_nms.enabled = True
    rule = build.rule(config)
    detector = build.detector(config, workload.CLASSES, collect_scale=rule.schedule.collect_scale)
    variables = workload.make_variables(config, detector.network)
    batch = workload.draw_batch(config, images)
    # Without a device no algorithm can be timed, but XLA would time the tiles of Triton's products.
    untimed = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False}
    choices = {} if jax.default_backend() == devices[0].platform else untimed
    if options.detect:
        place = jax.sharding.SingleDeviceSharding(devices[0])
        variables = detector.network.folded(variables)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (variables, batch))
        return jax.jit(detector.detect).lower(*shapes).compile(choices)
    optimizer = build.make_optimizer(config, rule.schedule)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), create_state(variables, optimizer, detector.loss_names)
    )
    shapes = state, jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(devices), *x.shape), x.dtype), batch)
    step = make_train_step(detector, optimizer, seed=0, iter_size=1, log_every=20, devices=devices)
    return step.lower(*shapes).compile(choices)


def table(images: int, program: jax.stages.Compiled, options) -> None:
    """Prints the kinds of kernels, the parts of the step, and the longest kernels."""

    def limits(kernel):
        return kernel.traffic / options.peak_tbs / 1e12, kernel.work / options.peak_tflops / 1e12

    def least(kernel):
        return (max(limits(kernel)) + kernel.launches * options.launch * 1e-6) * 1e3

    def total(chosen):
        return float(sum(map(least, chosen)))

    def row(name, chosen, *cells):
        traffic, work = (sum(getattr(kernel, field) for kernel in chosen) for field in ("traffic", "work"))
        launches = sum(kernel.launches for kernel in chosen)
        timing.line(name, launches, traffic / 1e9, work / 1e12, *cells, total(chosen))

    def groups(name):
        found_of = collections.defaultdict(list)
        for kernel in found:
            found_of[getattr(kernel, name)].append(kernel)
        return sorted(found_of.items(), key=lambda item: -total(item[1]))

    found = kernels(program.as_text())
    memory = program.memory_analysis().temp_size_in_bytes / 1e9
    print(f"\n{images} images; {memory:.2f} GB beside inputs and outputs\n")
    timing.head("kind", "kernels", "GB", "TFLOP", "at least, ms")
    for kind, chosen in groups("kind"):
        row(kind, chosen)
    row("sum", found)
    print()
    timing.head(
        "part", "kernels", "GB", "TFLOP", "moving, ms", "computing", "starting", "backward", "share", "at least, ms"
    )
    for part, chosen in [*groups("part"), ("sum", found)]:
        # A kernel takes as long as its longest task.
        moving, computing = (
            sum(limits(kernel)[which] for kernel in chosen if max(limits(kernel)) == limits(kernel)[which])
            for which in (0, 1)
        )
        starting = sum(kernel.launches for kernel in chosen) * options.launch / 1e3
        backward = total([kernel for kernel in chosen if kernel.backward])
        share = f"{100 * total(chosen) / total(found):.1f} %"
        row(part, chosen, moving * 1e3, computing * 1e3, starting, backward, share)
    shared = [place for place, kernel in enumerate(found) if kernel.kind == "all-reduce"]
    if options.devices > 1:
        places = ", ".join(str(place + 1) for place in shared)
        print(f"\nBetween devices: {len(shared)} sums, started as kernels {places} of {len(found)}")
    if options.longest:
        print()
        timing.head("kernel", "kernels", "GB", "TFLOP", "at least, ms")
        for kernel in sorted(found, key=least, reverse=True)[: options.longest]:
            row(f"{kernel.kind}: {kernel.origin}", [kernel])


def main() -> None:
    """Prints a table for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[16])
    parser.add_argument(
        "--devices", type=int, default=1, help="devices that train together, each with that many images"
    )
    parser.add_argument("--detect", action="store_true", help="detection with DIoU-NMS in place of the train step")
    parser.add_argument("--masks", action="store_true", help="with the mask head")
    parser.add_argument("--longest", type=int, default=0, help="number of the longest kernels to list")
    parser.add_argument("--peak-tflops", type=float, default=700)
    parser.add_argument("--peak-tbs", type=float, default=2.8)
    parser.add_argument("--launch", type=float, default=2, help="microseconds to start a kernel")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    set_flags()
    os.environ.setdefault(selection.SWITCH, "pallas")  # there is no device on which kernels could be tried
    if options.smoke:
        options.images, options.longest = [2], 3
    found = devices(options.devices, options.smoke)
    step = "Detection" if options.detect else "The train step"
    height, width = workload.SMOKE_SIZE if options.smoke else workload.SIZE
    print(timing.header(f"{step} as compiled for {found[0].device_kind}, {height} x {width}"))
    print(f"at {options.peak_tflops:g} TFLOP/s, {options.peak_tbs:g} TB/s, {options.launch:g} us to start a kernel")
    for images in options.images:
        table(images, compile(images, found, options), options)


if __name__ == "__main__":
    main()
