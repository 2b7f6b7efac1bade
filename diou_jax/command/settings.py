"""``--sweep NAME=VALUE,VALUE``: the settings of test options that an evaluation compares."""

import itertools
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from diou_jax.command import option_names
from diou_jax.configs import base
from diou_jax.errors import UserError
from diou_jax.nested_config import flatten
from diou_jax.option_groups import AFTER_NETWORK
from diou_jax.option_kinds import check_values


def combinations(given: Sequence[str], config: ConfigDict) -> Iterator[tuple[str, ...]]:
    """The combinations of all values, the last option varying fastest, as options ``--config.NAME=VALUE``.

    Args:
      given: values of ``--sweep``, one for each option.
      config: the config, which knows the names of options.

    Raises:
      UserError: if a text is not ``NAME=VALUE,VALUE``, or an option is unknown, named twice, or acts before the
        network's outputs.
    """
    columns: dict[str, list[str]] = {}
    for text in given:
        written, equals, values = text.partition("=")
        listed = _split(values)
        if not equals or not all(listed):
            raise UserError(f"--sweep {text}: write --sweep NAME=VALUE,VALUE, as in --sweep test.nms=0.4,0.5,0.6")
        name = option_names.resolve_name(written.strip().removeprefix("config."), config)
        if name not in AFTER_NETWORK:
            raise UserError(
                f"--sweep {name}: the network would have to run again for each value. One run of the network serves "
                f"several values of {', '.join(AFTER_NETWORK)}"
            )
        if name in columns:
            raise UserError(f"--sweep {name}: it is named twice; separate its values by commas")
        columns[name] = [f"--config.{name}={value}" for value in listed]
    return itertools.product(*columns.values())


def checked_name(options: Sequence[str], config: ConfigDict) -> str:
    """The name of a setting, such as ``test.nms=0.5,test.diou_nms.beta1=0.8``, with the values that `config` has.

    Args:
      options: a result of `combinations`.
      config: the config with these options.

    Raises:
      UserError: if a value is invalid.
    """
    names = [option.removeprefix("--config.").partition("=")[0] for option in options]
    check_values(config, [option for option in base.OPTIONS if option.name in names])
    values = flatten(config)
    return ",".join(f"{name}={values[name]}".replace(" ", "") for name in names)


def _split(text: str) -> list[str]:
    """The values between commas that stand outside brackets, without spaces around them."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]
