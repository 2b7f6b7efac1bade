"""Parses the command line into a `Command`: mode, config and folder."""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from diou_jax.command import config_files, option_names, remembered, settings
from diou_jax.command.original_flags import refuse_original_flags
from diou_jax.errors import UserError

MODES = ("train_and_eval", "train", "eval", "compare", "predict", "check", "import", "export_torch")
# Modes that apply a trained network.
APPLYING = ("eval", "predict", "export_torch")
NEEDED = {"compare": ("workdirs",), "predict": ("input", "output"), "import": ("source",), "export_torch": ("output",)}


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
        """The mode, one of `MODES`."""
        return self.flags["mode"]


def parse(arguments: Sequence[str]) -> Command:
    """Parses the arguments after the program's name.

    Raises:
      UserError: if there is a mistake in them, for example a mistyped option.
    """
    refuse_original_flags(arguments)
    values = _define()
    options, others = option_names.split(_spread(arguments))
    _read(values, others)
    given = values.flag_values_dict()
    for flag in NEEDED.get(given["mode"], ()):
        if not given[flag]:
            raise UserError(f"--mode {given['mode']} needs --{flag}")
    if given["sweep"] and given["mode"] != "eval":
        raise UserError(f"--sweep belongs to --mode eval, not to --mode {given['mode']}")
    if not re.fullmatch(r"best|last|[0-9]+", given["checkpoint"]):
        raise UserError(f"--checkpoint {given['checkpoint']}: it must be best, last or the step of a checkpoint")
    if given["checkpoint"] != "last" and given["mode"] not in APPLYING:
        raise UserError(f"--checkpoint {given['checkpoint']}: --mode {given['mode']} takes the last one")
    if given["workdir"] is not None and not given["workdir"].strip():
        raise UserError("--workdir is empty; name a folder, or leave it out for runs/ and the config's name")
    if given["mode"] == "compare":
        return _comparison(given, options)
    return _Resolved(given).command(options)


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


class _Resolved:
    """The config file, the workdir and the run in it."""

    def __init__(self, given: dict):
        """Finds them; raises UserError if there is no config to start from."""
        self._given = given
        self._file = None if given["config"] is None else config_files.find(given["config"])
        self._workdir = given["workdir"]
        if self._workdir is None and self._file is not None and given["mode"] != "check":
            self._workdir = self._file.workdir
        applying = given["mode"] in APPLYING
        self._run = remembered.remembered(self._workdir) if self._workdir and (applying or not self._file) else None
        if self._file is None and self._run is None:
            if self._workdir is None:
                raise config_files.missing()
            raise UserError(f"--workdir {self._workdir} holds no run to go on with; name --config as well")

    def command(self, options: Sequence[str]) -> Command:
        """The command, with the given `options`."""
        lines = [] if self._workdir is None else [self._first_line()]
        given, notes = (None, []) if self._file is None else config_files.load(self._file)
        base = given if self._run is None else copy.deepcopy(self._run)
        normal, explicit = option_names.normalise(options, base)
        config = _override(base, normal)
        if self._run is not None:
            if self._given["mode"] in APPLYING:
                remembered.check_shapes(self._run, config, self._workdir)
            if given is not None:
                where = {"file": self._given["config"], "explicit": explicit, "workdir": self._workdir}
                notes += remembered.contradictions(self._run, given, **where)
            notes += remembered.differences(self._run, config)
        return Command(config, explicit, self._workdir, self._given, (*lines, *notes), self._settings(config))

    def _settings(self, config) -> dict[str, ConfigDict]:
        """The configs of the settings of ``--sweep``, in the order in which their values were written."""
        if not self._given["sweep"]:
            return {}
        found = {}
        for options in settings.combinations(self._given["sweep"], config):
            one = _override(copy.deepcopy(config), options)
            found[settings.check(options, one)] = one
        return found

    def _first_line(self) -> str:
        config = f"config of the run in {self._workdir}" if self._run is not None else f"config {self._given['config']}"
        return f"workdir {self._workdir}, {config}"


def _define() -> flags.FlagValues:
    """The flags except ``--config.*``; they are new in every call, so that calls do not influence each other."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "File or name of a config, or a YAML file of the original.", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "Folder of checkpoints, logs and results; the same one resumes.", flag_values=values
    )
    flags.DEFINE_enum("mode", MODES[0], MODES, "What to do.", flag_values=values)
    flags.DEFINE_string("input", None, "predict: an image or a folder of them.", flag_values=values)
    flags.DEFINE_string(
        "output",
        None,
        "predict: folder for pictures and json. export_torch and compare: file to write.",
        flag_values=values,
    )
    flags.DEFINE_float("draw_threshold", 0.5, "predict: pictures show higher scores only.", flag_values=values)
    flags.DEFINE_multi_string(
        "sweep",
        None,
        "eval: NAME=VALUE,VALUE; evaluates these values of a test option from one run of the network. Repeated, it "
        "combines options.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "workdirs",
        [],
        "compare: folders of evaluated runs; the others are compared with the first.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "checkpoint", "last", "eval, predict, export_torch: best, last or a step; docs/training.md.", flag_values=values
    )
    flags.DEFINE_string("source", None, "import: the weight file.", flag_values=values)
    flags.DEFINE_list("allow", [], "import: prefixes of names of tensors that need not fit.", flag_values=values)
    flags.DEFINE_bool("resume_optimizer", False, "import: take over step and momentum, too.", flag_values=values)
    flags.DEFINE_bool("distributed", False, "Join the other processes of a run: docs/multihost.md.", flag_values=values)
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0; needed without a known cluster.", flag_values=values
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes, likewise.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0, likewise.", flag_values=values)
    return values


def _read(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Gives flags their values; any mistake raises a UserError of one line."""
    values.set_gnu_getopt(True)
    try:
        rest = values(["main.py", *arguments])
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        cause: Exception = error
        while cause.args and isinstance(cause.args[0], Exception):
            cause = cause.args[0]
        lines = [line for line in str(cause).splitlines() if line and not line.startswith("Pass --help")]
        raise UserError(f"command line: {' '.join(lines)}") from cause
    if rest[1:]:
        raise UserError(f"unknown argument {rest[1]!r}")


def _override(config: ConfigDict, options: Sequence[str]) -> ConfigDict:
    """`config` with the values of ``--config.NAME=VALUE``, converted to the types of its options."""
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["main.py", *options])
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"command line: {error}") from error
    _read(values, options)
    return values["config"].value


def help_text(program: str) -> str:
    """The text of ``--help``."""
    values = _define()
    shown = [values[name] for name in values if name not in ("flagfile", "undefok")]
    listed = "\n".join(f"  --{flag.name.ljust(17)} {flag.help}" for flag in shown)
    return f"""Trains, evaluates and applies a detector; reads and writes the original's weights.

  {program} --config configs/ciou.py
  {program} --config configs/ciou.py:r101 --config.solver.max_iter=45000
  {program} --workdir runs/ciou --mode eval --config.test.diou_nms.beta1=0.9
  {program} --workdir runs/ciou --mode eval --checkpoint best
  {program} --workdir runs/ciou --mode predict --input photos --output found
  {program} --config configs/ciou.py --workdir runs/original --mode import --source model_step89999.pth

Configs: {", ".join(config_files.names())}; a file of your own, .py or one of the original's .yaml.
Modes: {", ".join(MODES)}.
Without --workdir a run lies in runs/CONFIG. An existing run needs no --config.

{listed}
  --config.NAME=VALUE An option: docs/options.md lists them.
"""
