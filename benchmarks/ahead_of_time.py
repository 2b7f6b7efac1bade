"""What a step will ask of a GPU, read off the program that XLA compiles for it; the GPU itself need not be there.

    pip install -e '.[cuda13]'                              # brings the compiler; a GPU is used where there is one
    python benchmarks/ahead_of_time.py --images 2 16
    python benchmarks/ahead_of_time.py --devices 8 --images 2
    python benchmarks/ahead_of_time.py --detect --longest 20
    python benchmarks/ahead_of_time.py --smoke              # a sketch of the network, compiled for the CPU

Each kernel of the compiled step reads its operands and writes its results once, and multiplies what its convolutions
and products ask for; at the given peaks, and with a fixed time to start each kernel, that takes the time "at least".
It is a limit to compare programs by, not a prediction: libraries choose their algorithms on the device, and of a
hand-written kernel only what goes in and out whole can be seen. Sums over devices count as if they stayed on one.

The tables: by kind of kernel; by the part of the step, as the operation's name tells it, with what its kernels take
longest for; and, with --longest, kernel by kernel.
"""

import argparse
import collections
import dataclasses
import math
import re

import jax
import timing
import workload
from jax.experimental import topologies

from diou_jax import build
from diou_jax.compilation import set_flags
from diou_jax.train_step import create_state, make_train_step

# For a machine without a GPU; figures of NVIDIA's H100 SXM5 data sheet and of the CUDA programming guide.
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
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
BYTES |= {"u64": 8, "f64": 8}
SORTED_AT_ONCE = 4096  # see kernels/top_k.py
# Where an operation comes from, by the first of these scopes in its name; what bears none is "other".
PARTS = {
    "input": "images",
    "body": "backbone",
    "fpn": "FPN",
    "anchor_targets": "anchor targets",
    "rpn": "RPN",
    "proposals": "proposals",
    "roi_sampling": "RoI sampling",
    "roi_align": "RoIAlign",
    "box_head": "box head",
    "losses": "losses",
    "detections": "detections",
    "optimiser": "optimiser",
}
NO_KERNEL = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "all-reduce-done"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program's text: ``name = type opcode(operands), attributes``."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What runs on its own.

    Attributes:
      kind: what it is, as the tables call it.
      origin: the operation of the JAX program that it came from.
      traffic: bytes of operands and results.
      work: floating-point operations of products and convolutions.
      launches: kernels that it really is.
    """

    kind: str
    origin: str
    traffic: int
    work: int
    launches: int = 1

    @property
    def part(self) -> str:
        """Of `PARTS`."""
        scope = re.search(rf"\b({'|'.join(PARTS)})\b", self.origin)
        return PARTS[scope[1]] if scope else "other"

    @property
    def backward(self) -> bool:
        """Whether it is of the backward pass."""
        return "transpose(" in self.origin


def arrays(type_: str) -> list[tuple[str, list[int]]]:
    """The arrays of an HLO type, a tuple perhaps: dtype and shape of each."""
    found = re.findall(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]", type_)
    return [(dtype, [int(side) for side in shape.split(",") if side]) for dtype, shape in found]


def size(type_: str) -> int:
    """Bytes of an HLO type."""
    return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in arrays(type_))


def read(text: str) -> dict[str, list[Instruction]]:
    """The computations of a program's text by name; the one that runs is called "ENTRY"."""
    computations, current = {}, None
    for line in text.splitlines():
        if not line.startswith(" "):
            start = re.match(r"(ENTRY )?%?([\w.<>\-]+) .*\{$", line)
            current = computations.setdefault("ENTRY" if start[1] else start[2], []) if start else None
        elif current is not None and " = " in line:
            current.append(_parse(line.strip().removeprefix("ROOT ")))
    return computations


