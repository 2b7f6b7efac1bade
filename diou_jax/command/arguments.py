"""Parses the command line into a `Command`: mode, config and folder."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from diou_jax.command import config_files, flag_table, option_names, settings, stored_config
from diou_jax.command.flag_table import APPLYING
from diou_jax.command.original_flags import refuse_original_flags
from diou_jax.configs import base
from diou_jax.errors import UserError
from diou_jax.files import possible_name
from diou_jax.option_kinds import WhichCheckpoint


@dataclasses.dataclass(frozen=True)
class Command:
    """The request of a command line.

    Attributes:
      config: the config with the options of the command line.
      explicit: dotted names of the options given on the command line, such as ``solver.max_iter``.
      workdir: folder of the run; None if the mode has none.
      flags: values of the other flags by name.
      lines: lines to print first.
      settings: the configs of the settings of ``--sweep`` by name; empty without it.
    """

    config: ConfigDict
    explicit: frozenset[str]
    workdir: str | None
    flags: dict
    lines: tuple[str, ...]
    settings: Mapping[str, ConfigDict] = dataclasses.field(default_factory=dict)

    @property
    def mode(self) -> str:
        """The mode, one of `flag_table.MODES`."""
        return self.flags["mode"]


def parse(arguments: Sequence[str]) -> Command:
    """Parses the arguments after the program's name.

    Raises:
      UserError: if there is a mistake in them, for example a mistyped option.
    """
    refuse_original_flags(arguments)
    values = flag_table.define()
    options, others = option_names.split(_spread(arguments))
    rest = _read(values, others)
    given = values.flag_values_dict()
    if rest and given["mode"] == "predict" and given["input"]:
        given["input"] += rest  # the shell has expanded a pattern to several names
    elif rest:
        raise UserError(f"unknown argument {rest[0]!r}")
    flag_table.check(values)
    if problem := WhichCheckpoint().problem(given["checkpoint"]):
        raise UserError(f"--checkpoint {given['checkpoint']}: {problem}")
    if given["workdir"] is not None and not given["workdir"].strip():
        raise UserError("--workdir is empty; name a folder, or leave it out for runs/ and the config's name")
    if given["mode"] == "compare":
        return _comparison(given, options)
    return _Start(given).command(options)


def _spread(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``--workdirs A B`` as ``--workdirs=A --workdirs=B``."""
    spread: list[str] = []
    listing = False
    for argument in arguments:
        if argument.startswith("-"):
            listing = argument in ("--workdirs", "-workdirs")
            spread += [] if listing else [argument]
        else:
            spread.append(f"--workdirs={argument}" if listing else argument)
    return spread


def _comparison(given: dict, options: Sequence[str]) -> Command:
    """The command that compares runs, each of which has a config of its own."""
    unused = [*(f"--{name}" for name in ("config", "workdir") if given[name] is not None), *options]
    if unused:
        raise UserError(f"--mode compare takes the configs of the runs in --workdirs; leave {unused[0]} out")
    return Command(ConfigDict(), frozenset(), None, given, ())


class _Start:
    """The config file, the workdir and the run in it, from which a command starts."""

    def __init__(self, given: dict):
        """Finds all three by the flags; raises UserError if there is no config to start from."""
        self._given = given
        self._file = None if given["config"] is None else config_files.find(given["config"])
        self._workdir = given["workdir"]
        if self._workdir is None and self._file is not None and given["mode"] != "check":
            self._workdir = self._file.workdir
        if self._workdir:
            possible_name(self._workdir, "--workdir")
        applying = given["mode"] in APPLYING
        self._run = (
            stored_config.stored_config(self._workdir) if self._workdir and (applying or not self._file) else None
        )
        if self._file is None and self._run is None:
            if self._workdir is None:
                raise config_files.missing()
            raise UserError(f"--workdir {self._workdir} holds no run to go on with; name --config as well")

    def command(self, options: Sequence[str]) -> Command:
        """The command, with the given `options`."""
        lines = [] if self._workdir is None else [self._first_line()]
        given, notes = (None, []) if self._file is None else config_files.load(self._file)
        start = given if self._run is None else copy.deepcopy(self._run)
        normal, explicit = option_names.normalise(options, start)
        config = _override(start, normal)
        if self._run is not None:
            if self._given["mode"] in APPLYING:
                stored_config.check_shapes(self._run, config, self._workdir)
            if given is not None:
                where = {"file": self._given["config"], "explicit": explicit, "workdir": self._workdir}
                notes += stored_config.contradictions(self._run, given, **where)
            notes += stored_config.differences(self._run, config)
        return Command(config, explicit, self._workdir, self._given, (*lines, *notes), self._settings(config))

    def _settings(self, config) -> dict[str, ConfigDict]:
        """The configs of the settings of ``--sweep``, in the order in which their values were written."""
        if not self._given["sweep"]:
            return {}
        found = {}
        for options in settings.combinations(self._given["sweep"], config):
            one = _override(copy.deepcopy(config), options)
            found[settings.checked_name(options, one)] = one
        return found

    def _first_line(self) -> str:
        config = f"config of the run in {self._workdir}" if self._run is not None else f"config {self._given['config']}"
        return f"workdir {self._workdir}, {config}"


def _read(values: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """Gives the flags their values and returns the other arguments; any mistake raises a UserError of one line."""
    values.set_gnu_getopt(True)
    try:
        rest = values(["main.py", *arguments])
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        cause: Exception = error
        while cause.args and isinstance(cause.args[0], Exception):
            cause = cause.args[0]
        lines = [line for line in str(cause).splitlines() if line and not line.startswith("Pass --help")]
        raise UserError(f"command line: {' '.join(lines)}") from cause
    return rest[1:]


def _override(config: ConfigDict, options: Sequence[str]) -> ConfigDict:
    """`config` with the values of ``--config.NAME=VALUE``, converted to the types of its options.

    Raises:
      UserError: if a value cannot be converted; the message has the option's valid values.
    """
    before = copy.deepcopy(config)
    try:
        return _converted(config, options)
    except UserError as error:
        raise _conversion_error(before, options) or error from error


def _conversion_error(config: ConfigDict, options: Sequence[str]) -> UserError | None:
    """An error that names the first option whose value cannot be converted; absl's would name functions of Python."""
    kinds = {option.name: option.kind for option in base.OPTIONS}
    for option in options:
        name, equals, value = option.lstrip("-").removeprefix("config.").partition("=")
        try:
            _converted(copy.deepcopy(config), [option])
        except UserError:
            return UserError(f"{name}={value:.200}: it must be {kinds[name]}") if equals and name in kinds else None
    return None


def _converted(config: ConfigDict, options: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["main.py", *options])
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"command line: {error}") from error
    if rest := _read(values, options):
        raise UserError(f"unknown argument {rest[0]!r}")
    return values["config"].value


def help_text(program: str) -> str:
    """The text of ``--help``."""
    return f"""Trains, evaluates and applies a detector; reads and writes the original's weights.

  {program} --config configs/ciou.py
  {program} --config configs/ciou.py:r101 --config.solver.max_iter=45000
  {program} --workdir runs/ciou --mode eval --config.test.diou_nms.beta1=0.9
  {program} --workdir runs/ciou --mode eval --checkpoint best
  {program} --workdir runs/ciou --mode predict --input photos --output found
  {program} --config configs/ciou.py --workdir runs/original --mode import --source model_step89999.pth

Configs: {", ".join(config_files.names())}; a file of your own, .py or one of the original's .yaml.
An existing run needs no --config.

{flag_table.listing()}
"""
