"""The program: parses the command line and runs the mode that it names."""

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from absl import flags, logging

from diou_jax.command.arguments import Command, help_text, parse
from diou_jax.errors import Stopped, UserError

# Seconds without a heartbeat after which a process counts as lost, and the exit code of the remaining processes.
HEARTBEAT, LOST = 30, 3
HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort"}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; if the arguments or the files that they name are faulty, exits with code 2.

    Args:
      argv: the program's name and its arguments; by default ``sys.argv``.
    """
    argv = sys.argv if argv is None else argv
    _escape_unprintable()
    if HELP & set(argv[1:]):
        print(help_text(_program(argv[0])), end="")
        return
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # orbax reports every file that it opens
    flags.FLAGS(argv[:1])  # grain reads absl's flags, which must be parsed before
    try:
        command = parse(argv[1:])
    except UserError as error:
        _fail(error)
    for line in command.lines:
        print(line, flush=True)
    _run(command)


def _escape_unprintable() -> None:
    """Makes consoles print characters that they lack as escapes, since names of folders and classes may have any."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # anything may stand in its place
            stream.reconfigure(errors="backslashreplace")


def _program(name: str) -> str:
    base = os.path.basename(name)
    return {"main.py": "python main.py", "__main__.py": "python -m diou_jax"}.get(base, base)


def _fail(error: UserError, *, leave=sys.exit):
    sys.stdout.flush()  # os._exit would not
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
    leave(2)


def _run(command: Command) -> None:
    # JAX is imported late, so that a mistyped option is reported at once.
    import jax

    from diou_jax.compilation import set_flags

    set_flags()
    given = command.flags
    try:
        if given["distributed"]:
            joined = (given["coordinator"], given["num_processes"], given["process_id"])
            jax.distributed.initialize(*joined, heartbeat_timeout_seconds=HEARTBEAT)
            # JAX has caught SIGTERM to tell programs of preemptions. This one never asks, and would outlive the signal.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _do(command)
    except UserError as error:
        if given["distributed"] and jax.process_count() > 1:
            _fail(error, leave=os._exit)  # a regular exit would wait minutes for processes that go on
        _fail(error)
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
        os._exit(LOST)  # a regular exit would wait minutes for lost processes


def _do(command: Command) -> None:
    from diou_jax.command.check_data import check_data
    from diou_jax.command.export_detector import export_detector, request
    from diou_jax.command.export_weights import export_torch
    from diou_jax.command.import_weights import import_file
    from diou_jax.evaluation import compare, evaluate
    from diou_jax.evaluation.sweep import sweep
    from diou_jax.prediction import predict
    from diou_jax.prediction.thresholds import read_score_threshold
    from diou_jax.training import train

    config, workdir, given = command.config, command.workdir, command.flags
    if command.mode == "check":
        sys.exit(0 if check_data(config, pictures=given["pictures"]) else 1)
    if command.mode == "compare":
        compare.compare_runs(given["workdirs"], given["output"] or compare.COMPARISON_FILE)
        return
    assert workdir is not None  # every other mode has one
    evaluator = None
    if command.mode in ("train", "train_and_eval"):
        then_evaluate = command.mode == "train_and_eval"
        evaluator = train.train(config, workdir, explicit=command.explicit, then_evaluate=then_evaluate)
    if command.settings:
        sweep(config, workdir, command.settings, checkpoint=given["checkpoint"])
    elif command.mode in ("eval", "train_and_eval"):
        evaluate.evaluate(config, workdir, evaluator, checkpoint=given["checkpoint"])
    if command.mode == "predict":
        score_threshold = given["score_threshold"]
        wishes = predict.Wishes(
            draw_threshold=given["draw_threshold"],
            score_threshold=None if score_threshold is None else read_score_threshold(score_threshold),
            classes=given["classes"],
            every=given["every"],
            write_video=given["video"],
        )
        where = {"output": given["output"], "checkpoint": given["checkpoint"]}
        sys.exit(0 if predict.predict(config, workdir, given["input"], wishes=wishes, **where) else 1)
    if command.mode == "export":
        export_detector(config, workdir, given["output"], wanted=request(given), checkpoint=given["checkpoint"])
    if command.mode == "import":
        options = {"resume_optimizer": given["resume_optimizer"], "allow": given["allow"]}
        import_file(config, given["source"], workdir, **options)
    if command.mode == "export_torch":
        export_torch(config, workdir, given["output"], checkpoint=given["checkpoint"])
