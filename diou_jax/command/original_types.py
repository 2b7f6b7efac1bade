"""The types of the original's config, which reads tuples and numbers from texts."""

import ast
import contextlib
import math
import warnings
from typing import Any

from diou_jax.command.original_keys import Key

_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
_EXAMPLES = {int: "(0, 60000, 80000)", float: "(0.5, 1.0)", str: "('coco_2017_val',)", list: "[[...], ...]"}


class WrongTypeError(Exception):
    """A value has another type than its key; the message names the required type."""


def read(value: Any, key: Key) -> Any:
    """Converts a value of the file to the type of the key's default.

    A text may hold a Python literal: '(800,)' is a tuple, and '1e-4' a number although YAML 1.1 takes it for a text.
    Lists become tuples, whole numbers may stand for floats, and floats without a fraction for whole numbers.

    Raises:
      WrongTypeError: if the value cannot be converted.
    """
    return _tuple(value, key) if isinstance(key.default, tuple) else _scalar(value, type(key.default))


def _tuple(value: Any, key: Key) -> tuple:
    kind = key.element or type(key.default[0])
    value = _literal(value)
    if key.option == "pixel_means":
        value = _innermost(value)
    if isinstance(value, list | tuple) and key.count in (0, len(value)):
        with contextlib.suppress(WrongTypeError):
            return tuple(value) if kind is list else tuple(_scalar(element, kind) for element in value)
    elements = "lists" if kind is list else _KINDS[kind].removeprefix("a ") + "s"
    count = f"{key.count} " if key.count else ""
    raise WrongTypeError(f"a list of {count}{elements}, such as {key.default or _EXAMPLES[kind]}")


def _scalar(value: Any, kind: type) -> Any:
    literal = _literal(value)
    if kind is str:
        if isinstance(value, str):
            return literal if isinstance(literal, str) else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    elif kind is bool:
        if isinstance(literal, bool):
            return literal
    elif isinstance(literal, int | float) and not isinstance(literal, bool):
        with contextlib.suppress(OverflowError):
            if kind is float and math.isfinite(literal):
                return float(literal)
            if kind is int and float(literal).is_integer():
                return int(literal)
    raise WrongTypeError(_KINDS[kind])


def _literal(value: Any) -> Any:
    """The value of a text that is a Python literal; any other text or value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _innermost(means: Any) -> Any:
    """The three numbers inside the brackets of the original's array of shape (1, 1, 3)."""
    for _ in range(2):
        if isinstance(means, list | tuple) and len(means) == 1:
            means = means[0]
    return means
