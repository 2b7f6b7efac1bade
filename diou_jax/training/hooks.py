"""The hooks of the training loop: log, checkpoints, evaluation, and the request to stop."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.errors import Stopped, UserError
from diou_jax.evaluation.evaluate import Evaluator
from diou_jax.reporting.run_log import Progress, RunLog, print_line, read_metrics
from diou_jax.reporting.run_page import write_index
from diou_jax.training.diagnosis import Diverged
from diou_jax.training.loop import Moment
from diou_jax.training.model_selection import ModelSelection
from diou_jax.training.stop import StopRequest
from diou_jax.training.watch import Watch


class Journal:
    """The log of a run, together with the clock of the progress line and the watch for a collapse.

    Attributes:
      log: rows of metrics, and events.
      progress: the clock of the progress line.
    """

    def __init__(self, log: RunLog, progress: Progress):
        """Reads the existing rows of the run."""
        self.log, self.progress = log, progress
        self._is_first = jax.process_index() == 0
        self._watch = Watch(read_metrics(log.workdir) if self._is_first else ())

    def print_line(self, line: str) -> None:
        """Prints a line, in the first process only."""
        if self._is_first:
            print_line(line)

    def note_collapse(self, step: int, row: Mapping[str, float]) -> None:
        """Writes an event if a new row shows that the run has collapsed."""
        if self._is_first and row and (problem := self._watch.sign_of_collapse(row)):
            self.log.event(step, problem)


class LogMetrics:
    """Writes a line of the log at every logged step, and an event for each update skipped since the last line."""

    def __init__(
        self,
        journal: Journal,
        *,
        learning_rate: Callable[[int], Any],
        images: Callable[[int], list],
        max_bad_steps: int,
        start: int,
    ):
        """Starts the clock of the first step.

        Args:
          journal: the run's journal.
          learning_rate: the learning rate as a function of the number of updates done.
          images: ids of the images of an update, as a function of its number from 0.
          max_bad_steps: number of skipped updates in a row that raises Diverged.
          start: number of updates done before.
        """
        self._journal, self._learning_rate, self._images = journal, learning_rate, images
        self._max_bad_steps, self._reported, self._start = max_bad_steps, start, start
        self._began = time.perf_counter()

    def __call__(self, moment: Moment) -> None:
        """Writes the line; raises Diverged after too many skipped updates."""
        if moment.step == self._start + 1:
            jax.block_until_ready(moment.metrics)
            self._journal.print_line(f"the first step took {time.perf_counter() - self._began:.1f} s")
            self._journal.progress.restart(moment.step)
        if not moment.is_logged:
            return
        step, journal = moment.step, self._journal
        values, guard = jax.device_get((moment.metrics, moment.state.guard))
        values = {name: float(value) for name, value in values.items()}
        speed = journal.progress.speed(step)
        values |= {"rate": float(self._learning_rate(step - 1)), "images_per_second": speed}
        journal.log.scalars(step, values)
        journal.print_line(journal.progress.line(step, speed, values))
        for bad in sorted(number for number in guard.recent.tolist() if number >= self._reported):
            reason = "update skipped, loss or gradient not finite"
            journal.log.event(bad + 1, f"{reason}; images {self._images(bad)}")
        self._reported = step
        journal.note_collapse(step, values)
        if guard.in_a_row >= self._max_bad_steps:
            raise Diverged(step, int(guard.in_a_row), moment.state)


class Save:
    """Writes a checkpoint at every `every`-th step, at the last one, and where an evaluation was the best so far."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        metadata: Mapping[str, Any],
        log: RunLog,
        *,
        every: int,
        selection: ModelSelection,
    ):
        """Takes the run's parts.

        Args:
          checkpoints: the checkpoints of the run.
          metadata: the metadata of every checkpoint; those of `selection` are added.
          log: the log of the run.
          every: number of updates between checkpoints.
          selection: the evaluations of the run.
        """
        self._checkpoints, self._metadata, self._log, self._every = checkpoints, metadata, log, every
        self._selection, self._saved = selection, -1

    def __call__(self, moment: Moment) -> None:
        """Saves if a checkpoint is due; raises UserError if the previous one could not be written."""
        if moment.is_logged:
            self._checkpoints.raise_failure()
        if not (moment.is_last or moment.step % self._every == 0 or self._is_best(moment.step)):
            return
        # A rollback needs a state from before the skipped updates.
        if not moment.is_last and int(moment.state.guard.in_a_row) > 0:
            self._log.event(moment.step, "no checkpoint while updates are being skipped")
            return
        self._save(moment)

    def finish(self, moment: Moment) -> None:
        """Saves this step, unless it is saved already, and waits until the checkpoint is written."""
        if self._saved != moment.step:
            self._save(moment)
        self._checkpoints.finish()

    def _is_best(self, step):
        if not self._selection.was_evaluated(step):
            return False
        self._checkpoints.finish()  # the previous checkpoint may be the best one, and counts once it is complete
        return self._checkpoints.would_be_best(step, self._selection.metadata(step))

    def _save(self, moment):
        metadata = {**self._metadata, **self._selection.metadata(moment.step)}
        self._checkpoints.save(moment.state, moment.step, metadata)
        self._saved = moment.step


