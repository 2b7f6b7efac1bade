"""Checkpoints of the first format, whose network calls its backbone ``body`` and its neck ``fpn``."""

from collections.abc import Mapping
from typing import Any

NAMES = {"backbone": "body", "neck": "fpn"}


def to_first_format(tree: Any) -> Any:
    """A tree of dictionaries and tuples with the names of the first format."""
    return _renamed(tree, NAMES)


def from_first_format(tree: Any) -> Any:
    """The inverse of `to_first_format`."""
    return _renamed(tree, {theirs: ours for ours, theirs in NAMES.items()})


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
    if isinstance(tree, Mapping):
        return {names.get(key, key): _renamed(value, names) for key, value in tree.items()}
    if isinstance(tree, tuple):
        values = [_renamed(value, names) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree
