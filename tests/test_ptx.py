"""benchmarks/ptx.py: instructions against numpy, and programs with one fault each, which it must find."""

import importlib.util
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, load_benchmark

ptx = load_benchmark("ptx")
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

PROGRAM = """
.version 9.0
.target sm_90a
.visible .entry program(
	.param .u64 .ptr .align 256 program_param_0,
	.param .u64 .ptr .align 256 program_param_1
)
.maxntid 128, 1, 1
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<9>;
	.shared .align 16 .b8 __dynamic_shmem__0;
	ld.param::entry.b64 	%rd1, [program_param_0];
	cvta.to.global.u64 	%rd1, %rd1;
	ld.param::entry.b64 	%rd2, [program_param_1];
	mov.u32 	%r0, %tid.x;
	mul.wide.u32 	%rd3, %r0, 8;
	add.s64 	%rd1, %rd1, %rd3;
	mul.wide.u32 	%rd4, %r0, 4;
	add.s64 	%rd2, %rd2, %rd4;
	mov.b64 	%rd5, __dynamic_shmem__0;
	add.s64 	%rd5, %rd5, %rd4;
	ld.global.v2.b32 	{%r1, %r2}, [%rd1];
BODY
	st.global.b32 	[%rd2], %r3;
	ret;
}
"""
EDGES = np.float32(
    [0, -0.0, 1, -1.5, 2.5, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-40, 16777217, 2**31, -(2**31) - 300]
)
FLOATS = np.float32([(a, b) for a in EDGES for b in EDGES])[np.linspace(0, len(EDGES) ** 2 - 1, 128).astype(int)]
WHOLE = [0, 1, -1, 2, 7, 31, 32, 33, 2**31 - 1, -(2**31), 12345678, -987654]
INTEGERS = np.int32([(a, b) for a in WHOLE for b in WHOLE])[np.linspace(0, len(WHOLE) ** 2 - 1, 128).astype(int)]


def run(tmp_path, body, inputs, seed=0, results=128):
    """The program's int32 results (128,) with these statements in it, and the faults."""
    lines = PROGRAM.replace("BODY", "\n".join(f"\t{line};" if ":" not in line[-1] else line for line in body))
    program = ptx.compile(lines, tmp_path)
    launch = ptx.Launch(order=(0, 1), grid=(1, 1, 1), shared_bytes=512)
    (found,), faults = program(launch, [inputs], [np.empty(results, np.int32)], seed)
    return found, {kind: number for kind, number in faults.items() if number}


def bits(x):
    return np.asarray(x, np.float32).view(np.int32)


FLOAT_INSTRUCTIONS = {
    "add.rn.f32 %r3, %r1, %r2": lambda a, b: bits(a + b),
    "mul.f32 %r3, %r1, %r2": lambda a, b: bits(a * b),
    "fma.rn.f32 %r3, %r1, %r2, %r1": lambda a, b: bits(np.float64(a) * b + a),
    "div.full.f32 %r3, %r1, %r2": lambda a, b: bits(a / b),
    "max.NaN.f32 %r3, %r1, %r2": lambda a, b: bits(np.where((a == 0) & (b == 0), a + b, np.maximum(a, b))),
    "min.NaN.f32 %r3, %r1, %r2": lambda a, b: bits(np.where((a == 0) & (b == 0), -(-a - b), np.minimum(a, b))),
    "abs.f32 %r3, %r1": lambda a, b: bits(np.abs(a)),
    "neg.f32 %r3, %r1": lambda a, b: bits(-a),
    "cvt.rzi.s32.f32 %r3, %r1": lambda a, b: np.int32(np.clip(np.nan_to_num(np.float64(a)), -(2**31), 2**31 - 1)),
    "cvt.rn.bf16x2.f32 %r3, %r1, %r2": lambda a, b: bf16(a).astype(np.int32) << 16 | bf16(b),
}


def bf16(x):
    return np.asarray(jnp.bfloat16(x)).view(np.uint16)