class Evaluate:
    """Evaluates at every `every`-th step and at the last one; it precedes `Save`, whose checkpoints hold the result."""

    def __init__(
        self,
        evaluator: Evaluator,
        journal: Journal,
        *,
        every: int,
        save: Save,
        selection: ModelSelection,
        averaged: bool = True,
        page: bool = False,
    ):
        """Takes the run's parts.

        Args:
          evaluator: evaluates the run's test sets.
          journal: the run's journal.
          every: number of updates between evaluations.
          save: the hook that writes checkpoints, called after this one.
          selection: records the evaluations.
          averaged: whether the moving average is evaluated if there is one.
          page: whether each evaluation writes the page of the run anew.
        """
        self._evaluator, self._journal, self._every = evaluator, journal, every
        self._save, self._selection, self._averaged = save, selection, averaged
        self._page = page and jax.process_index() == 0

    def __call__(self, moment: Moment) -> None:
        """Evaluates if an evaluation is due; if it fails because of data or files, a checkpoint is still written."""
        regular = moment.step % self._every == 0
        if not (regular or moment.is_last):
            return
        state, log = moment.state, self._journal.log
        try:
            rows = self._evaluator(state.averaged if self._averaged else state.variables, moment.step, log)
        except (UserError, OSError):
            if jax.process_count() == 1:  # of several processes one may not have failed, and saving would wait for it
                self._save.finish(moment)
            raise
        for row in rows:
            self._journal.note_collapse(moment.step, row)
        if points := self._selection.record(moment.step, rows, counts=regular):
            log.scalars(moment.step, points)
            (name, value), (_, step) = points.items()
            self._journal.print_line(f"best so far: {name.removeprefix('best/')} {value:.4g} at step {step:.0f}")
        if self._page:
            write_index(log, training=True)
        self._journal.progress.restart(moment.step)


class StopEarly:
    """Ends the loop, with a checkpoint of the current step, when evaluations have stopped getting better."""

    def __init__(self, selection: ModelSelection, save: Save):
        """Takes the evaluations of the run and the hook that writes checkpoints."""
        self._selection, self._save = selection, save

    def __call__(self, moment: Moment) -> None:
        """Raises StoppedEarly after an evaluation that exhausts the patience."""
        if moment.is_last or not self._selection.was_evaluated(moment.step):
            return
        if reason := self._selection.reason_to_stop():
            self._save.finish(moment)
            raise StoppedEarly(moment.step, reason)


class StoppedEarly(Exception):  # noqa: N818
    """The run is finished before its last step; holds the step and the reason."""

    def __init__(self, step: int, reason: str):
        super().__init__(reason)
        self.step, self.reason = step, reason


class Stop:
    """Ends the loop after a signal, with a checkpoint of the current step."""

    def __init__(self, request: StopRequest, save: Save):
        """Takes the request, and the hook that writes checkpoints."""
        self._request, self._save = request, save

    def __call__(self, moment: Moment) -> None:
        """Raises Stopped if a signal has come."""
        if (number := self._request.signal(synchronised=moment.is_logged)) and not moment.is_last:
            self._save.finish(moment)
            raise Stopped(number, moment.step)
