"""The log of a run: progress lines, metrics.jsonl, events.jsonl, TensorBoard and experiment trackers."""

import contextlib
import io
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from diou_jax.reporting import picture_files
from diou_jax.reporting.board import Board
from diou_jax.reporting.series import Series
from diou_jax.reporting.tracking import Background
from diou_jax.workdir.metrics_file import append_row, drop_rows, read_rows, set_aside

# Longer side in pixels and JPEG quality of TensorBoard's pictures.
BOARD_SIDE, BOARD_QUALITY = 1280, 80

TRACKERS_SECONDS = 60  # the end of a log waits so long for its trackers

METRICS_FILE, EVENTS_FILE = "metrics.jsonl", "events.jsonl"
BOARD = "TensorBoard's events"


class RunLog:
    """A context manager that writes the log of a run in `workdir`; of several processes only the first writes.

    `metrics.jsonl` has one JSON object per line. Rows of training hold ``step``, the losses, ``rate`` and
    ``images_per_second``; rows of evaluation hold ``step``, the name of their ``dataset``, ``eval/...`` and, in
    ``options``, the options that differ from the run's. A number that is not finite is written as null. Rows of
    evaluations during training are followed by rows with ``best/...``.

    Attributes:
      workdir: the run's folder.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        start_step: int | None = None,
        active: bool = True,
        trackers: Sequence[Callable[[], Background]] = (),
    ):
        """Opens the log; rows of steps after `start_step`, which a resumed run will repeat, are dropped.

        Only a training run has a `start_step`; only it may move damaged files aside. A log never ends a run: a file
        that cannot be written is named once and left out. `trackers` are begun if the log is active.
        """
        self.workdir = pathlib.Path(workdir)
        self._active = active
        self._board: Board | None = None
        self._named: set[str] = set()
        self._trackers: list[Background] = []
        if active:
            with self.spared("the log"):
                self.workdir.mkdir(parents=True, exist_ok=True)
            if start_step is not None:
                self._tidy(start_step)
            with self.spared(BOARD):
                self._board = Board(self.workdir / "tensorboard", start_step=start_step)
            self._trackers = [begin() for begin in trackers]

    def _tidy(self, start_step):
        board = self.workdir / "tensorboard"
        with self.spared("the log"):
            if problem := drop_rows(self.workdir / METRICS_FILE, start_step):
                logging.warning("%s", problem)
            if os.path.lexists(board) and not board.is_dir():
                logging.warning("%s is no folder; it was moved to %s", board, set_aside(board))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._on_board(Board.close)
        for tracker in self._trackers:
            tracker.close(failed=kind is not None)
        latest = time.monotonic() + TRACKERS_SECONDS
        for tracker in self._trackers:
            tracker.join(max(latest - time.monotonic(), 0))

    @contextlib.contextmanager
    def spared(self, what: str):
        """A context in which an OSError becomes a warning, once for each `what`, and the run goes on."""
        try:
            yield
        except OSError as error:
            if what not in self._named:
                self._named.add(what)
                logging.warning("%s cannot be written, and the run goes on without: %s", what, error)

    def _on_board(self, call: Callable[[Board], None]) -> None:
        """Calls TensorBoard's file, if there is one; after a failure there is none."""
        board, self._board = self._board, None
        if board is not None:
            with self.spared(BOARD):
                call(board)
                self._board = board

    def scalars(
        self,
        step: int,
        values: Mapping[str, float],
        *,
        dataset: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a row of metrics.jsonl and points of all curves.

        Args:
          step: number of updates.
          values: the points by name.
          dataset: the data set of an evaluation.
          options: the options of an evaluation that differ from the run's; the row has them, if there are any.
        """
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        about: dict[str, Any] = {"step": step} if dataset is None else {"step": step, "dataset": dataset}
        about |= {"options": dict(options)} if options else {}
        with self.spared(METRICS_FILE):
            append_row(self.workdir / METRICS_FILE, about | row)
        points = {_tag(name, Series.of(about)): value for name, value in values.items() if math.isfinite(value)}
        self._on_board(lambda board: board.scalars(step, points))
        for tracker in self._trackers:
            tracker.scalars(step, points)

    def event(self, step: int, text: str) -> None:
        """Logs an incident: a line of events.jsonl, and a warning."""
        logging.warning("step %d: %s", step, text)
        if self._active:
            with self.spared(EVENTS_FILE):
                append_row(self.workdir / EVENTS_FILE, {"step": step, "event": text})

    def rewind(self, step: int) -> None:
        """Drops the rows of steps after `step`, which will be repeated."""
        if self._active:
            self._tidy(step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows a uint8 BGR (H, W, 3) picture, scaled down since one is kept for every evaluation."""
        if not (self._board or self._trackers):
            return
        encoded = picture_files.encode(image, quality=BOARD_QUALITY, longest_side=BOARD_SIDE)
        shown = Image.open(io.BytesIO(encoded))
        for tracker in self._trackers:
            tracker.image(step, name, shown.copy())
        self._on_board(lambda board: board.image(step, name, encoded, size=shown.size))


def _tag(name: str, series: Series) -> str:
    """The name of a curve: train/..., best/..., or eval/ or val/ and the series; UTF-8 has no lone surrogates."""
    if series.dataset is None:
        tag = name if name.startswith("best/") else f"train/{name}"
    else:
        kind, rest = name.split("/", 1) if name.startswith(("eval/", "val/")) else ("eval", name)
        tag = f"{kind}/{series.title()}/{rest}"
    return tag.encode("utf-8", "backslashreplace").decode()


class Progress:
    """The progress line of training, and its clock.

    The clock is restarted after the first update, so that the time of compilation does not enter the speed.
    """

    def __init__(self, *, start: int, total: int, images_per_step: int):
        self.total = total
        self.images_per_step = images_per_step
        self._mark = (start, time.perf_counter())

    def restart(self, step: int) -> None:
        """Restarts the clock after time that was not spent on steps."""
        self._mark = (step, time.perf_counter())

    def speed(self, step: int) -> float:
        """Images per second since the last call or `restart`; 0 if no step was taken since."""
        now = time.perf_counter()
        before, then = self._mark
        self._mark = (step, now)
        return (step - before) * self.images_per_step / max(now - then, 1e-9)

    def line(self, step: int, speed: float, metrics: Mapping[str, float]) -> str:
        """The line, with every loss: ``step 400/1000  rate 0.002  31.5 img/s  0:01:53 left  loss 1.203  ...``."""
        parts = [f"step {step}/{self.total}", f"rate {metrics['rate']:.3g}"]
        if speed > 0:
            hours, seconds = divmod(round((self.total - step) * self.images_per_step / speed), 3600)
            parts += [f"{speed:.1f} img/s", f"{hours}:{seconds // 60:02d}:{seconds % 60:02d} left"]
        losses = {name.removeprefix("loss_"): value for name, value in metrics.items() if name.startswith("loss")}
        parts += [f"{label} {value:.3f}" for label, value in losses.items()]
        return "  ".join(parts)


def print_line(line: str) -> None:
    """Prints a line without buffering; characters that the output's encoding lacks are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout, flush=True)


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """The readable rows of metrics.jsonl; of repeated evaluations only the last is returned.

    An evaluation repeats another of the same step and `series`.
    """
    rows = read_rows(pathlib.Path(workdir) / METRICS_FILE)
    evaluations = {number for number, row in enumerate(rows) if any(name.startswith("eval/") for name in row)}
    last = {(rows[number]["step"], Series.of(rows[number])): number for number in sorted(evaluations)}
    return [
        row
        for number, row in enumerate(rows)
        if number not in evaluations or last[row["step"], Series.of(row)] == number
    ]
