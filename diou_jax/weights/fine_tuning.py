"""Starts a run from the network of another; rows that belong to a class are matched by the class's name."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diou_jax.errors import UserError


class Rows(NamedTuple):
    """How the variables of an output layer are divided by class.

    Attributes:
      axis: the axis of the outputs in the kernel.
      width: outputs of each class.
      shared: whether the layer may have the outputs of one class, for all classes together.
    """

    axis: int
    width: int
    shared: bool


LAYERS = {
    "params/box_head/logits/": Rows(axis=-1, width=1, shared=False),
    "params/box_head/deltas/": Rows(axis=-1, width=4, shared=True),
    "params/mask_head/logits/": Rows(axis=0, width=1, shared=True),
}
SHOWN = 20  # names in a line


def fine_tune(
    variables: Mapping, stored: Mapping, *, names: Sequence[str], stored_names: Sequence[str], source: str
) -> tuple[dict, list[str]]:
    """Fills a network's variables with those of another run.

    Args:
      variables: random variables of the network to be trained.
      stored: variables of the other run.
      names: K names of the classes to be trained, background first.
      stored_names: names of the other run's classes; empty if unknown.
      source: name of the other run in messages.

    Returns:
      The variables, and lines that name the layers that one of both has for all classes together, the heads that only
      one of both has, the classes whose rows are taken over and those that start anew.

    Raises:
      UserError: if variables differ in more than the number of classes; the message names them.
    """
    ours, theirs = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (variables, stored))
    anew, unused = _heads(ours) - _heads(theirs), _heads(theirs) - _heads(ours)
    theirs = {name: value for name, value in theirs.items() if _head(name) not in unused}
    theirs |= {name: value for name, value in ours.items() if _head(name) in anew}
    by_class = [name for name in ours if _head(name) not in anew and _has_rows(name, ours, theirs, len(names))]
    different = [
        f"{name} is {_kind(theirs, name)} there and {_kind(ours, name)} here"
        for name in sorted(ours.keys() | theirs.keys())
        if _kind(ours, name) != _kind(theirs, name) and name not in by_class
    ]
    if different:
        raise UserError(f"init.checkpoint={source} is of another network: {'; '.join(different[:5])}")
    rows = match(names, stored_names)
    shared = [name for name in by_class if not _divided_alike(name, ours, theirs, rows, len(names))]
    lines = [
        f"{name}: starts anew, since one row is for all classes in one of both runs"
        for name in sorted({name.rpartition("/")[0] for name in shared})
    ]
    theirs |= {name: ours[name] if name in shared else _take(name, ours, theirs, rows) for name in by_class}
    taken = traverse_util.unflatten_dict({name: theirs[name] for name in ours}, sep="/")
    lines += [f"{head}: starts anew, the other run has none" for head in sorted(anew)]
    lines += [f"{head}: not used, this network has none" for head in sorted(unused)]
    return taken, lines + (_report(names, stored_names, rows) if by_class else [])


def _head(name):
    """The RoI head that a variable belongs to, or None."""
    found = re.match(r"\w+/(\w+_head)/", name)
    return found and found[1]


def _heads(flat):
    return {_head(name) for name in flat} - {None}


def match(names: Sequence[str], stored_names: Sequence[str]) -> dict[int, int]:
    """The row in `stored_names` of each class in `names`, by row, if exactly one class has the name.

    Case is ignored, and blanks, "_" and "-" between words are equal; if two classes then share a name, it is compared
    as it is written. The first class is the background on either side.
    """
    exact, loose = _unique(stored_names, str), _unique(stored_names, _plain)
    exact_here, loose_here = _unique(names, str), _unique(names, _plain)
    rows = {0: 0}
    for row, name in enumerate(names[1:], start=1):
        if exact_here.get(name) == row and exact.get(name):
            rows[row] = exact[name]
        elif loose_here.get(_plain(name)) == row and loose.get(_plain(name)):
            rows[row] = loose[_plain(name)]
    return rows


def _plain(name):
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))


def _unique(names, key):
    """The class of each name that only one class has; the background is left out."""
    keys = [key(name) for name in names[1:]]
    return {name: row for row, name in enumerate(keys, start=1) if keys.count(name) == 1}


def _layer(name):
    """How a variable is divided by class; None if it is not."""
    return next((layer for prefix, layer in LAYERS.items() if name.startswith(prefix)), None)


def _has_rows(name, ours, theirs, count):
    """Whether a variable of both runs has rows by class; it has none if one row stands for all classes on both sides.

    A variable that the other run lacks makes it another network's.
    """
    layer = _layer(name)
    if layer is None or name not in theirs:
        return False
    if not layer.shared:
        return True
    return ours[name].shape[_axis(ours[name], layer)] == layer.width * count or _kind(ours, name) != _kind(theirs, name)


def _axis(variable, layer):
    return layer.axis if variable.ndim > 1 else 0


def _divided_alike(name, ours, theirs, rows, count):
    """Whether a variable has rows by class in both runs, and the other's has those that are wanted."""
    layer = _layer(name)
    mine, other = (tree[name].shape[_axis(tree[name], layer)] for tree in (ours, theirs))
    return mine == count * layer.width and not other % layer.width and other > max(1, *rows.values()) * layer.width


def _take(name, ours, theirs, rows):
    """Our variable with the other's values for the classes in `rows`."""
    layer = _layer(name)
    axis, width = _axis(ours[name], layer), layer.width
    mine, other = (np.moveaxis(np.asarray(tree[name]), axis, 0) for tree in (ours, theirs))
    mine, other = (variable.reshape(-1, width, *variable.shape[1:]) for variable in (mine, other))
    taken = np.array(mine)
    taken[list(rows)] = other[list(rows.values())]
    return jnp.asarray(np.moveaxis(taken.reshape(-1, *taken.shape[2:]), 0, axis))


def _report(names, stored_names, rows):
    taken = [name for row, name in enumerate(names) if row and row in rows]
    anew = [name for row, name in enumerate(names) if row and row not in rows]
    dropped = [name for row, name in enumerate(stored_names) if row and row not in rows.values()]
    lines = []
    if not stored_names:
        lines.append("the file does not name its classes; --mode import takes heads over by position")
    for what, some in (("classes taken over", taken), ("classes that start anew", anew), ("not used", dropped)):
        if some:
            more = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
            lines.append(f"{what}, by name: {', '.join(some[:SHOWN])}{more}")
    return lines


def _kind(tree, name):
    return f"{tree[name].dtype} {tuple(tree[name].shape)}" if name in tree else "absent"
