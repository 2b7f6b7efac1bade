"""Reads pickles of arrays, numbers and containers, without running code from them."""

import codecs
import pathlib
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy._core import multiarray

from diou_jax.errors import UserError


class _ForbiddenError(pickle.UnpicklingError):
    """A pickle wants to call something other than constructors of data."""


def _no_bytes() -> bytes:
    """An empty ``bytes``; old protocols write the content of an empty array as a call without arguments."""
    return b""


def _from_buffer(buffer, dtype, shape, order, axes=None) -> np.ndarray:
    """The array that numpy pickles by protocol 5 as its bytes; numpy refuses bytes for a dtype of objects.

    Args:
      buffer: bytes.
      dtype, shape: those of the array.
      order: order of the elements, "C" or "F"; "K" is "C" before `axes`.
      axes: with "K" the permutation of the axes.
    """
    array = np.frombuffer(buffer, np.dtype(dtype)).reshape(shape, order="F" if order == "F" else "C")
    return (array if axes is None else array.transpose(axes)).copy(order="K")


class _DataUnpickler(pickle.Unpickler):
    """An unpickler that can only call the constructors of arrays and containers."""

    _KNOWN = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): codecs.encode,
        ("__builtin__", "bytes"): _no_bytes,
    }

    def find_class(self, module, name):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(multiarray, name)
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _from_buffer
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}") from None


def read(path: pathlib.Path) -> Any:
    """The content of a pickle, also of one that Python 2 wrote.

    Raises:
      UserError: if the file is damaged, or holds anything but arrays, numbers, texts and containers.
    """
    try:
        with path.open("rb") as file:
            return _DataUnpickler(file, encoding="latin1").load()
    except _ForbiddenError as error:
        raise UserError(f"{path} is refused, it holds more than arrays and numbers: {error}") from None
    except Exception as error:
        # A damaged pickle can raise anything.
        raise UserError(f"{path} is damaged: {type(error).__name__} {error}") from None
