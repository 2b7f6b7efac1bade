"""Golden files: small_legacy.pth, small_zip.pth."""

import json
import math
import pathlib
import pickle
import pickletools
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.errors import UserError
from diou_jax.weights.files import read


class Code:
    """The content of a hostile file: unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["small_legacy.pth", "small_zip.pth"])
def test_both_torch_containers(golden_path, name):
    pytest.importorskip("torch")
    file = read(golden_path(name))
    assert file.step == 7
    assert {k: v.shape for k, v in file.tensors.items()}["a.weight"] == (3, 4)
    assert file.tensors["half"].dtype == np.float16 and file.tensors["idx"].dtype == np.int64
    np.testing.assert_array_equal(file.optimizer["state"][0]["momentum_buffer"], np.ones(3))


def test_both_containers_hold_the_same(golden_path):
    pytest.importorskip("torch")
    legacy, zipped = (read(golden_path(f"small_{kind}.pth")).tensors for kind in ("legacy", "zip"))
    assert legacy.keys() == zipped.keys()
    for name in legacy:
        np.testing.assert_array_equal(legacy[name], zipped[name])


@pytest.mark.parametrize("legacy", [True, False])
def test_a_torch_file_that_wants_to_run_code_is_refused(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    torch.save({"model": Code(tmp_path / "ran")}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"x\.pth is refused"):
        read(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": Code(tmp_path / "ran")}}, protocol=protocol))
    with pytest.raises(UserError, match=r"x\.pkl is refused"):
        read(tmp_path / "x.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("protocol", range(6))
def test_pickled_blobs(tmp_path, wrap, protocol):
    blobs = {"conv1_w": np.arange(6, dtype=np.float32).reshape(2, 3), "conv1_b": np.float32([1, 2])}
    content = {"blobs": blobs, "cfg": "TRAIN:"} if wrap else blobs
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    file = read(tmp_path / "x.pkl")
    assert file.tensors.keys() == blobs.keys()
    np.testing.assert_array_equal(file.tensors["conv1_w"], blobs["conv1_w"])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", ["numpy._core.numeric", "numpy.core.numeric"])
def test_arrays_in_any_order_of_their_elements(tmp_path, protocol, module):
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {"c": whole, "f": np.asfortranarray(whole), "k": whole.transpose(1, 0, 2), "empty": whole[:0]}
    content = pickle.dumps(arrays, protocol=protocol)
    if protocol == 5:  # older versions of numpy call the module otherwise
        content = pickle.dumps(arrays, protocol=5).replace(b"\x8c\x13numpy._core.numeric", _text(module))
    (tmp_path / "x.pkl").write_bytes(_without_frames(content))
    tensors = read(tmp_path / "x.pkl").tensors
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)
        assert tensors[name].dtype == array.dtype and tensors[name].flags.writeable


def _text(module):
    """A short text in a pickle."""
    return b"\x8c" + bytes([len(module)]) + module.encode()


def _without_frames(content):
    """A pickle without the lengths of its parts, which may have changed."""
    frames = [place for opcode, _, place in pickletools.genops(content) if opcode.name == "FRAME"]
    return content if not frames else content[: frames[0]] + content[frames[0] + 9 :]


def test_objects_in_place_of_bytes_are_refused(tmp_path):
    class Objects:
        def __reduce__(self):
            return np._core.numeric._frombuffer, (b"12345678", np.dtype(object), (1,), "C")

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": Objects()}}, protocol=5))
    with pytest.raises(UserError, match="is damaged: ValueError cannot create an OBJECT array"):
        read(tmp_path / "x.pkl")


def write_safetensors(path, dtype, content, shape):
    header = json.dumps({"conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)


@pytest.mark.parametrize(
    ("dtype", "ours"), [("F64", "f8"), ("F32", "f4"), ("F16", "f2"), ("I64", "i8"), ("U8", "u1"), ("BOOL", "?")]
)
def test_safetensors_of_numpys_dtypes(tmp_path, dtype, ours):
    pytest.importorskip("safetensors")
    values = np.array([[1, 0, 1]], ours)
    write_safetensors(tmp_path / "x.safetensors", dtype, values.tobytes(), [1, 3])
    found = read(tmp_path / "x.safetensors").tensors["conv1.weight"]
    assert found.dtype == ours
    np.testing.assert_array_equal(found, values)


def test_bfloat16_becomes_float32_and_smaller_floats_are_refused_by_name(tmp_path):
    pytest.importorskip("safetensors")
    values = np.array([1.5, -2.0], jnp.bfloat16)
    write_safetensors(tmp_path / "x.safetensors", "BF16", values.tobytes(), [2])
    found = read(tmp_path / "x.safetensors").tensors["conv1.weight"]
    assert found.dtype == np.float32 and found.tolist() == [1.5, -2.0]
    write_safetensors(tmp_path / "x.safetensors", "F8_E4M3", b"12", [2])
    with pytest.raises(UserError, match=r"x\.safetensors: conv1\.weight is of dtype F8_E4M3, and F64, .* can be read"):
        read(tmp_path / "x.safetensors")


def test_a_torch_file_of_smaller_floats_is_refused_by_its_dtype(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"x": torch.ones(2, dtype=torch.float8_e4m3fn)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth: a tensor is of dtype torch\.float8_e4m3fn, which numpy lacks"):
        read(tmp_path / "x.pth")


def test_safetensors(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    library.save_file({"conv1.weight": np.ones((2, 3), np.float32)}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(read(tmp_path / "x.safetensors").tensors["conv1.weight"], np.ones((2, 3)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, this is text", "no weight file"),
        (b"", "it is empty"),
        (pickle.dumps({"blobs": {}}), "holds no tensors"),
        (pickle.dumps([1, 2, 3]), "not tensors by name"),
        (pickle.dumps({"blobs": {"x": np.ones(3)}})[:-20], "damaged"),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read(tmp_path / "x")


@pytest.mark.parametrize("dtype", [object, "U4", complex, "datetime64[s]", [("a", "f4")]])
def test_tensors_of_anything_but_real_numbers_are_refused_by_name(tmp_path, dtype):
    content = {"blobs": {"conv1_w": np.ones(3, np.float32), "conv1_b": np.zeros(3, dtype)}}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"x\.pkl: conv1_b is of dtype .*; tensors must be of real numbers"):
        read(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (7, 7),
        (np.int64(7), 7),
        (np.array(7), 7),
        ("abc", None),
        (math.nan, None),
        (-1, None),
        (2**40, None),
        ([7], None),
    ],
)
def test_a_step_that_no_run_can_have_counts_as_unknown(tmp_path, step, wanted):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {"x": np.ones(3)}, "step": step, "optimizer": "x"}))
    file = read(tmp_path / "x.pkl")
    assert file.step == wanted and file.optimizer is None


def test_damage_anywhere_in_a_torch_file_gives_one_message(tmp_path, golden_path):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    refused = 0
    for name in ("small_legacy.pth", "small_zip.pth"):
        content = golden_path(name).read_bytes()
        for _ in range(150):
            damaged = bytearray(content)
            damaged[rng.integers(64, len(damaged))] = rng.integers(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                read(tmp_path / name)  # most of the bytes are numbers, any of which are right
            except UserError:
                refused += 1
    assert refused > 20


def test_a_missing_file_and_a_truncated_one(tmp_path, golden_path):
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "nothing.pth")
    pytest.importorskip("torch")
    for name in ("small_legacy.pth", "small_zip.pth"):
        (tmp_path / name).write_bytes(golden_path(name).read_bytes()[:-300])
        with pytest.raises(UserError, match="is damaged"):
            read(tmp_path / name)


def test_a_compressed_file_is_refused_before_it_grows(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"x": torch.zeros(1 << 20)}}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert read(tmp_path / "plain.pth").tensors["x"].size == 1 << 20
    with pytest.raises(UserError, match="it is compressed"):
        read(tmp_path / "bomb.pth")
