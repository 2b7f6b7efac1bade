"""Which detections a call wants: its classes by name, and a threshold of scores for all or for each class."""

import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from diou_jax.errors import UserError
from diou_jax.files import printable, reason, regular_file

_FORM = 'it must hold {"name of a class": threshold, ...}'


def class_numbers(names: Sequence[str], class_names: Sequence[str], *, option: str) -> list[int]:
    """The numbers of classes, ascending.

    Args:
      names: names of classes.
      class_names: K names, background first.
      option: name of the argument in messages.

    Raises:
      UserError: if a name is no class of the detector; the message has the nearest one.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        names = [names]
    names = list(names)
    if not names:
        raise UserError(f"{option} is empty; name one or more classes of {', '.join(class_names[1:])}")
    known: dict[str, list[int]] = {}
    for number, name in enumerate(class_names[1:], start=1):
        known.setdefault(name, []).append(number)
    for name in names:
        if name not in known:
            lower = {each.lower(): each for each in known}
            near = difflib.get_close_matches(str(name).lower(), lower, 1, 0.0)
            listed = ", ".join(list(known)[:10]) + (", …" if len(known) > 10 else "")
            nearest = f"; the nearest is {lower[near[0]]}" if near else ""
            raise UserError(f"{option}: the detector has no class {name!r}{nearest} (it has {listed})")
    return sorted({number for name in names for number in known[name]})


def score_thresholds(
    wanted: float | Mapping[str, float] | None,
    class_names: Sequence[str],
    *,
    default: float,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """The score that a detection of each class must exceed.

    Thresholds act before suppression, so that unwanted classes take no place among the TEST.DETECTIONS_PER_IM.

    Args:
      wanted: a threshold for all classes, or thresholds by name of class; classes without one, and None: `default`.
      class_names: K names, background first.
      default: the config's threshold.
      classes: names of the classes to detect; None: all.

    Returns:
      float32 (K - 1, 1), infinite for a class that is not wanted.

    Raises:
      UserError: if a name is unknown, or a threshold is no number from 0 to 1.
    """
    thresholds = np.full((len(class_names) - 1, 1), default, np.float32)
    if isinstance(wanted, Mapping):
        for name, value in wanted.items():
            numbers = class_numbers([name], class_names, option="score_threshold")
            thresholds[np.array(numbers) - 1] = _checked(value, f" of {name}")
    elif wanted is not None:
        thresholds[:] = _checked(wanted, "")
    if classes is not None:
        numbers = class_numbers(classes, class_names, option="classes")
        left_out = np.ones(len(thresholds), bool)
        left_out[np.array(numbers) - 1] = False
        thresholds[left_out] = np.inf
    return thresholds


def overlap_threshold(wanted: float | None, *, default: float) -> np.float32:
    """The overlap at which a detection suppresses another; raises UserError unless `wanted` is 0 or more, or None."""
    if wanted is None:
        return np.float32(default)
    if not (number := _number(wanted)) >= 0:
        raise UserError(f"nms={wanted!r}: it must be a number, 0 or more")
    return np.float32(number)


def check_draw_threshold(value: float) -> None:
    """Raises UserError unless ``--draw_threshold`` is a score."""
    if not 0 <= value <= 1:
        raise UserError(f"--draw_threshold={value:g}: it must be a number from 0 to 1")


def read_score_threshold(text: str) -> float | dict[str, float]:
    """The value of ``--score_threshold``: a number, or a json file of one object, {name of class: threshold}.

    Raises:
      UserError: if it is neither, or the file holds something else.
    """
    try:
        return float(text)
    except ValueError:
        pass
    if not os.path.exists(text):
        raise UserError(f"--score_threshold {text}: it is neither a number nor a file")
    path = regular_file(text)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows begin files with a mark
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({reason(error)})") from None
    except RecursionError:
        raise UserError(f"--score_threshold {printable(path)}: it is nested too deeply; {_FORM}") from None
    except ValueError as error:
        raise UserError(f"--score_threshold {printable(path)} is no json: {error}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"--score_threshold {printable(path)}: {_FORM}")
    return content


def _checked(value: Any, whose: str) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise UserError(f"score_threshold={value!r:.100}{whose}: it must be a number from 0 to 1")
    return number


def _number(value: Any) -> float:
    """A value as a float, NaN if it is no number."""
    try:
        return math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
