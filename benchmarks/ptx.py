"""Kernels in PTX, which an NVIDIA GPU's assembler takes, run on a CPU: translated to C, one block of threads at a time.

It knows the instructions that Mosaic GPU writes for this project's kernels, and refuses others. Fences do nothing,
since memory is written in order here. A division of ``div.full`` is exact here; a GPU's may differ by two units in the
last place.
"""

import ctypes
import dataclasses
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
# What `block.h` counts: threads that access a word between the same two barriers, one of them writing another value to
# it; accesses outside of the arrays, and of addresses that their width does not divide; words of shared memory that are
# read before they are written; and reads of the results, which no kernel of this project needs.
FAULTS = ("races", "outside", "misaligned", "unwritten", "own results read")
ALIGNMENT = 256  # bytes, of an array that XLA allocates on a GPU
UNWRITTEN = 0xA5  # each byte of the results before the launch

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
JOINTS = {"and": "&&", "or": "||"}
REGISTERS = {"pred": "int", "b16": "u16", "b32": "u32", "b64": "u64"}
# Instructions that are one expression of their operands.
EXPRESSIONS = {
    "abs.f32": "{0} & 0x7fffffff",
    "neg.f32": "{0} ^ 0x80000000",
    "div.full.f32": "U(F({0}) / F({1}))",
    "fma.rn.f32": "fma_({0}, {1}, {2})",
    "fma.rn.f32x2": "fma2({0}, {1}, {2})",
    "max.NaN.f32": "max_nan({0}, {1})",
    "min.NaN.f32": "min_nan({0}, {1})",
    "and.pred": "{0} && {1}",
    "or.pred": "{0} || {1}",
    "xor.pred": "!{0} != !{1}",
    "not.pred": "!{0}",
    "bfe.s32": "field_s({0}, {1}, {2})",
    "bfe.u32": "field_u({0}, {1}, {2})",
    "clz.b32": "leading_zeros({0})",
    "cvt.f32.bf16": "(u32){0} << 16",
    "cvt.rn.bf16.f32": "to_bf16({0})",
    "cvt.rn.bf16x2.f32": "(u32)to_bf16({0}) << 16 | to_bf16({1})",
    "cvt.rn.f32.s32": "U((float)(s32){0})",
    "cvt.rn.f32.u32": "U((float)(u32){0})",
    "cvt.rzi.s32.f32": "to_s32({0})",
    "cvta.to.global.u64": "{0}",
    "shfl.sync.bfly.b32": "from_lane({0}, thread ^ {1})",
    "shfl.sync.idx.b32": "from_lane({0}, {1})",
}


class UnknownInstructionError(ValueError):
    """An instruction that the translation does not know."""


def translate(text: str) -> str:
    """The C source, to be compiled beside `block.h`, of the one kernel in a PTX text.

    Raises:
      UnknownInstructionError: names an instruction that has no translation.
    """
    head, body = text[text.index(".entry ") :].split("\n{\n", 1)
    body = body.split("\n}\n")[0]
    if len(re.findall(r"\.shared ", body)) > 1:
        raise UnknownInstructionError("a second array of shared memory")
    parameters = {name: number for number, name in enumerate(re.findall(r"(\w+)(?=,?\n)", head.split("(", 1)[1]))}
    declared, code = [], []
    for line in body.split("\n"):
        line = re.sub(r"//.*", "", line).strip()
        if not line or line in "{}" or line.startswith((".loc", ".shared", ".extern", ".file", ".section")):
            continue
        if register := re.fullmatch(r"\.reg \.(\w+)\s+%(\w+)<(\d+)>;", line):
            kind, name, count = register.groups()
            declared.append(f"{REGISTERS[kind]} " + ", ".join(f"{name}{k} = 0" for k in range(int(count))) + ";")
        elif label := re.fullmatch(r"\$(\w+):", line):
            code.append(f"{label[1]}: ;")
        elif found := re.fullmatch(r"(?:@(!?)%(\w+)\s+)?([\w.:]+)\s*(.*);", line):
            unless, predicate, name, operands = found.groups()
            guard = f"if ({unless}{predicate}) " if predicate else ""
            try:
                code.append(f"{guard}{{ {_instruction(name, _split(operands), parameters)}; }}")
            except UnknownInstructionError as error:
                raise UnknownInstructionError(f"{line} ({error})") from error
        else:
            raise UnknownInstructionError(line)
    return "\n".join(['#include "block.h"', "static void kernel(void) {", *declared, *code, "}", ""])


def _split(operands: str) -> list[str]:
    """Operands at the commas outside of braces."""
    return [operand.strip() for operand in re.findall(r"(?:\{[^}]*\}|\[[^]]*\]|[^,{\[])+", operands)]


