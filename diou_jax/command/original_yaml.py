"""The original's YAML files, read into a config of ours."""

import ast
import contextlib
import difflib
import pathlib
import reprlib
from typing import Any

import yaml
from ml_collections import ConfigDict

from diou_jax.command.original_config import KEYS, NORMS, Key
from diou_jax.configs import base
from diou_jax.errors import UserError

SECTIONS = {name[:i] for name in KEYS for i, letter in enumerate(name) if letter == "."}
SUFFIXES = (".yaml", ".yml")


def read_yaml(path: pathlib.Path) -> tuple[ConfigDict, list[str]]:
    """Our config for a file of the original's, and lines that name what in it has no effect.

    What the file leaves out has the original's default, where our option has one of the original.

    Raises:
      UserError: the file cannot be read, or has a key or value that the original, or this program, does not know.
    """
    given = {}
    for name, value in _flatten(path, _load(path)):
        given[name] = _coerce(path, name, value, KEYS[name])
    values = {name: key.default for name, key in KEYS.items()} | given
    _check_only(path, values, given)
    _check_norms(path, values)
    config = base.get_config()
    for name, key in KEYS.items():
        if key.option and (name in given or not key.when_given):
            value = key.convert(values[name], values) if key.convert else values[name]
            _set(config, key.option, value)
    config.fpn.mask_padding_train = config.resnets.use_gn  # as configs/base.py has it
    config.resnets.imagenet_pretrained_weights = _find_weights(path, config.resnets.imagenet_pretrained_weights)
    return config, _idle_lines(given)


def _load(path: pathlib.Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not YAML: {problem}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a config of the original has sections such as MODEL; this is {reprlib.repr(content)}")
    return content


def _flatten(path: pathlib.Path, content: dict, prefix: str = ""):
    """The full name and value of every key, as the file has it; raises UserError for names that are none."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in SECTIONS:
            if not isinstance(value, dict):
                raise UserError(f"{path}: {name} is a section of options, not {reprlib.repr(value)}")
            yield from _flatten(path, value, f"{name}.")
        elif name in KEYS:
            yield name, value
        else:
            near = difflib.get_close_matches(name.upper(), [*KEYS, *SECTIONS], n=1, cutoff=0)[0]
            raise UserError(f"{path}: {name} is no key of the original's config; the nearest is {near}")


def _coerce(path: pathlib.Path, name: str, value: Any, key: Key) -> Any:
    """`value` in the type of the key's default: by the original's rules, and a whole number where it has a fraction."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):  # a text that means itself
            value = ast.literal_eval(value)
    default = key.default
    if name == "PIXEL_MEANS":
        value = _three(value)
    if isinstance(default, str):
        fits = not isinstance(value, list | tuple | dict) and value is not None
        value = str(value) if fits else value
    elif isinstance(default, list | tuple):
        elements = _elements(name, value) if isinstance(value, list | tuple) else None
        if name == "PIXEL_MEANS" and elements is not None and len(elements) != 3:
            elements = None
        fits = elements is not None
        value = elements if fits else value
    elif isinstance(default, float):
        fits = type(value) in (int, float)
        value = float(value) if fits else value
    else:
        fits = type(value) is type(default)
    if not fits:
        wanted = f"{_kind(default)}, such as {_example(name, default)!r}"
        raise UserError(f"{path}: {name} is {reprlib.repr(value)}, and must be {wanted}")
    return value


def _three(means: Any) -> Any:
    """The three numbers that the original nests in two more brackets; anything else as it is."""
    inner = means
    while isinstance(inner, list | tuple) and len(inner) == 1:
        inner = inner[0]
    return inner if isinstance(inner, list | tuple) and len(inner) == 3 else means


def _example(name: str, default: Any) -> Any:
    """A value of the key's kind: the default, or where that is empty, one that says what belongs there."""
    if default not in ((), []):
        return default
    return ("coco_2017_val",) if name.endswith("DATASETS") else [0, 60000, 80000]


# Of lists and tuples: what an element is, where the default is empty.
ELEMENTS = {"TRAIN.DATASETS": (str,), "TEST.DATASETS": (str,), "SOLVER.STEPS": (int,)}


def _elements(name: str, value: list | tuple) -> tuple | None:
    """The elements in the type of the default's; None where one is of another."""
    default = KEYS[name].default
    kinds = ELEMENTS.get(name) or tuple({type(element) for element in default})
    if float in kinds:
        good = all(type(element) in (int, float) for element in value)
        return tuple(map(float, value)) if good and kinds == (float,) else tuple(value) if good else None
    if not kinds:
        return tuple(value)
    return tuple(value) if all(type(element) in kinds for element in value) else None


def _kind(default: Any) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return names.get(type(default), "a list")


def _check_only(path: pathlib.Path, values: dict, given: dict) -> None:
    """Raises UserError for what this program cannot do; names what the file says before what it leaves out."""
    refused = [name for name, key in KEYS.items() if key.only and values[name] not in key.only]
    said = [name for name in refused if name in given] or refused
    if said:
        parts = []
        for name in said:
            default = "" if name in given else ", the original's default"
            wanted = " or ".join(repr(value) for value in KEYS[name].only if value != "")
            parts.append(f"{name} is {values[name]!r}{default}, and must be {wanted} ({KEYS[name].reason})")
        raise UserError(f"{path}: {'; '.join(parts)}")


def _check_norms(path: pathlib.Path, values: dict) -> None:
    names = ("RESNETS.TRANS_FUNC", "RESNETS.STEM_FUNC", "RESNETS.SHORTCUT_FUNC")
    if len({"_gn_" in values[name] for name in names} | {values["RESNETS.USE_GN"]}) > 1:
        said = ", ".join(f"{name} {values[name]!r}" for name in (*names, "RESNETS.USE_GN"))
        raise UserError(f"{path}: {said}: {NORMS}")


def _find_weights(path: pathlib.Path, weights: str) -> str:
    """A relative path is one below the original's folder, which holds the config: it is looked for there, too."""
    if not weights or pathlib.Path(weights).exists():
        return weights
    found = (folder / weights for folder in path.resolve().parents if (folder / weights).is_file())
    return str(next(found, weights))


def _set(config: ConfigDict, option: str, value: Any) -> None:
    *sections, name = option.split(".")
    for section in sections:
        config = config[section]
    config[name] = tuple(value) if isinstance(value, list) else value


def _idle_lines(given: dict[str, Any]) -> list[str]:
    """A line for each reason, with the keys that the file names for nothing."""
    reasons = {}
    for name, value in given.items():
        key = KEYS[name]
        harmless = name == "SOLVER.LR_POLICY" and value == "steps_with_decay"
        switched = name == "MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS"
        if not key.option and not key.only and not harmless and not switched:
            reasons.setdefault(key.reason, []).append(name)
    return [f"without effect: {', '.join(names)} ({reason})" for reason, names in reasons.items()]
