"""Reads the original's YAML files into a config."""

import difflib
import os
import pathlib
import reprlib
from collections.abc import Iterator
from typing import Any

import yaml
from ml_collections import ConfigDict

from diou_jax.command import original_types
from diou_jax.command.original_keys import KEYS, MASK_HEADS
from diou_jax.configs import base
from diou_jax.errors import UserError

SECTIONS = {name[:i] for name in KEYS for i, letter in enumerate(name) if letter == "."}
# Prefixes of keys that the RPN alone does not read, and that Fast R-CNN on precomputed proposals does not.
OF_ROI_HEADS = ("FAST_RCNN.", "FPN.MULTILEVEL_ROIS")
OF_THE_RPN = ("FPN.MULTILEVEL_RPN",)
# Either all of these keys choose GroupNorm, or none does.
NORMS = ("RESNETS.USE_GN", "RESNETS.TRANS_FUNC", "RESNETS.STEM_FUNC", "RESNETS.SHORTCUT_FUNC")
WEIGHTS = "RESNETS.IMAGENET_PRETRAINED_WEIGHTS"

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict, _SHORT.maxstring = 3, 4, 4, 4, 80


def read_original(path: str | os.PathLike) -> tuple[ConfigDict, list[str]]:
    """Our config for a YAML file of the original, and lines on keys without effect or with unusual values.

    Keys that the file leaves out have the original's global defaults, which differ from those of `configs/base.py`;
    options that the original does not have keep our defaults.

    Args:
      path: path of the file. A relative path of weights is also searched below the folders above the file.

    Raises:
      UserError: if the file cannot be read, has a key that the original does not have or a value of another type, or
        asks for an unsupported feature, such as keypoints.
    """
    path = pathlib.Path(path)
    given = {name: _typed(path, name, value) for name, value in _leaves(path, _load(path))}
    values = {name: key.default for name, key in KEYS.items()} | given
    _refuse_unsupported(path, values, given)
    _refuse_mixed_norms(path, values)
    config = base.get_config()
    for name, key in KEYS.items():
        if key.option and _acts(name, values):
            value = key.convert(values[name], values) if key.convert else values[name]
            _set(config, key.option, value)
    if config.model.mask_on:
        config.mrcnn.use_gn = MASK_HEADS[values["MRCNN.ROI_MASK_HEAD"]][1]
    config.fpn.mask_padding_train = config.resnets.use_gn  # as configs/base.py has it
    resnets = config.resnets
    resnets.imagenet_pretrained_weights = _find(path, values["ROOT_DIR"], resnets.imagenet_pretrained_weights)
    return config, [*_without_effect(given, values), *_warnings(config, values)]


def _load(path: pathlib.Path) -> dict:
    """The content of the file: sections by name."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file; a config of the original is a YAML file")
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8, and so not a YAML file") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = (
            "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "problem", "") or str(error)
        )
        raise UserError(f"{path}{where} is not YAML: {' '.join(problem.split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has no sections such as MODEL: it is no config of the original")
    return content


def _leaves(path: pathlib.Path, content: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The full name and the value of every key of the file.

    Raises:
      UserError: if there is no such key, or a section has a value.
    """
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in KEYS:
            yield name, value
        elif name in SECTIONS:
            if isinstance(value, dict):
                yield from _leaves(path, value, f"{name}.")
            elif value is not None:  # None is a section whose keys are all commented out
                raise UserError(f"{path}: {name} is {_SHORT.repr(value)}, and must be a section with keys of its own")
        else:
            name = _SHORT.repr(name)[1:-1]  # short, and on one line
            raise UserError(f"{path}: {name} is no key of the original's config; the nearest is {_nearest(name)}")


def _nearest(name: str) -> str:
    """The known key or section that resembles `name` most, regardless of its case and section."""
    name = name.upper()

    def resemblance(key: str) -> float:
        pairs = (key, name), (key.rsplit(".", 1)[-1], name.rsplit(".", 1)[-1])
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max(sorted({*KEYS, *SECTIONS}), key=resemblance)