@pytest.mark.parametrize("instruction", FLOAT_INSTRUCTIONS)
def test_floats_are_numpys(tmp_path, instruction):
    found, faults = run(tmp_path, [instruction], FLOATS)
    with np.errstate(all="ignore"):
        wanted = FLOAT_INSTRUCTIONS[instruction](*FLOATS.T)
    if "bf16" in instruction:
        no_numbers = np.isnan(FLOATS).any(1)  # whose bits differ
    else:
        no_numbers = np.isnan(wanted.view(np.float32)) & np.isnan(found.view(np.float32))
    np.testing.assert_array_equal(found[~no_numbers], wanted[~no_numbers])
    assert not faults
    assert (~no_numbers).sum() > 60


COMPARISONS = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "ge": np.greater_equal,
    "leu": lambda a, b: ~(a > b),
    "neu": np.not_equal,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_of_floats_know_nan(tmp_path, name):
    body = [f"setp.{name}.f32 %p1, %r1, %r2", "selp.b32 %r3, 1, 0, %p1"]
    found, _ = run(tmp_path, body, FLOATS)
    np.testing.assert_array_equal(found, COMPARISONS[name](*FLOATS.T))
    joined = ["setp.gt.f32 %p2, %r1, 0f00000000", f"setp.{name}.and.f32 %p1, %r1, %r2, %p2", "selp.b32 %r3, 1, 0, %p1"]
    found, _ = run(tmp_path, joined, FLOATS)
    np.testing.assert_array_equal(found, COMPARISONS[name](*FLOATS.T) & (FLOATS[:, 0] > 0))


def wide(x):
    return x.astype(np.int64)


INTEGER_INSTRUCTIONS = {
    "add.s32 %r3, %r1, %r2": lambda a, b: wide(a) + b,
    "sub.s32 %r3, %r1, %r2": lambda a, b: wide(a) - b,
    "mul.lo.s32 %r3, %r1, %r2": lambda a, b: wide(a) * b,
    "mul.hi.s32 %r3, %r1, %r2": lambda a, b: wide(a) * b >> 32,
    "mad.lo.s32 %r3, %r1, %r2, %r1": lambda a, b: wide(a) * b + a,
    "max.s32 %r3, %r1, %r2": np.maximum,
    "min.u32 %r3, %r1, %r2": lambda a, b: np.minimum(a.view(np.uint32), b.view(np.uint32)),
    "not.b32 %r3, %r1": lambda a, b: ~a,
    "neg.s32 %r3, %r1": lambda a, b: -wide(a),
    "shl.b32 %r3, %r1, %r2": lambda a, b: np.where((b >= 0) & (b < 32), wide(a) << (b & 31), 0),
    "shr.s32 %r3, %r1, %r2": lambda a, b: a >> np.where((b >= 0) & (b < 32), b, 31),
    "shr.u32 %r3, %r1, %r2": lambda a, b: np.where(
        (b >= 0) & (b < 32), a.view(np.uint32) >> (b & 31).view(np.uint32), 0
    ),
    "bfe.s32 %r3, %r1, 3, 5": lambda a, b: ((a >> 3) & 31) - ((a >> 3) & 16) * 2,
    "bfe.u32 %r3, %r1, 3, 5": lambda a, b: (a >> 3) & 31,
    "clz.b32 %r3, %r1": lambda a, b: 32 - np.array([int(x).bit_length() for x in a.view(np.uint32)]),
    "cvt.s32.s8 %r3, %r1": lambda a, b: a.astype(np.int8),
    "cvt.rn.f32.s32 %r3, %r1": lambda a, b: bits(a),
}


@pytest.mark.parametrize("instruction", INTEGER_INSTRUCTIONS)
def test_integers_are_numpys(tmp_path, instruction):
    found, faults = run(tmp_path, [instruction], INTEGERS)
    with np.errstate(all="ignore"):
        wanted = np.asarray(INTEGER_INSTRUCTIONS[instruction](*INTEGERS.T)).astype(np.int64)
    np.testing.assert_array_equal(found, (wanted & 0xFFFFFFFF).astype(np.uint32).view(np.int32))
    assert not faults