def _value(operand: str) -> str:
    """A register, special register, address of shared memory or constant in C."""
    if operand.startswith("0f"):
        return f"0x{operand[2:]}u"
    if re.fullmatch(r"-?\d+", operand):
        return f"({operand}ll)"
    if special := re.fullmatch(r"%(tid|ctaid)\.([xyz])", operand):
        axis = "xyz".index(special[2])
        return f"block[{axis}]" if special[1] == "ctaid" else "(u32)thread" if axis == 0 else "0u"
    if operand.startswith("%"):
        return operand[1:]
    if operand.startswith("__dynamic_shmem"):  # the block's shared memory, which begins at 0 here
        return "(0ull)"
    raise UnknownInstructionError(f"operand {operand}")


def _instruction(name: str, operands: Sequence[str], parameters: dict[str, int]) -> str:
    """Statements in C, without the last semicolon."""
    head, *modifiers = name.split(".")
    if head in ("ld", "st"):
        return _parameter(operands, parameters) if modifiers[0].startswith("param") else _access(name, operands)
    if head == "ret":
        return "return"
    if head == "fence":
        return ""
    if head == "bra":
        return f"goto {operands[0][1:]}"
    if name == "bar.sync" and operands[1:] in ([], ["128"]):
        return "barrier()"
    if head == "shfl" and operands[3:] != ["31", "-1"]:
        raise UnknownInstructionError(f"{name} of a part of the warp")
    if name == "elect.sync":
        lane, elected = (part[1:] for part in operands[0].split("|"))
        return f"{lane} = thread & -LANES; {elected} = thread % LANES == 0"
    if name == "mov.b64" and "{" in "".join(operands):
        return _pair(*operands)
    target, *values = map(_value, operands)
    if head == "setp":
        return f"{target} = {_comparison(name, modifiers, values)}"
    return f"{target} = {_expression(name, head, modifiers, values)}"


def _parameter(operands, parameters):
    return f"{_value(operands[0])} = parameter[{parameters[operands[1][1:-1]]}]"


def _access(name, operands):
    """A load or store of one value or a vector, of global or shared memory."""
    head, space, *vector, kind = name.split(".")
    if space not in ("global", "shared"):
        raise UnknownInstructionError(name)
    values, address = operands if head == "ld" else operands[::-1]
    registers = [_value(register.strip()) for register in values.strip("{}").split(",")]
    base, offset = re.fullmatch(r"\[([%\w$]+)(?:\+(-?\d+))?\]", address).groups("0")
    width, count = int(kind[1:]), len(registers)
    if vector not in ([], [f"v{count}"]):
        raise UnknownInstructionError(name)
    place, size = f"(u64)({_value(base)} + ({offset}ll))", width * count // 8
    if head == "ld":
        found = f"global({place}, {size}, 0)" if space == "global" else f"shared({place}, {size}, 0)"
        taken = "; ".join(f"{register} = v[{number}]" for number, register in enumerate(registers))
        return f"u{width} v[{count}]; memcpy(v, {found}, {size}); {taken}"
    found = f"global({place}, {size}, 1)" if space == "global" else f"shared({place}, {size}, v)"
    return f"u{width} v[] = {{{', '.join(registers)}}}; memcpy({found}, v, {size})"


def _pair(target, source):
    """A register of 64 bits from two of 32, or two from one; `_` takes nothing."""
    if source.startswith("{"):
        low, high = map(_value, _split(source[1:-1]))
        return f"{_value(target)} = (u64)(u32){low} | (u64)(u32){high} << 32"
    halves = zip(_split(target[1:-1]), (0, 32), strict=True)
    return "; ".join(f"{_value(half)} = (u32)({_value(source)} >> {shift})" for half, shift in halves if half != "_")


def _comparison(name, modifiers, values):
    """A comparison and perhaps the predicate that it is joined to; with the suffix u it is true for NaN."""
    comparison, *joint, kind = modifiers
    operator, is_float = COMPARISONS.get(comparison.removesuffix("u")), kind == "f32"
    if not operator or len(joint) > 1 or not set(joint) <= set(JOINTS):
        raise UnknownInstructionError(name)
    first, second = (f"F({x})" if is_float else f"({kind.replace('b', 'u')}){x}" for x in values[:2])
    result = f"{first} {operator} {second}"
    if comparison.endswith("u"):
        result = f"isunordered({first}, {second}) || {result}"
    elif comparison == "ne" and is_float:  # in C alone among the comparisons it is true for NaN
        result = f"!isunordered({first}, {second}) && {result}"
    return f"({result}) {JOINTS[joint[0]]} {values[2]}" if joint else result