def _typed(path: pathlib.Path, name: str, value: Any) -> Any:
    try:
        return original_types.read(value, KEYS[name])
    except original_types.WrongTypeError as error:
        said = "empty" if value is None else _SHORT.repr(value)
        mend = "; without the line it has the original's default" if value is None else ""
        raise UserError(f"{path}: {name} is {said}, and must be {error}{mend}") from error


def _refuse_unsupported(path: pathlib.Path, values: dict, given: dict) -> None:
    """Raises a UserError that names the keys with unsupported values; keys in the file come before defaults."""
    unread = () if values["MODEL.FASTER_RCNN"] else OF_ROI_HEADS if values["MODEL.RPN_ONLY"] else OF_THE_RPN
    refused = [
        name
        for name, key in KEYS.items()
        if key.only
        and values[name] not in key.only
        and _acts(name, values)
        and not (name.startswith(unread) and name not in given)
    ]
    if not refused:
        return
    lines = []
    for name in [name for name in refused if name in given] or refused:
        said = _SHORT.repr(values[name])
        said += "" if name in given else " by the original's default"
        must = " or ".join(repr(value) for value in KEYS[name].only if value != "")
        lines.append(f"{name} is {said}, and must be {must}: {KEYS[name].reason}")
    raise UserError(f"{path}: {'; '.join(lines)}")


def _acts(name: str, values: dict) -> bool:
    """Whether the switch that a key needs is on."""
    return not KEYS[name].needs or values[KEYS[name].needs]


def _refuse_mixed_norms(path: pathlib.Path, values: dict) -> None:
    switch, *functions = (values[name] for name in NORMS)
    if any(("_gn_" in function) != switch for function in functions):
        said = ", ".join(f"{name} {values[name]!r}" for name in NORMS)
        raise UserError(f"{path}: {said}: either all of them choose GroupNorm, or none does")


def _set(config: ConfigDict, option: str, value: Any) -> None:
    """Sets an option by its dotted name; None leaves it unchanged."""
    if value is not None:
        *sections, name = option.split(".")
        for section in sections:
            config = config[section]
        config[name] = value


def _find(path: pathlib.Path, root: str, weights: str) -> str:
    """The path of a weight file: below ROOT_DIR, else below the current folder or a folder above the config."""
    if not weights or os.path.isabs(weights):
        return weights
    folders: list[str | pathlib.Path] = [root] if root else ["", *path.absolute().parents]
    found = (os.path.join(folder, weights) for folder in folders)
    return next((file for file in found if os.path.isfile(file)), os.path.join(root, weights))


def _without_effect(given: dict, values: dict) -> list[str]:
    """A line for each reason for which keys of the file have no effect."""
    reasons: dict[str, list[str]] = {}
    for name, value in given.items():
        key = KEYS[name]
        as_here = name == "SOLVER.LR_POLICY" and value == "steps_with_decay"
        if not _acts(name, values):
            reasons.setdefault(f"{key.needs} is off", []).append(name)
        elif not (key.option or key.only or key.decides or as_here):
            reasons.setdefault(key.reason, []).append(name)
    return [f"without effect: {', '.join(names)} ({reason})" for reason, names in reasons.items()]


def _warnings(config: ConfigDict, values: dict) -> list[str]:
    """Lines on values that act as in the original but are hardly intended."""
    resnets, lines = config.resnets, []
    if values["MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS"] and not resnets.imagenet_pretrained_weights:
        lines.append(f"{WEIGHTS} names no file: the backbone of a new run has random weights, where the original stops")
    if resnets.use_gn and resnets.freeze_at and not resnets.imagenet_pretrained_weights:
        stages = f"res1 to res{resnets.freeze_at}" if resnets.freeze_at > 1 else "res1"
        lines.append(f"RESNETS.FREEZE_AT is {resnets.freeze_at}: random weights of {stages} are never trained")
    return lines
