"""Accepts the names of options on the command line in the spellings that a user may write."""

import difflib
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from diou_jax.command.original_keys import answer
from diou_jax.errors import UserError
from diou_jax.nested_config import flatten

OPTION = re.compile(r"(--?)(no)?config\.([^=]*)(=.*)?", re.S)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into the options ``--config.NAME=VALUE``, with their values, and the rest."""
    options: list[str] = []
    others: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        match = OPTION.fullmatch(argument)
        if match and not match[4] and rest and re.match(r"[^-]|-[.\d]", rest[0]):
            argument += f"={rest.pop(0)}"
        (options if match else others).append(argument)
    return options, others


def normalise(arguments: Sequence[str], config: ConfigDict) -> tuple[list[str], frozenset[str]]:
    """Replaces names of options, written in any case, by the config's names.

    Returns:
      The arguments, and the dotted names of the options among them, such as ``solver.max_iter``.

    Raises:
      UserError: if there is no such option, or the original's option has another name or no counterpart here.
    """
    normal, explicit = [], set()
    for argument in arguments:
        if match := OPTION.fullmatch(argument):
            dashes, negated, written, value = match.groups(default="")
            name = resolve_name(written, config)
            explicit.add(name)
            argument = f"{dashes}{negated}config.{name}{value}"
        normal.append(argument)
    return normal, frozenset(explicit)


def resolve_name(written: str, config: ConfigDict) -> str:
    """The name of the option that `written` means; raises UserError if there is none."""
    found: list[str] = []
    whole = config
    for segment in written.split("."):
        key, bracket, _ = segment.partition("[")
        names = {name.lower(): name for name in config} if isinstance(config, ConfigDict) else {}
        name = key if key in names.values() else names.get(key.lower())
        if name is None:
            if line := answer(written):
                raise UserError(f"--config.{written}: {line}")
            raise UserError(
                f"--config.{written}: there is no such option; the nearest is --config.{_nearest(written, whole)}"
            )
        if bracket:
            whole_name = ".".join([*found, name])
            raise UserError(f"--config.{written}: give all of it, such as --config.{whole_name}={config[name]!r}")
        found.append(name)
        config = config[name]
    if isinstance(config, ConfigDict):
        raise UserError(
            f"--config.{written} is a section; its options are {', '.join(flatten(config, '.'.join(found) + '.'))}"
        )
    return ".".join(found)


def _nearest(written: str, config: ConfigDict) -> str:
    return difflib.get_close_matches(written.lower(), flatten(config), n=1, cutoff=0)[0]
