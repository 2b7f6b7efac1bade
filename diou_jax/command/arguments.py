"""From the command line to a `Command`: what to do, with which config, in which folder."""

import copy
import dataclasses
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from diou_jax.command import config_files, option_names, remembered
from diou_jax.command.original_flags import refuse_original_flags
from diou_jax.errors import UserError

MODES = ("train_and_eval", "train", "eval", "predict", "check", "import", "export_torch")
# Modes that apply a network that is there.
APPLYING = ("eval", "predict", "export_torch")
NEEDED = {"predict": ("input", "output"), "import": ("source",), "export_torch": ("output",)}


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line asks for.

    Attributes:
      config: with every option that was given.
      explicit: dotted names of the options given on the command line, such as ``solver.max_iter``.
      workdir: folder of the run; None where the mode has none.
      flags: values of the other flags by name.
      lines: what to print first.
    """

    config: ConfigDict
    explicit: frozenset[str]
    workdir: str | None
    flags: dict
    lines: tuple[str, ...]

    @property
    def mode(self) -> str:
        """What to do, one of `MODES`."""
        return self.flags["mode"]


def parse(arguments: Sequence[str]) -> Command:
    """Reads the arguments behind the program's name.

    Raises:
      UserError: there is a mistake in them, a mistyped option included.
    """
    refuse_original_flags(arguments)
    values = _define()
    options, others = option_names.split(arguments)
    _read(values, others)
    given = values.flag_values_dict()
    for flag in NEEDED.get(given["mode"], ()):
        if not given[flag]:
            raise UserError(f"--mode {given['mode']} needs --{flag}")
    if given["workdir"] is not None and not given["workdir"].strip():
        raise UserError("--workdir is empty; name a folder, or leave it out for runs/ and the config's name")
    return _Resolved(given).command(options)


class _Resolved:
    """The config file, the workdir and the run in it."""

    def __init__(self, given: dict):
        """Finds them; raises UserError where there is no config to start from."""
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
        """The command, with `options` taken over."""
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
        return Command(config, explicit, self._workdir, self._given, (*lines, *notes))

    def _first_line(self) -> str:
        config = f"config of the run in {self._workdir}" if self._run is not None else f"config {self._given['config']}"
        return f"workdir {self._workdir}, {config}"


def _define() -> flags.FlagValues:
    """The flags, apart from those of ``--config.``; nothing of one call reaches another."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "A config's file or name, or a YAML file of the original.", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "Checkpoints, logs and results go here; the same one resumes.", flag_values=values
    )
    flags.DEFINE_enum("mode", MODES[0], MODES, "What to do.", flag_values=values)
    flags.DEFINE_string("input", None, "predict: an image or a folder of them.", flag_values=values)
    flags.DEFINE_string(
        "output", None, "predict: folder for pictures and json. export_torch: file to write.", flag_values=values
    )
    flags.DEFINE_float("draw_threshold", 0.5, "predict: pictures show higher scores only.", flag_values=values)
    flags.DEFINE_string("source", None, "import: the weight file.", flag_values=values)
    flags.DEFINE_list("allow", [], "import: beginnings of names of tensors that need not fit.", flag_values=values)
    flags.DEFINE_bool("resume_optimizer", False, "import: take step and momentum over as well.", flag_values=values)
    flags.DEFINE_bool("distributed", False, "Join the other processes of a run: docs/multihost.md.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster tells it.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "How many processes there are, likewise.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which of them this is, likewise.", flag_values=values)
    return values


def _read(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Gives flags their values; any mistake is a UserError of one line."""
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
    """`config` with what ``--config.NAME=VALUE`` says, in the types that it has."""
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["main.py", *options])
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"command line: {error}") from error
    _read(values, options)
    return values["config"].value


def help_text(program: str) -> str:
    """What ``--help`` prints."""
    values = _define()
    shown = [values[name] for name in values if name not in ("flagfile", "undefok")]
    listed = "\n".join(f"  --{flag.name.ljust(17)} {flag.help}" for flag in shown)
    return f"""Trains, evaluates and applies a detector; reads and writes the original's weights.

  {program} --config configs/ciou.py
  {program} --config configs/ciou.py:r101 --config.solver.max_iter=45000
  {program} --workdir runs/ciou --mode eval --config.test.diou_nms.beta1=0.9
  {program} --workdir runs/ciou --mode predict --input photos --output found
  {program} --config configs/ciou.py --workdir runs/original --mode import --source model_step89999.pth

Configs: {", ".join(config_files.names())}; a file of your own, .py or one of the original's .yaml.
Modes: {", ".join(MODES)}.
Without --workdir a run lies in runs/ and its config's name. A run that is there needs no --config.

{listed}
  --config.NAME=VALUE An option: docs/options.md lists them.
"""