def _expression(name, head, modifiers, values):
    if name in EXPRESSIONS:
        return EXPRESSIONS[name].format(*values)
    if head == "mov" and len(modifiers) == 1:
        return values[0]
    if head == "selp" and len(modifiers) == 1:
        return f"{values[2]} ? {values[0]} : {values[1]}"
    if name.removesuffix(".rn.f32").removesuffix(".f32") in ("add", "sub", "mul"):
        return f"U(F({values[0]}) {OPERATORS[head]} F({values[1]}))"
    if all(re.fullmatch(r"[sub](8|16|32|64)|lo|hi|wide", modifier) for modifier in modifiers):
        found = _integers(head, *modifiers[:-1], kind=modifiers[-1], values=values)
        if found:
            return found
    raise UnknownInstructionError(name)


def _integers(head, *middle, kind, values):
    """An expression of integers; None if there is no such instruction."""
    bits, unsigned = int(kind[1:]), f"u{kind[1:]}"
    first, second = values[0], values[1] if len(values) > 1 else ""
    product = f"(s64)({kind}){first} * (s64)({kind}){second}"
    signs = f"({kind.replace('b', 'u')}){first}"
    match head, *middle:
        case "cvt", to:
            return f"(u{to[1:]})({to})({kind}){first}"
        case "mul", "wide":
            return f"(u{2 * bits})({product})"
        case "mul", "hi" if bits <= 32:
            return f"({unsigned})({product} >> {bits})"
        case ("add" | "sub" | "and" | "or" | "xor",) | ("mul", "lo"):
            return f"({unsigned})((u64){first} {OPERATORS[head]} (u64){second})"
        case "mad", "lo":
            return f"({unsigned})((u64){first} * (u64){second} + (u64){values[2]})"
        case ("max" | "min",):
            return f"({kind}){first} {'><'[head == 'min']} ({kind}){second} ? {first} : {second}"
        case ("not",):
            return f"({unsigned})~{first}"
        case ("neg",):
            return f"({unsigned})(0 - (u64){first})"
        case ("shl",):
            return f"({unsigned})((u32){second} < {bits} ? (u64){first} << {second} : 0)"
        case ("shr",):  # a shift by too much leaves copies of the sign, or 0
            return f"({unsigned})((u32){second} < {bits} ? {signs} >> {second} : {signs} < 0 ? -1 : 0)"
    return None


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a program starts a kernel.

    Attributes:
      order: for each parameter of the kernel the number of its array, operands first, then results.
      grid: blocks along x, y and z.
      shared_bytes: shared memory of a block.
    """

    order: tuple[int, ...]
    grid: tuple[int, int, int]
    shared_bytes: int


class _Buffer(ctypes.Structure):
    _fields_ = [("start", ctypes.c_uint64), ("size", ctypes.c_uint64), ("written", ctypes.c_int)]


def compile(text: str, folder: pathlib.Path) -> Callable:
    """A function that runs the one kernel in a PTX text; ``run(launch, operands, results, seed)``.

    It takes a `Launch`, the operands as arrays, and shape and dtype of each result, and returns the results and the
    number of each of the `FAULTS`; the first of a kind is told on standard error. Seed 0 runs blocks and threads in
    ascending order, another seed in another order. It raises RuntimeError if threads wait for ever.

    Args:
      text: the PTX.
      folder: receives the C source and the library.
    """
    # A process loads a library once, so each needs a name of its own.
    with tempfile.NamedTemporaryFile("w", suffix=".c", dir=folder, delete=False) as source:
        source.write(translate(text))
    library = pathlib.Path(source.name).with_suffix(".so")
    # Each operation of PTX is rounded by itself; a fused one has a name of its own.
    options = ["-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv", "-w", "-shared", "-fPIC", f"-I{HERE}"]
    subprocess.run(["cc", *options, "-o", library, source.name, "-lm"], check=True)
    start = ctypes.CDLL(str(library)).launch

    def run(launch: Launch, operands: Sequence[np.ndarray], results: Sequence, seed: int):
        arrays = [_aligned(operand.shape, operand.dtype) for operand in operands]
        for array, operand in zip(arrays, operands, strict=True):
            array[...] = operand
        written = [_aligned(result.shape, result.dtype) for result in results]
        buffers = [_Buffer(array.ctypes.data, array.nbytes, 0) for array in arrays]
        buffers += [_Buffer(array.ctypes.data, array.nbytes, 1) for array in written]
        faults = (ctypes.c_long * len(FAULTS))()
        stuck = start(
            (_Buffer * len(buffers))(*buffers),
            len(buffers),
            (ctypes.c_int * len(launch.order))(*launch.order),
            (ctypes.c_uint32 * 3)(*launch.grid),
            ctypes.c_uint64(launch.shared_bytes),
            ctypes.c_uint64(seed),
            faults,
        )
        if stuck:
            raise RuntimeError("some threads wait for others that never come")
        return written, dict(zip(FAULTS, faults, strict=True))

    return run


def _aligned(shape, dtype):
    """An array of bytes `UNWRITTEN` that begins where a GPU's allocator would let it begin."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.full(size + ALIGNMENT, UNWRITTEN, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)
