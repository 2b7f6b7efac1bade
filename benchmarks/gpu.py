"""One command that proves and measures everything on one GPU of Hopper's generation or newer.

    python benchmarks/gpu.py --minutes 8 --out FOLDER
    python benchmarks/gpu.py --minutes 8 --out FOLDER --golden GOLDEN --stages device kernels golden
    python benchmarks/gpu.py --rehearse --out FOLDER      # all stages in small, on a CPU

Where a command may last ten minutes only, three calls with one folder, each --minutes 9, have room for every stage:
--stages device verdicts kernels golden; train inference parts; and all others. The reports of all calls stay in FOLDER;
--scratch keeps compiled programs and XLA's choices of algorithms for the next call.

Every stage is another benchmark in a process of its own with a time limit: an abort or a hang costs that stage. Each
line is written at once to FOLDER/report.md, and each row of a table to FOLDER/results.jsonl. A stage that does not fit
into the rest of the time is skipped, and the summary says so. Nothing asks the network.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
LINES = 60  # length of the last table
ARITHMETIC_IS_WRONG = 3  # exit code of device.py
PALLAS, XLA = {"DIOU_JAX_KERNELS": "pallas"}, {"DIOU_JAX_KERNELS": "xla"}
NONDETERMINISTIC = {"XLA_FLAGS": "--xla_gpu_exclude_nondeterministic_ops=false"}
BAD = ("NO", "WRONG")  # cells of rows that the last table shows first


@dataclasses.dataclass(frozen=True)
class Stage:
    """A benchmark of this folder, or another program of the project.

    Attributes:
      name: its name for --stages.
      shows: its subject, in words.
      command: its arguments after ``python``; {out}, {scratch} and {golden} stand for the folders. It runs in the
        project's root.
      seconds: its time limit.
      least: seconds that must be left for it to start.
      rehearsal: its command for --rehearse; None: `command` with --smoke.
      environment: variables that are added to the environment of this process.
      quoted: beginning of the line that the last table quotes if the stage prints no table of its own.
      columns: the columns of its table that the last table shows; by default the first ones.
    """

    name: str
    shows: str
    command: str
    seconds: float
    least: float
    rehearsal: str | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    quoted: str | None = None
    columns: tuple[str, ...] = ()


# A small detector for a few steps, in place of the whole run.
SHAPES_REHEARSAL = (
    "main.py --config configs/shapes.py --workdir {scratch}/shapes --config.data.root={scratch}/data "
    "--config.solver.max_iter=20 --config.solver.steps=(0,15) --config.log.every=10"
)
# The table of parts is rehearsed once.
STEP_REHEARSAL = "benchmarks/train.py --smoke --breakdown 0 --cache {scratch}/cache"
STEP = ("images", "data", "images/s", "step, ms (p10, p90)", "share of peak", "times torchvision")
STAGES = (
    Stage("device", "versions, eager arithmetic, ceilings", "benchmarks/device.py", 60, 10),
    Stage("verdicts", "the choice of kernels, as a run makes it", "benchmarks/verdicts.py", 75, 20,
          columns=("start", "s", "verdict")),
    Stage("kernels", "kernels beside their references", "benchmarks/kernel_checks.py --dump {out}/dump", 300, 60,
          environment=PALLAS),
    Stage("golden", "the whole detector beside the original's numbers", "benchmarks/golden.py --golden {golden}", 90,
          30, environment=PALLAS),
    Stage("nms", "suppression", "benchmarks/nms.py --images 2 16", 90, 20),
    Stage("roi_align", "RoIAlign", "benchmarks/roi_align.py --images 2 16 --rois 512 --dtypes bfloat16", 90, 25),
    Stage("match", "matching of anchors", "benchmarks/match.py --images 2 16", 40, 10),
    Stage("train", "train step with the kernels, torchvision",
          "benchmarks/train.py --batches 2 16 --bursts 10 --cache {scratch}/cache", 240, 60, rehearsal=STEP_REHEARSAL,
          environment=PALLAS, columns=STEP),
    Stage("inference", "detection with the kernels, torchvision",
          "benchmarks/inference.py --batches 1 16 --bursts 10 --lone 30", 120, 40, environment=PALLAS),
    Stage("parts", "where the train step's time goes",
          "benchmarks/train.py --batches 16 --no-peer --breakdown 16 --bursts 5 --cache {scratch}/cache", 180, 60,
          rehearsal="benchmarks/train.py --smoke --cache {scratch}/cache", environment=PALLAS),
    Stage("train_xla", "train step without the kernels",
          "benchmarks/train.py --batches 2 16 --no-peer --bursts 3 --cache {scratch}/cache", 150, 40,
          rehearsal=STEP_REHEARSAL, environment=XLA, columns=STEP),
    Stage("grid", "the order of pooling's blocks", "benchmarks/tune.py --constants POOL_ORDER", 90, 30),
    Stage("nondeterministic", "train step without the deterministic flag",
          "benchmarks/train.py --batches 2 16 --no-peer --bursts 10 --cache {scratch}/cache", 120, 40,
          rehearsal=STEP_REHEARSAL, environment=PALLAS | NONDETERMINISTIC, columns=STEP),
    Stage("guards", "the guard's cost", "benchmarks/guards.py", 150, 40, environment=PALLAS),
    Stage("resume", "killed and resumed, bit for bit",
          "benchmarks/faults.py --root {scratch}/faults --kills 1 --steps 600 --every 20", 150, 60, environment=PALLAS,
          quoted="state identical"),
    Stage("shapes", "configs/shapes.py whole, with its AP",
          "main.py --config configs/shapes.py --workdir {scratch}/shapes --config.data.root={scratch}/data", 200, 60,
          rehearsal=SHAPES_REHEARSAL, environment=PALLAS, quoted="copypaste: "),
    Stage("input", "JPEG files to batches, all cores",
          "benchmarks/input.py --drawn 256 --settings 4 0 --settings 16 0 --settings 1 8 --settings 1 16", 60, 20),
)  # fmt: skip


class Report:
    """report.md and results.jsonl of a run, a context manager; each line is on disk as soon as it is known."""

    def __init__(self, folder: pathlib.Path):
        """Opens both files; a later call's lines follow those of earlier ones."""
        folder.mkdir(parents=True, exist_ok=True)
        self._text = (folder / "report.md").open("a", buffering=1)
        self._rows = (folder / "results.jsonl").open("a", buffering=1)
        self._stage, self._columns, self._quoted, self._results = "", None, None, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._text.close()
        self._rows.close()

    def begin(self, stage: Stage, command: str) -> None:
        """Writes the heading of a stage."""
        self._stage, self._columns, self._quoted = stage.name, None, stage.quoted
        self.line(f"\n# {stage.name}: {stage.shows}\n\n`{command}`\n")

    def line(self, text: str) -> None:
        """Writes a line of a stage's output; the rows of Markdown tables become results."""
        print(text, flush=True)
        print(text, file=self._text)
        cells = [cell.strip() for cell in text.strip().strip("|").split("|")] if text.startswith("|") else None
        if self._quoted and text.startswith(self._quoted):
            self._results = [row for row in self._results if row["stage"] != self._stage]
            self._results.append({"stage": self._stage, "": text})
        if cells is None:
            self._columns = None
        elif self._columns is None:
            self._columns = cells
        elif self._stage and set("".join(cells)) - {"-"}:
            row = {"stage": self._stage} | dict(zip(self._columns, map(as_number, cells), strict=False))
            self._results.append(row)
            print(json.dumps(row), file=self._rows)

    def end(self, status: str, seconds: float) -> None:
        """Writes how a stage ended."""
        self._columns = None
        self.line(f"\n{self._stage}: {status}, {seconds:.0f} s")
        print(json.dumps({"stage": self._stage, "status": status, "seconds": round(seconds, 1)}), file=self._rows)
        self._stage = ""  # the next rows belong to no stage

    def rows(self, stage: str) -> list[dict]:
        """The results of a stage so far."""
        return [row for row in self._results if row["stage"] == stage]


