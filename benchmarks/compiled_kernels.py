"""The kernels of a program that XLA compiled, read off its text."""

import dataclasses
import math
import re

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
BYTES |= {"u64": 8, "f64": 8}
SORTED_AT_ONCE = 4096  # see kernels/top_k.py
# The part of an operation, by the first of these scopes in its name; one without any is "other".
PARTS = {
    "input": "images",
    "backbone": "backbone",
    "neck": "FPN",
    "anchor_targets": "anchor targets",
    "rpn": "RPN",
    "proposals": "proposals",
    "roi_sampling": "RoI sampling",
    "roi_align": "RoIAlign",
    "box_head": "box head",
    "mask_targets": "mask targets",
    "mask_head": "mask head",
    "masks": "mask head",
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
    """An operation that runs on its own.

    Attributes:
      kind: its kind, by the name in the tables.
      origin: the operation of the JAX program that it came from.
      traffic: bytes of operands and results.
      work: floating-point operations of products and convolutions.
      launches: number of kernels that the device starts for it.
    """

    kind: str
    origin: str
    traffic: int
    work: int
    launches: int = 1

    @property
    def part(self) -> str:
        """The part of the step, a value of `PARTS` or "other"."""
        scope = re.search(rf"\b({'|'.join(PARTS)})\b", self.origin)
        return PARTS[scope[1]] if scope else "other"

    @property
    def backward(self) -> bool:
        """Whether it belongs to the backward pass."""
        return "transpose(" in self.origin


def arrays(type_: str) -> list[tuple[str, list[int]]]:
    """Dtype and shape of each array of an HLO type, which may be a tuple."""
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
    """The text up to the bracket that closes the first one, and the rest."""
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
    """Floating-point operations of a ``dot`` or a convolution, two for each multiply-add; 0 for other operations."""
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
    """Bytes of each operand, or of its slices if a fusion reads nothing else of it."""
    sizes = [size(types[name]) for name in instruction.operands]
    body = computations[called(instruction)] if called(instruction) else []
    for parameter in (part for part in body if part.opcode == "parameter"):
        users = [part for part in body if part is not parameter and parameter.name in part.operands]
        if users and all(part.opcode == "slice" for part in users):
            number = int(parameter.operands[0])
            sizes[number] = min(sizes[number], sum(size(part.type) for part in users))
    return sizes


def bytes_moved(kind: str, result: int, operands: list[int]) -> int:
    """Bytes that a kernel reads and writes if its result and operands have these sizes."""
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
