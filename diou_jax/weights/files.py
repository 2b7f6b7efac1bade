"""Reads weight files as numpy arrays, without running code from them."""

import dataclasses
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from diou_jax import plain_pickle
from diou_jax.errors import UserError
from diou_jax.files import regular_file
from diou_jax.weights.record import Record, read_record

_ZIP = b"PK\x03\x04"
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled


# The dtypes of safetensors that numpy has; they are little-endian.
_SAFE_DTYPES = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (64, 32, 16)},
    **{f"{kind}{bits}": f"<{kind.lower()}{bits // 8}" for kind in "IU" for bits in (64, 32, 16, 8)},
    "BOOL": "?",
}

_NUMBERS = "biuf"  # numpy's kinds of real numbers
_LAST_STEP = 2**31 - 2  # the original's count; ours is larger by one, and an int32


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The content of a weight file.

    Attributes:
      tensors: arrays by name.
      step: step of the training run that wrote it, or None if it states no such number; the original counts from 0.
      optimizer: torch's ``state_dict`` of the optimiser, with arrays, or None.
      record: the network's options and classes, which files of this package have.
    """

    tensors: dict[str, np.ndarray]
    step: int | None = None
    optimizer: Mapping[str, Any] | None = None
    record: Record = dataclasses.field(default_factory=Record)


def read(path: str | os.PathLike) -> WeightFile:
    """Reads torch's containers (zip and legacy), safetensors and pickled blobs, recognised by their first bytes.

    Raises:
      UserError: if the file is missing, damaged, holds no tensors or would run code, or its reader is not installed.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if head.startswith((_ZIP, _TORCH_LEGACY)):
        content = _read_torch(path)
    elif head[8:9] == b"{":
        content = _read_safetensors(path)
    elif head.startswith((b"\x80", b"(", b"}", b"]")):
        content = plain_pickle.read(path)
    else:
        raise UserError(f"{path} is no weight file: neither torch's, nor safetensors, nor a pickle of blobs")
    return _unpack(path, content)


def _unpack(path, content) -> WeightFile:
    """Finds the tensors in the content of a file: the original's "model", Detectron's "blobs", or the whole."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not tensors by name")
    step, optimizer, record = content.get("step"), content.get("optimizer"), read_record(content, path)
    for key in ("model", "blobs", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    else:
        step = optimizer = None
    tensors = {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name")
    for name, value in tensors.items():
        if value.dtype.kind not in _NUMBERS:
            raise UserError(f"{path}: {name} is of dtype {value.dtype}; tensors must be of real numbers")
    return WeightFile(tensors, _step(step), optimizer if isinstance(optimizer, Mapping) else None, record)


def _step(value) -> int | None:
    """A step that the training state can hold, or None: only a run that goes on with the file's momentum needs it."""
    if isinstance(value, np.generic | np.ndarray) and value.size == 1:
        value = value.item()
    return value if isinstance(value, int) and 0 <= value <= _LAST_STEP else None


def _read_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} is a torch file: pip install -e '.[torch]' reads it") from None

    def to_numpy(value):
        if isinstance(value, torch.Tensor):
            value = value.detach()
            try:
                return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()
            except TypeError:
                raise UserError(f"{path}: a tensor is of dtype {value.dtype}, which numpy lacks") from None
        if isinstance(value, Mapping):
            return {key: to_numpy(entry) for key, entry in value.items()}
        return [to_numpy(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    try:
        _refuse_compressed(path)
        return to_numpy(torch.load(path, map_location="cpu", weights_only=True))
    except UserError:
        raise
    except Exception as error:
        # A damaged file can raise anything.
        unknown = re.search(r"(?:Unsupported|Trying to).*?(?= was not|\n|$)", str(error))
        if isinstance(error, pickle.UnpicklingError) and unknown:
            raise UserError(f"{path} is refused, it holds more than tensors and numbers: {unknown[0]}") from None
        raise UserError(f"{path} is damaged: {type(error).__name__} {str(error).partition('.')[0]}") from None


def _refuse_compressed(path):
    """Refuses compressed files: torch writes none, and they may be a thousand times larger in memory."""
    try:
        with zipfile.ZipFile(path) as file:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                raise UserError(f"{path} is refused, it is compressed, which torch's files are not")
    except zipfile.BadZipFile:
        return  # a legacy or damaged file, which torch recognises


def _read_safetensors(path):
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise UserError(f"{path} is a safetensors file: pip install -e '.[torch]' reads it") from None
    try:
        # Its own reader for numpy fails at the first tensor of a dtype that numpy lacks.
        return {name: _safe_array(path, name, **tensor) for name, tensor in deserialize(path.read_bytes())}
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _safe_array(path, name, *, dtype, shape, data):
    if dtype == "BF16":
        return np.frombuffer(data, jnp.bfloat16).reshape(shape).astype(np.float32)
    if dtype not in _SAFE_DTYPES:
        raise UserError(f"{path}: {name} is of dtype {dtype}, and {', '.join(_SAFE_DTYPES)} and BF16 can be read")
    return np.frombuffer(data, _SAFE_DTYPES[dtype]).reshape(shape)
