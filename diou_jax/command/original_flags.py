"""The flags of the original's scripts, and the flags and options here that replace them."""

from collections.abc import Sequence

from diou_jax.command.original_keys import KEYS
from diou_jax.errors import UserError

DATASETS = "--config.train.datasets=\"('coco_2017_train',)\" and --config.test.datasets=\"('coco_2017_val',)\""
SAME_WORKDIR = "the same --workdir, which always resumes"
IMPORT = "--mode import --source {value}, then the same --workdir, or --config.init.checkpoint of another one"
FLAGS = {
    "cfg": "--config {value}",
    "cfg_file": "--config {value}",
    "dataset": DATASETS,
    "bs": "--config.train.batch_size={value}",
    "nw": "--config.data.threads={value}",
    "iter_size": "--config.solver.iter_size={value}",
    "o": "--config.solver.type={value}",
    "lr": "--config.solver.base_lr={value}, which the linear rule then leaves as it is",
    "lr_decay_gamma": "--config.solver.gamma={value}",
    "lr_decay_epochs": "--config.solver.steps, in iterations",
    "epochs": "--config.solver.max_iter, in iterations",
    "num_epochs": "--config.solver.max_iter, in iterations",
    "load_ckpt": IMPORT,
    "load_detectron": IMPORT,
    "resume": SAME_WORKDIR,
    "start_step": SAME_WORKDIR,
    "start_iter": SAME_WORKDIR,
    "start_epoch": SAME_WORKDIR,
    "use_tfboard": "nothing, TensorBoard's files are always written",
    "disp_interval": "--config.log.every={value}",
    "ckpt_num_per_epoch": "--config.checkpoint.every, in iterations",
    "no_save": "nothing, checkpoints are always written; --config.checkpoint.keep limits them",
    "no_cuda": "JAX_PLATFORMS=cpu before the command",
    "cuda": "nothing, all GPUs that JAX finds take part",
    "multi-gpu-testing": "nothing, all GPUs that JAX finds take part",
    "range": "nothing, evaluation takes all images of --config.test.datasets",
    "vis": "--config.log.images={value}, or --mode predict",
    "output_dir": "--workdir {value}; --output {value} where --mode predict draws",
    "output_base_dir": "--workdir {value}",
    "image_dir": "--mode predict --input {value}",
    "images": "--mode predict --input {value}",
    "merge_pdfs": "nothing, pictures are not PDF",
}
PLACEHOLDERS = {"cfg": "FILE", "cfg_file": "FILE", "load_ckpt": "FILE", "load_detectron": "FILE", "image_dir": "FOLDER"}


def refuse_original_flags(arguments: Sequence[str]) -> None:
    """Raises a UserError of one line that names the replacement of each of the original's flags among `arguments`."""
    answers = []
    for i, argument in enumerate(arguments):
        name, _, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name not in {*FLAGS, "set"}:
            continue
        values = [value] if value else _values(arguments[i + 1 :])
        ours = _set_options(values) if name == "set" else _ours(name, values)
        answers.append(f"--{name} is {ours}")
    if answers:
        raise UserError(f"flags of the original, here: {'; '.join(dict.fromkeys(answers))}")


def _values(following: Sequence[str]) -> list[str]:
    end = next((i for i, argument in enumerate(following) if argument.startswith("--")), len(following))
    return list(following[:end])


def _ours(name: str, values: list[str]) -> str:
    return FLAGS[name].format(value=values[0] if values else PLACEHOLDERS.get(name, "VALUE"))


def _set_options(values: list[str]) -> str:
    """Our options for the names and values that follow ``--set``."""
    pairs = list(zip(values[::2], values[1::2]))
    if not pairs:
        return "--config.NAME=VALUE"
    options = [(KEYS[name.upper()].option if name.upper() in KEYS else "") or name.lower() for name, _ in pairs]
    return " ".join(f"--config.{option}={_quoted(value)}" for option, (_, value) in zip(options, pairs))


def _quoted(value: str) -> str:
    return value if value.replace(".", "").replace("_", "").replace("-", "").isalnum() else f'"{value}"'
