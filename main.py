"""Trains, evaluates and applies a detector; reads and writes the original's weights.

python main.py --config configs/ciou.py --workdir runs/ciou
python main.py --config configs/ciou.py --workdir runs/ciou --mode predict --input photos --output found
python main.py --config configs/ciou.py --workdir runs/original --mode import --source model_step89999.pth
python main.py --config configs/ciou.py:r101 --workdir runs/ciou_r101 --mode eval --config.test.diou_nms.beta1=0.9
"""

import os
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/: FILE.py or FILE.py:BODY.")
WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints, logs and results go here; the same one resumes.")
MODES = ["train_and_eval", "train", "eval", "predict", "check", "import", "export_torch"]
MODE = flags.DEFINE_enum("mode", "train_and_eval", MODES, "What to do.")
INPUT = flags.DEFINE_string("input", None, "predict: an image or a folder of them.")
OUTPUT = flags.DEFINE_string("output", None, "predict: folder for pictures and json. export_torch: file to write.")
DRAW_THRESHOLD = flags.DEFINE_float("draw_threshold", 0.5, "predict: pictures show higher scores only.")
SOURCE = flags.DEFINE_string("source", None, "import: the weight file.")
ALLOW = flags.DEFINE_list("allow", [], "import: beginnings of names of tensors that need not fit.")
RESUME_OPTIMIZER = flags.DEFINE_bool("resume_optimizer", False, "import: take step and momentum over as well.")
# Seconds without a sign of life after which a process counts as gone, and the exit code of those that it leaves behind.
HEARTBEAT, LOST = 30, 3
NEEDED = {"predict": (INPUT, OUTPUT), "import": (SOURCE,), "export_torch": (OUTPUT,)}
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
    if CONFIG.value is None or (WORKDIR.value is None and MODE.value != "check"):
        fail("--config FILE and --workdir FOLDER are needed; --help lists the rest")
    for flag in NEEDED.get(MODE.value, ()):
        if flag.value is None:
            fail(f"--mode {MODE.value} needs --{flag.name}")
    return rest


def main(_):
    # Imported late, so that a mistyped option is answered at once.
    import jax

    from diou_jax import check, evaluate, predict, train
    from diou_jax.compilation import set_flags
    from diou_jax.errors import UserError
    from diou_jax.stop import Stopped
    from diou_jax.weights import importing

    set_flags()
    config, workdir = CONFIG.value, WORKDIR.value
    try:
        if DISTRIBUTED.value:
            jax.distributed.initialize(
                COORDINATOR.value, PROCESSES.value, PROCESS.value, heartbeat_timeout_seconds=HEARTBEAT
            )
        if MODE.value in ("train", "train_and_eval"):
            train.train(config, workdir, then_evaluate=MODE.value == "train_and_eval")
        if MODE.value in ("eval", "train_and_eval"):
            evaluate.evaluate(config, workdir)
        if MODE.value == "predict":
            options = {"draw_threshold": DRAW_THRESHOLD.value}
            sys.exit(0 if predict.predict(config, workdir, INPUT.value, OUTPUT.value, **options) else 1)
        if MODE.value == "check":
            sys.exit(0 if check.check(config) else 1)
        if MODE.value == "import":
            options = {"resume_optimizer": RESUME_OPTIMIZER.value, "allow": ALLOW.value}
            importing.import_file(config, SOURCE.value, workdir, **options)
        if MODE.value == "export_torch":
            importing.export_torch(config, workdir, OUTPUT.value)
    except UserError as error:
        fail(str(error))
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.exit_code)
    except Exception:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        print(
            "error: this process, or another one of the run as its log will say, has failed; start all of them again, "
            "and they go on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)  # an orderly end would wait minutes for processes that are gone


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # orbax reports every file that it opens
    app.run(main, flags_parser=parse)