def _parse(line):
    name, rest = line.split(" = ", 1)
    type_, rest = _balanced(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = re.match(r"\s*([\w\-]+)(.*)", rest, re.DOTALL).groups()
    operands, attributes = _balanced(rest)
    # A parameter has its number where others have operands.
    names = re.findall(r"\d+" if opcode == "parameter" else r"%([\w.\-]+)", operands)
    return Instruction(name.lstrip("%"), type_, opcode, tuple(names), attributes)


def _balanced(text):
    """The text up to the bracket that closes the first one, and what follows."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"brackets do not close: {text[:80]}")


def called(instruction: Instruction) -> str | None:
    """The computation that a fusion or call runs."""
    found = re.search(r"\b(?:calls|to_apply)=%([\w.\-]+)", instruction.attributes)
    return found[1] if found and instruction.opcode in ("fusion", "call") else None


def inside(computations, name: str):
    """All instructions of a computation and of those it calls."""
    for instruction in computations[name]:
        yield instruction
        if called(instruction):
            yield from inside(computations, called(instruction))


def product_work(instruction: Instruction, types: dict[str, str]) -> int:
    """Two for each multiply-add of a ``dot`` or a convolution, 0 of all else."""
    shape = lambda name: arrays(types[name])[0][1]  # noqa: E731
    result = arrays(instruction.type)[0][1] if arrays(instruction.type) else []
    if instruction.opcode == "dot" or 'custom_call_target="__cublas' in instruction.attributes:
        contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)', instruction.attributes)[1]
        left = shape(instruction.operands[0])
        return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in re.findall(r"\d+", contracted))
    target = re.search(r'custom_call_target="__cudnn\$conv(\w+)"', instruction.attributes)
    if target is None and instruction.opcode != "convolution":
        return 0
    # Channels last everywhere: that is the layout which the step asks for and cuDNN prefers.
    window = re.search(r"size=([\dx]+)", instruction.attributes)
    taps = math.prod(map(int, window[1].split("x"))) if window else 1
    kind = target[1] if target else ""
    maps, channels = {
        "BackwardFilter": (lambda: shape(instruction.operands[1]), lambda: shape(instruction.operands[0])[-1]),
        "BackwardInput": (lambda: shape(instruction.operands[0]), lambda: result[-1]),
    }.get(kind, (lambda: result, lambda: shape(instruction.operands[0])[-1]))
    return 2 * taps * math.prod(maps()) * channels()


def sort_launches(length: int) -> int:
    """Kernels of XLA's sorting network for rows of this length."""
    stages, short = math.ceil(math.log2(max(length, 2))), int(math.log2(SORTED_AT_ONCE))
    return 1 + sum(stage - short + 1 for stage in range(short + 1, stages + 1))


def bytes_read(computations, types: dict[str, str], instruction: Instruction) -> list[int]:
    """Bytes of each operand, or of the slices of it that a fusion looks at."""
    sizes = [size(types[name]) for name in instruction.operands]
    body = computations[called(instruction)] if called(instruction) else []
    for parameter in (part for part in body if part.opcode == "parameter"):
        users = [part for part in body if part is not parameter and parameter.name in part.operands]
        if users and all(part.opcode == "slice" for part in users):
            number = int(parameter.operands[0])
            sizes[number] = min(sizes[number], sum(size(part.type) for part in users))
    return sizes


def bytes_moved(kind: str, result: int, operands: list[int]) -> int:
    """Bytes that a kernel reads and writes, of results and operands of these sizes."""
    if kind == "gather":  # reads no more of an array than it writes
        return result + sum(min(result, operand) for operand in operands)
    if kind == "scatter" and result in operands:  # in place
        return 2 * (sum(operands) - result)
    return result + sum(operands)


def kernels(text: str) -> list[Kernel]:
    """The kernels of a compiled program in the order in which they run."""
    computations = read(text)
    types = {one.name: one.type for body in computations.values() for one in body}
    found = []
    for instruction in computations["ENTRY"]:
        if instruction.opcode in NO_KERNEL:
            continue
        parts = [instruction]
        if called(instruction):
            parts += inside(computations, called(instruction))
        work = sum(product_work(part, types) for part in parts)
        opcodes = {part.opcode for part in parts}
        sorts = [part for part in parts if part.opcode == "sort"]
        target = re.search(r'custom_call_target="([^"]+)"', instruction.attributes)
        if instruction.opcode.startswith("all-reduce"):
            kind = "all-reduce"
        elif target and not target[1].startswith("__cublas"):
            kind = target[1].removeprefix("__cudnn$")
        elif work:
            kind = "product"
        else:
            kinds = ("sort", "scatter", "gather", "reduce")
            kind = next((kind for kind in kinds if kind in opcodes), "elementwise")
        traffic = bytes_moved(kind, size(instruction.type), bytes_read(computations, types, instruction))
        origin = re.search(r'op_name="([^"]*)"', instruction.attributes)
        launches = sort_launches(arrays(sorts[0].type)[0][1][-1]) if sorts else 1
        found.append(Kernel(kind, origin[1].split("/", 1)[-1] if origin else "", traffic * launches, work, launches))
    return found


def devices(count: int, smoke: bool) -> list[jax.Device]:
    """Devices to compile for."""
    if smoke or jax.default_backend() == "gpu":
        return jax.devices()[:count]
    try:
        found = topologies.get_topology_desc("", "cuda", topology=f"1x1x{count}", target_config=H100)
    except Exception as error:
        raise SystemExit(
            f"no compiler for NVIDIA GPUs here ({error}); pip install -e '.[cuda13]' brings one"
        ) from error
    return found.devices


def compile(images: int, devices: list[jax.Device], options) -> jax.stages.Compiled:
    """The train step, or detection on the first device, of this many images a device."""
    config = workload.make_config(smoke=options.smoke)
    config.train.batch_size = images
    config.test.diou_nms.enabled = True
    rule = build.rule(config)
    detector = build.detector(config, workload.CLASSES, collect_scale=rule.collect_scale)
    variables = workload.make_variables(config, detector.network)
    batch = workload.draw_batch(config, images)
    # Without a device there is nothing that algorithms could be timed on, and tiles of Triton's products must be.
    untimed = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False}
    choices = {} if jax.default_backend() == devices[0].platform else untimed
    if options.detect:
        place = jax.sharding.SingleDeviceSharding(devices[0])
        variables = detector.network.folded(variables)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (variables, batch))
        return jax.jit(detector.detect).lower(*shapes).compile(choices)
    optimizer = build.make_optimizer(config, rule)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), create_state(variables, optimizer))
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
    print(f"\n{images} images; {memory:.2f} GB beside what goes in and out\n")
    timing.head("kind", "kernels", "GB", "TFLOP", "at least, ms")
    for kind, chosen in groups("kind"):
        row(kind, chosen)
    row("sum", found)
    print()
    timing.head(
        "part", "kernels", "GB", "TFLOP", "moving, ms", "computing", "starting", "backward", "share", "at least, ms"
    )
    for part, chosen in [*groups("part"), ("sum", found)]:
        # Each kernel's time is that of what it takes longest for.
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
    parser.add_argument("--devices", type=int, default=1, help="that train together; images are of each")
    parser.add_argument("--detect", action="store_true", help="detection with DIoU-NMS in place of the train step")
    parser.add_argument("--longest", type=int, default=0, help="kernels to name")
    parser.add_argument("--peak-tflops", type=float, default=700)
    parser.add_argument("--peak-tbs", type=float, default=2.8)
    parser.add_argument("--launch", type=float, default=2, help="microseconds to start a kernel")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    set_flags()
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
