"""Starts a run from the network of another; rows that belong to a class are matched by the class's name."""

import re
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax import traverse_util

from diou_jax.errors import UserError

LOGITS, DELTAS = "params/box_head/logits/", "params/box_head/deltas/"
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
      The variables, and lines that list the classes whose rows are taken over and those that start anew.

    Raises:
      UserError: if variables differ in more than the number of classes; the message names them.
    """
    ours, theirs = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (variables, stored))
    by_class = [name for name in ours if _has_rows(name, ours, theirs, len(names))]
    different = [
        f"{name} is {_kind(theirs, name)} there and {_kind(ours, name)} here"
        for name in sorted(ours.keys() | theirs.keys())
        if _kind(ours, name) != _kind(theirs, name) and name not in by_class
    ]
    if different:
        raise UserError(f"init.checkpoint={source} is of another network: {'; '.join(different[:5])}")
    rows = match(names, stored_names)
    theirs |= {
        name: _take(ours[name], theirs.get(name), rows, len(names), 4 if name.startswith(DELTAS) else 1)
        for name in by_class
    }
    taken = traverse_util.unflatten_dict({name: theirs[name] for name in ours}, sep="/")
    return taken, _report(names, stored_names, rows) if by_class else []


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


def _has_rows(name, ours, theirs, count):
    """Whether a variable has rows by class; the deltas have none if all classes share one box on both sides."""
    if name.startswith(DELTAS):
        return ours[name].shape[-1] == 4 * count or _kind(ours, name) != _kind(theirs, name)
    return name.startswith(LOGITS)


def _take(ours, theirs, rows, count, width):
    """Our variable (..., classes * width) with the other's values for the classes in `rows`, if it has these.

    A variable for boxes that all classes share has no rows by class and stays unchanged.
    """
    if theirs is None or ours.shape[-1] != count * width:
        return ours
    if theirs.shape[-1] % width or theirs.shape[-1] <= max(rows.values()) * width:
        return ours
    here, there = jnp.array(list(rows)), jnp.array(list(rows.values()))
    mine = jnp.reshape(jnp.asarray(ours), (*ours.shape[:-1], count, width))
    other = jnp.reshape(jnp.asarray(theirs), (*theirs.shape[:-1], -1, width))
    return mine.at[..., here, :].set(other[..., there, :]).reshape(ours.shape)


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