def as_number(cell: str) -> float | str:
    """The number in a table's cell, an int if it is whole; other cells as they are."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell


def run(stage: Stage, command: list[str], environment: dict[str, str], seconds: float, say: Callable) -> str:
    """Runs a stage, gives `say` each line of its output as it comes, and returns how the stage ended."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its own children end with it
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read():
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    end = time.monotonic() + seconds
    try:
        for line in until(lines, end):
            say(line)
        code = process.wait(timeout=max(end - time.monotonic(), 1))
    except (TimeoutError, subprocess.TimeoutExpired):
        return f"stopped after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(timeout=5)
        process.stdout.close()
    if code == ARITHMETIC_IS_WRONG and stage.name == "device":
        return "wrong arithmetic"
    return "done" if code == 0 else f"failed, {'signal ' + str(-code) if code < 0 else 'exit code ' + str(code)}"


def until(lines: queue.Queue, end: float) -> Iterator[str]:
    """Lines up to None; raises TimeoutError at `end`."""
    while True:
        try:
            line = lines.get(timeout=max(end - time.monotonic(), 0.001))
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            return
        yield line


def command_of(stage: Stage, options) -> list[str]:
    """The command that runs a stage."""
    words = stage.command
    if options.rehearse:
        words = stage.rehearsal or stage.command.split()[0] + " --smoke"
    golden = options.golden or options.out
    folders = {"out": options.out, "scratch": options.scratch, "golden": golden}
    return [sys.executable, *(word.format(**folders) for word in words.split())]