def test_lanes_exchange_values_and_predicates_branch(tmp_path):
    body = [
        "shfl.sync.bfly.b32 %r4, %r0, 5, 31, -1",
        "shfl.sync.idx.b32 %r5, %r0, 3, 31, -1",
        "elect.sync %r6|%p1, -1",
        "mov.b32 %r3, %r4",
        "@!%p1 bra $L__last",
        "mov.b32 %r3, %r5",
        "$L__last:",
    ]
    thread = np.arange(128)
    for seed in (0, 1):
        found, _ = run(tmp_path, body, INTEGERS, seed)
        np.testing.assert_array_equal(found, np.where(thread % 32 == 0, thread // 32 * 32 + 3, thread ^ 5))


# Each thread writes a word of shared memory, and reads that of thread 127 - t.
SHARE = [
    "mov.b32 %r4, 127",
    "sub.s32 %r4, %r4, %r0",
    "mul.wide.u32 %rd6, %r4, 4",
    "st.shared.b32 [%rd5], %r0",
    "bar.sync 0",
    "ld.shared.b32 %r3, [%rd6]",
]


def test_a_missing_barrier_is_a_race(tmp_path):
    found, faults = run(tmp_path, SHARE, INTEGERS)
    np.testing.assert_array_equal(found, 127 - np.arange(128))
    assert not faults
    for seed in (0, 1):
        _, faults = run(tmp_path, [line for line in SHARE if "bar" not in line], INTEGERS, seed)
        assert faults["races"]


def test_the_next_write_races_with_a_read(tmp_path):
    _, faults = run(tmp_path, [*SHARE, "st.shared.b32 [%rd5], %r1"], INTEGERS)
    assert faults["races"]
    _, faults = run(tmp_path, [*SHARE, "bar.sync %r1, 128", "st.shared.b32 [%rd5], %r1"], INTEGERS)
    assert not faults


def test_threads_may_write_one_value_to_one_word(tmp_path):
    same = ["mov.b32 %r3, 7", "st.shared.b32 [__dynamic_shmem__0+4], %r3"]
    assert not run(tmp_path, same, INTEGERS)[1]
    assert run(tmp_path, [*same[:1], "st.shared.b32 [__dynamic_shmem__0+4], %r0"], INTEGERS)[1]["races"] == 127


@pytest.mark.parametrize(
    ("body", "fault", "number"),
    [
        (["ld.global.b32 %r3, [%rd1+8]"], "outside", 1),
        (["mov.b32 %r3, 1", "st.global.b32 [%rd1], %r3"], "outside", 128),
        (["ld.global.b32 %r3, [%rd1+2]"], "misaligned", 128),
        (["ld.global.v4.b32 {%r3, %r4, %r5, %r6}, [%rd1+0]"], "misaligned", 64),
        (["ld.global.b32 %r3, [%rd2]"], "own results read", 128),
        (["ld.shared.b32 %r3, [%rd5]"], "unwritten", 128),
        (["st.shared.b32 [%rd5+4], %r0", "mov.b32 %r3, 1"], "outside", 1),
    ],
)
def test_wrong_accesses_are_counted(tmp_path, body, fault, number, capfd):
    assert run(tmp_path, body, INTEGERS)[1][fault] == number
    assert "block (0, 0, 0), thread" in capfd.readouterr().err


def test_threads_that_wait_for_ever(tmp_path):
    body = ["mov.b32 %r3, 1", "setp.eq.b32 %p1, %r0, 5", "@%p1 bra $L__last", "bar.sync 0", "$L__last:"]
    with pytest.raises(RuntimeError, match="never come"):
        run(tmp_path, body, INTEGERS)


@pytest.mark.parametrize(
    "line",
    ["sqrt.rn.f32 %r3, %r1", "add.sat.s32 %r3, %r1, %r2", "setp.lo.u32 %p1, %r1, %r2", "atom.add.u32 %r3, [%rd2], %r1"],
)
def test_an_unknown_instruction_is_named(tmp_path, line):
    with pytest.raises(ptx.UnknownInstructionError, match=line.split()[0]):
        run(tmp_path, [line], INTEGERS)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="no compiler for NVIDIA GPUs")
def test_kernels_that_a_gpu_would_get_equal_their_references():
    command = [sys.executable, ROOT / "benchmarks" / "emulation.py", "--trials"]
    names = ["nms of 3 x 77, sliced", "match of 3 x 1001 and 7", "gradient of 3 x 4, sliced"]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    done = subprocess.run(
        [*command, *names], env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"| {name} |" in done.stdout for name in names)
