"""Trains and evaluates a detector.

python main.py --config configs/ciou.py --workdir runs/ciou
python main.py --config configs/ciou.py:r101 --workdir runs/ciou_r101 --mode eval --config.test.diou_nms.beta1=0.9
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/: FILE.py or FILE.py:BODY.")
WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints, logs and results go here; the same one resumes.")
MODE = flags.DEFINE_enum("mode", "train_and_eval", ["train_and_eval", "train", "eval"], "What to do.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of a run: docs/multihost.md.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster tells it.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are, likewise.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, likewise.")


def fail(message: str):
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str]) -> list[str]:
    """Reads the flags; any mistake in them, a mistyped option included, is one line and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.lock()  # a file that does not exist is noticed at the first use
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        while error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        lines = [line for line in str(error.args[0]).splitlines() if line and not line.startswith("Pass --help")]
        # What goes wrong inside a config file arrives as the text of its traceback, the cause in the last line.
        fail(lines[-1] if "Traceback" in str(error) else f"command line: {' '.join(lines)}")
    if rest[1:]:
        fail(f"unknown argument {rest[1]!r}")
    if CONFIG.value is None or WORKDIR.value is None:
        fail("--config FILE and --workdir FOLDER are needed; --help lists the rest")
    return rest


def main(_):
    # Imported late, so that a mistyped option is answered at once.
    import jax

    from diou_jax import evaluate, train
    from diou_jax.errors import UserError

    try:
        if DISTRIBUTED.value:
            jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        if MODE.value != "eval":
            train.train(CONFIG.value, WORKDIR.value)
        if MODE.value != "train":
            evaluate.evaluate(CONFIG.value, WORKDIR.value)
    except UserError as error:
        fail(str(error))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # orbax reports every file that it opens
    app.run(main, flags_parser=parse)