def summary(statuses: dict[str, tuple[str, float]], report: Report) -> list[str]:
    """At most `LINES` lines: how each stage ended, and rows of its table, those with bad news first."""
    lines = ["", "| stage | ended | s | result |", "|---|---|---|---|"]
    room = LINES - len(lines) - len(statuses)
    share = max(room // max(len(statuses), 1), 1)
    chosen = {stage.name: stage.columns for stage in STAGES}
    for name, (status, seconds) in statuses.items():
        rows = sorted(report.rows(name), key=lambda row: not any(str(cell) in BAD for cell in row.values()))
        cells = [
            [(column, row[column]) for column in chosen[name] if column in row] or list(row.items())[1:8]
            for row in rows
        ]
        texts = [", ".join(f"{key} {value}".strip() for key, value in row) for row in cells]
        lines.append(f"| {name} | {status} | {seconds:.0f} | {texts[0] if texts else ''} |")
        lines += [f"| | | | {text} |" for text in texts[1 : 1 + share]]
    return lines[:LINES]


def main() -> None:
    """Runs the stages in their order, and prints the table last; exit code 1 if one did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time of all stages together")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the report")
    parser.add_argument(
        "--scratch",
        type=pathlib.Path,
        default=pathlib.Path(tempfile.gettempdir()) / "diou_jax_gpu",
        help="folder for runs, data and compiled programs, %(default)s by default",
    )
    parser.add_argument("--golden", type=pathlib.Path, help="folder of the original's numbers, see golden.py")
    parser.add_argument(
        "--stages", nargs="+", choices=[stage.name for stage in STAGES], help="names of the stages to run; default: all"
    )
    parser.add_argument("--rehearse", action="store_true", help="in small, on the CPU")
    options = parser.parse_args()
    options.out, options.scratch = options.out.absolute(), options.scratch.absolute()
    options.golden = options.golden and options.golden.absolute()
    shutil.rmtree(options.scratch / "shapes", ignore_errors=True)  # a finished run would train nothing
    # A script's folder is searched first, the project's root is not; and stages start in that root.
    given = [os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    # JAX keeps compiled programs there, and XLA the algorithms that it has chosen by timing them.
    cache = str(options.scratch / "cache")
    shared = {"PYTHONPATH": os.pathsep.join([str(ROOT), *given]), "JAX_COMPILATION_CACHE_DIR": cache}
    if options.rehearse:
        shared["JAX_PLATFORMS"] = "cpu"
    with Report(options.out) as report:
        report.line(f"{datetime.datetime.now():%Y-%m-%d %H:%M}, {options.minutes:g} minutes")
        end, statuses = time.monotonic() + 60 * options.minutes, {}
        for stage in STAGES:
            if options.stages and stage.name not in options.stages:
                continue
            command = command_of(stage, options)
            report.begin(stage, " ".join(["python", *command[1:]]))
            began, left = time.monotonic(), end - time.monotonic()
            if left < stage.least:
                status = f"skipped, {max(left, 0):.0f} s were left and it needs {stage.least:.0f}"
            else:
                environment = shared | stage.environment
                if flags := stage.environment.get("XLA_FLAGS"):
                    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
                status = run(stage, command, environment, min(stage.seconds, left), report.line)
            statuses[stage.name] = status, time.monotonic() - began
            report.end(*statuses[stage.name])
            if status == "wrong arithmetic":
                report.line("The device's arithmetic is wrong: nothing else is measured.")
                break
        for line in summary(statuses, report):
            report.line(line)
    sys.exit(any(status != "done" for status, _ in statuses.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the running stage ends, too
    main()
