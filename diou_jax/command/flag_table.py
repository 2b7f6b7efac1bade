"""The modes of the command line and its flags: which mode takes which flag, and the meaning of each."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from diou_jax.errors import UserError

# The modes with their meanings; the first one is the default.
MODES = {
    "train_and_eval": "train, or go on where the run has stopped, then evaluate",
    "train": "train only",
    "eval": "evaluate a checkpoint on the config's test sets",
    "compare": "compare evaluated runs image by image",
    "predict": "detect in images and videos",
    "export": "write a file that detects without diou-jax",
    "check": "check the data and print the options that a run would choose",
    "import": "make a run of a weight file",
    "export_torch": "write weights for the original",
}

# Modes that apply a trained network.
APPLYING = ("eval", "predict", "export", "export_torch")


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag.

    Attributes:
      name: its name, without dashes.
      define: the function of absl that defines it.
      default: its value if it is not given.
      meaning: one line for ``--help``.
      modes: the modes that take it; empty: all.
      needed: whether these modes need it.
      among: the values of an enumeration.
    """

    name: str
    define: Callable
    default: Any
    meaning: str
    modes: tuple[str, ...] = ()
    needed: bool = False
    among: tuple[str, ...] = ()


FLAGS = (
    Flag("config", flags.DEFINE_string, None, "file or name of a config, or a YAML file of the original"),
    Flag("workdir", flags.DEFINE_string, None, "folder of the run; the same one resumes; by default runs/CONFIG"),
    Flag("mode", flags.DEFINE_enum, next(iter(MODES)), "one of the modes above", among=tuple(MODES)),
    Flag("distributed", flags.DEFINE_bool, False, "join the other processes of a run: docs/multihost.md"),
    Flag("coordinator", flags.DEFINE_string, None, "HOST:PORT of process 0, needed without a known cluster"),
    Flag("num_processes", flags.DEFINE_integer, None, "number of processes, likewise"),
    Flag("process_id", flags.DEFINE_integer, None, "number of this process, from 0, likewise"),
    Flag("checkpoint", flags.DEFINE_string, "last", "best, last or the step of one: docs/training.md", APPLYING),
    Flag("sweep", flags.DEFINE_multi_string, None, "NAME=VALUE,VALUE of a test option; several combine", ("eval",)),
    Flag(
        "workdirs", flags.DEFINE_multi_string, [], "folders of runs, the first against the others", ("compare",), True
    ),
    Flag("output", flags.DEFINE_string, None, "page to write; by default compare.html", ("compare",)),
    Flag("input", flags.DEFINE_multi_string, None, "image, video, folder or pattern; several", ("predict",), True),
    Flag("output", flags.DEFINE_string, None, "folder for pictures, videos and json", ("predict",), True),
    Flag("classes", flags.DEFINE_list, None, "names of classes; by default all", ("predict",)),
    Flag("score_threshold", flags.DEFINE_string, None, "a number, or a json file {class: number}", ("predict",)),
    Flag("draw_threshold", flags.DEFINE_float, 0.5, "pictures show higher scores only", ("predict",)),
    Flag("every", flags.DEFINE_integer, 1, "every N-th frame of a video", ("predict",)),
    Flag("video", flags.DEFINE_bool, True, "write videos; --novideo writes their json alone", ("predict",)),
    Flag("output", flags.DEFINE_string, None, "file to write", ("export", "export_torch"), True),
    Flag("image_size", flags.DEFINE_multi_string, None, "HEIGHTxWIDTH; a program for each", ("export",), True),
    Flag("batch", flags.DEFINE_integer, 1, "images of a call", ("export",)),
    Flag("rgb", flags.DEFINE_bool, False, "images are RGB instead of BGR", ("export",)),
    Flag("any_size", flags.DEFINE_bool, False, "images may be smaller than their arrays", ("export",)),
    Flag("platforms", flags.DEFINE_list, ["cpu", "cuda"], "some of cpu, cuda, rocm, tpu", ("export",)),
    Flag("format", flags.DEFINE_enum, "jax", "jax or saved_model", ("export",), among=("jax", "saved_model")),
    Flag("gpu_kernels", flags.DEFINE_bool, False, "Hopper GPUs run the kernels of diou-jax", ("export",)),
    Flag("pictures", flags.DEFINE_string, None, "folder for a page of the training's input", ("check",)),
    Flag("source", flags.DEFINE_string, None, "the weight file", ("import",), True),
    Flag("allow", flags.DEFINE_list, [], "prefixes of names of tensors that need not fit", ("import",)),
    Flag("resume_optimizer", flags.DEFINE_bool, False, "take over step and momentum, too", ("import",)),
)


def define() -> flags.FlagValues:
    """The flags except ``--config.*``; they are new in every call, so that calls do not influence each other."""
    values = flags.FlagValues()
    for flag in {flag.name: flag for flag in FLAGS}.values():
        among = (flag.among,) if flag.among else ()
        flag.define(flag.name, flag.default, *among, flag.meaning, flag_values=values)
    return values


def check(values: flags.FlagValues) -> None:
    """Raises UserError if the mode lacks a flag that it needs, or does not take one that is given."""
    mode = values["mode"].value
    for flag in FLAGS:
        if flag.needed and mode in flag.modes and not values[flag.name].value:
            raise UserError(f"--mode {mode} needs --{flag.name}")
    for name in dict.fromkeys(flag.name for flag in FLAGS):
        modes = [mode for flag in FLAGS if flag.name == name for mode in flag.modes]
        if modes and mode not in modes and values[name].present:
            raise UserError(f"--{name} belongs to --mode {_either(modes)}, not to --mode {mode}")


def _either(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def listing() -> str:
    """The modes, and below them the flags by the modes that take them."""
    lines = ["Modes:", *(f"  {name:16} {meaning}" for name, meaning in MODES.items())]
    for modes in dict.fromkeys(flag.modes for flag in FLAGS):
        lines += ["", f"Flags of {', '.join(modes)}:" if modes else "Flags:"]
        lines += [f"  --{flag.name:17} {flag.meaning}" for flag in FLAGS if flag.modes == modes]
        if not modes:
            lines.append("  --config.NAME=VALUE an option: docs/options.md lists them")
    return "\n".join(lines)
