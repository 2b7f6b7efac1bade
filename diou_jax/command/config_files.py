"""Finds and loads the config that a user names with ``--config``."""

import dataclasses
import difflib
import importlib.util
import inspect
import os
import pathlib
import re

from ml_collections import ConfigDict

from diou_jax import configs
from diou_jax.command.original_config import read_original
from diou_jax.errors import UserError

SUFFIXES = (".yaml", ".yml")  # suffixes of the original's configs

FOLDER = pathlib.Path(configs.__path__[0])


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A file and the argument after its colon, or None."""

    path: pathlib.Path
    argument: str | None = None

    @property
    def workdir(self) -> str:
        """The default workdir: ``runs/`` with the file's name and argument, as a plain name of a folder."""
        words = [self.path.stem, *([self.argument] if self.argument else [])]
        return (
            "runs/" + "_".join(re.sub(r"[^A-Za-z0-9._-]+", "_", word).strip("._") or "config" for word in words)[:100]
        )


def names() -> list[str]:
    """The names of the configs that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base", "relations"))


def find(text: str) -> ConfigFile:
    """The file that a user means by a path or the name of an installed config, either with ``:ARGUMENT`` after it.

    Raises:
      UserError: if there is none; the message names the nearest and lists all.
    """
    if _is_config(pathlib.Path(text)):
        return ConfigFile(pathlib.Path(text))
    name, colon, argument = text.partition(":")
    path = pathlib.Path(name)
    if not _is_config(path):
        path = _installed(path) or _with_suffix(path) or _fail(text, path)
    return ConfigFile(path, argument if colon else None)


def load(file: ConfigFile) -> tuple[ConfigDict, list[str]]:
    """The config that a file describes, and lines to print about it.

    Raises:
      UserError: if the file cannot be read, fails, or takes no such argument.
    """
    if file.path.suffix in SUFFIXES:
        if file.argument is not None:
            raise UserError(f"{file.path}: a YAML file takes no argument, {file.argument!r} was given")
        return read_original(file.path)
    spec = importlib.util.spec_from_file_location(f"config_{file.path.stem}", file.path)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        function = getattr(module, "get_config", None)
        if not callable(function):
            raise UserError(f"{file.path} has no function get_config()")
        arguments = [] if file.argument is None else [file.argument]
        if arguments and not inspect.signature(function).parameters:
            raise UserError(f"{file.path} takes no argument, {file.argument!r} was given")
        config = function(*arguments)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file.path}: {error}") from error
    except Exception as error:  # an error in the user's file is reported in one line
        raise UserError(f"{file.path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file.path}: get_config() gives a {type(config).__name__}, not a ConfigDict")
    return config, []


def _is_config(path: pathlib.Path) -> bool:
    return path.suffix in (".py", *SUFFIXES) and os.path.isfile(path)


def _installed(path: pathlib.Path) -> pathlib.Path | None:
    """The installed config that `path` names: ``ciou``, ``ciou.py``, ``configs/ciou.py``."""
    file = FOLDER / f"{path.stem if path.suffix == '.py' else path.name}.py"
    plain = path.parent in (pathlib.Path(), pathlib.Path("configs")) and path.stem != "__init__"
    return file if plain and os.path.isfile(file) else None


def _with_suffix(path: pathlib.Path) -> pathlib.Path | None:
    files = (path.with_name(path.name + suffix) for suffix in (".py", *SUFFIXES)) if path.name else ()
    return next((file for file in files if os.path.isfile(file)), None)


def _fail(text: str, path: pathlib.Path):
    ours = {f"configs/{name}.py": name for name in names()}
    folder = path if os.path.isdir(path) else path.parent
    theirs = {str(file): file.stem for file in _files(folder)}
    # If both are equally near, a file of the user goes first.
    candidates = theirs if theirs and os.path.isdir(path) else theirs | ours
    stem = path.stem if path.suffix in (".py", *SUFFIXES) else path.name
    nearest = max(candidates, key=lambda file: difflib.SequenceMatcher(None, candidates[file], stem).ratio())
    kind = "is a folder" if os.path.isdir(path) else "is no config" if os.path.exists(path) else "does not exist"
    there = [*names(), *theirs]
    raise UserError(f"--config {text}: {path} {kind}; the nearest is {nearest}; there are {', '.join(there)}")


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The user's configs in a folder."""
    if not os.path.isdir(folder) or folder.resolve() == FOLDER.resolve():
        return []
    try:
        files = sorted(filter(_is_config, folder.iterdir()))
        return [file for file in files if file.suffix in SUFFIXES or b"def get_config" in file.read_bytes()]
    except OSError:
        return []


def missing() -> UserError:
    """The error if no config is named."""
    return UserError(
        "--config FILE is needed, such as --config configs/ciou.py, or a --workdir that holds a run; "
        f"there are {', '.join(names())}; --help lists the rest"
    )
