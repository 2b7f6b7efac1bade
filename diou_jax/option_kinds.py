"""Kinds of options, with which `configs/base.py` declares the values that each option may have.

A kind describes an invalid value in words that end a message such as ``solver.max_iter=-4: it must be ...``.
"""

import dataclasses
import difflib
import itertools
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ml_collections import ConfigDict

from diou_jax.errors import UserError


class Kind(Protocol):
    """The values that an option may have."""

    def problem(self, value: Any) -> str | None:
        """The end of the message on an invalid value; None for a valid one."""

    def __str__(self) -> str:
        """A description of the values for pages and messages."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    def problem(self, value):
        """As `Kind`."""
        return None if isinstance(value, bool) else "it must be True or False"

    def __str__(self):
        return "True or False"


# The largest int32, since steps and sizes become such in programs.
MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers from `low` to `high`; None is `MOST`, which is said to those alone who exceed it."""

    low: int
    high: int | None = None

    def problem(self, value):
        """As `Kind`."""
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < self.low:
            return f"it must be {self}"
        if self.high is None:
            return f"it must be {self}, up to {MOST}" if int(value) > MOST else None
        return f"it must be {self}" if int(value) > self.high else None

    def __str__(self):
        return f"a whole number, {self.low} " + ("or more" if self.high is None else f"to {self.high}")


@dataclasses.dataclass(frozen=True)
class WhichCheckpoint:
    """One checkpoint of a run: "best", "last" or its step, as a text."""

    def problem(self, value):
        """As `Kind`."""
        return None if isinstance(value, str) and re.fullmatch("best|last|[0-9]+", value) else f"it must be {self}"

    def __str__(self):
        return "best, last or the step of a checkpoint"


@dataclasses.dataclass(frozen=True)
class Real:
    """Numbers from `low` to `high`.

    Attributes:
      above: whether `low` itself is excluded.
      below: whether `high` itself is excluded.
      infinite: whether infinity is included.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False

    def problem(self, value):
        """As `Kind`."""
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
        fits = fits and (math.isfinite(value) or (self.infinite and value == math.inf))
        fits = fits and (value > self.low if self.above else value >= self.low)
        fits = fits and (value < self.high if self.below else value <= self.high)
        return None if fits else f"it must be {self}"

    def __str__(self):
        if math.isinf(self.low):
            return "a number"
        if math.isinf(self.high):
            least = "a positive number" if self.above and self.low == 0 else f"a number, {self.low:g} or more"
            return least + (", or inf" if self.infinite else "")
        ends = f"{'above' if self.above else 'from'} {self.low:g} {'and below' if self.below else 'to'} {self.high:g}"
        return f"a number {ends}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    def problem(self, value):
        """As `Kind`."""
        if isinstance(value, str) and value in self.names:
            return None
        near = difflib.get_close_matches(str(value).lower(), self.names, 1, 0.5)
        return f"it must be {self}" + (f"; the nearest is {near[0]}" if near else "")

    def __str__(self):
        return f"one of {', '.join(self.names)}"


@dataclasses.dataclass(frozen=True)
class Text:
    """A name or a path; it may be empty if `empty`."""

    empty: bool = True

    def problem(self, value):
        """As `Kind`."""
        if isinstance(value, str) and "\0" not in value and (self.empty or value.strip()):
            return None
        return f"it must be {self}"

    def __str__(self):
        return "a text" if self.empty else "a text that is not empty"


@dataclasses.dataclass(frozen=True)
class Several:
    """A tuple of values of one kind.

    Attributes:
      of: kind of each value.
      least: smallest number of values.
      length: the number of values, if it is fixed.
      rising: whether each value must exceed the one before.
    """

    of: Kind
    least: int = 0
    length: int | None = None
    rising: bool = False

    def problem(self, value):
        """As `Kind`."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            return f"it must be {self}"
        if len(value) < self.least or (self.length is not None and len(value) != self.length):
            return f"it must be {self}"
        for item in value:
            if problem := self.of.problem(item):
                return f"it must be {self}" + (problem.removeprefix(f"it must be {self.of}") or self._example())
        if self.rising and any(b <= a for a, b in itertools.pairwise(value)):
            return f"it must be {self}"
        return None

    def _example(self) -> str:
        """A value, where words alone leave the brackets open: sizes of images."""
        if not isinstance(self.of, Several):
            return ""
        return f", such as {((128,) * (self.of.length or 1),)}"

    def __str__(self):
        count = f"{self.length} values" if self.length is not None else f"{self.least} or more values"
        return f"{count}, each {self.of}" + (", each larger than the one before" if self.rising else "")


@dataclasses.dataclass(frozen=True)
class Option:
    """The declaration of an option.

    Attributes:
      name: dotted name.
      default: default value.
      kind: the values that it may have.
      meaning: its meaning in words, for docs/options.md.
      original: name of the option in the original, or argument of the original's script; empty if it is `name` in upper
        case, None if the original has no such option.
      there: the original's default in words, if it differs.
      free: whether it may change when a run is resumed.
    """

    name: str
    default: Any
    kind: Kind
    meaning: str
    original: str | None = ""
    there: str = ""
    free: bool = False


def make_config(options: Sequence[Option]) -> ConfigDict:
    """A config with the options and their defaults."""
    config = ConfigDict()
    for option in options:
        *groups, name = option.name.split(".")
        group = config
        for key in groups:
            if key not in group:
                group[key] = ConfigDict()
            group = group[key]
        group[name] = option.default
    return config


def check_values(config: Mapping[str, Any], options: Sequence[Option]) -> None:
    """Raises a UserError for the first option with an invalid value; it names option, value and the valid values."""
    for option in options:
        value = config
        for key in option.name.split("."):
            value = value[key]
        if value is None:
            raise UserError(
                f"{option.name} is open, as it depends on data or weights; --mode train and --mode import choose it, "
                "and Detector.from_checkpoint reads it from that run"
            )
        if problem := option.kind.problem(value):
            raise UserError(f"{option.name}={value!r:.200}: {problem}")
