"""A training run: it is set up or resumed, trained to its end, and rolled back if its updates stay non-finite."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.compilation import prepare
from diou_jax.configs import base
from diou_jax.data.fingerprint import fingerprint
from diou_jax.data.loader import batches
from diou_jax.devices import replicate, to_devices
from diou_jax.errors import UserError
from diou_jax.evaluation.evaluate import Evaluator
from diou_jax.evaluation.metric_names import find_criterion
from diou_jax.optimization import batch_rule
from diou_jax.optimization.state import TrainState, create_state
from diou_jax.options import build
from diou_jax.options.initial_weights import initial_variables
from diou_jax.options.open_options import settle
from diou_jax.options.trackers import make_trackers, require_trackers
from diou_jax.programs import compile_ahead
from diou_jax.reporting.curves import draw_curves
from diou_jax.reporting.run_log import Progress, RunLog, print_line
from diou_jax.reporting.run_page import index_page
from diou_jax.training.diagnosis import Diverged, give_up
from diou_jax.training.hooks import Evaluate, Journal, LogMetrics, Save, Stop, StopEarly, StoppedEarly
from diou_jax.training.loop import run_steps
from diou_jax.training.model_selection import ModelSelection
from diou_jax.training.step import bind_run, step_program
from diou_jax.training.stop import StopRequest
from diou_jax.workdir.run_config import keep_config, read_config
from diou_jax.workdir.run_lock import run_lock

# The options of solver that may change when a run is resumed.
SCHEDULE = ("max_iter", "steps")


def train(
    config: ConfigDict, workdir: str, *, explicit: Collection[str] = frozenset(), then_evaluate: bool = False
) -> Evaluator | None:
    """Trains to `solver.max_iter`, from the newest checkpoint in `workdir` or from the start.

    Args:
      config: the run's config.
      workdir: the run's folder; it is locked until the run ends.
      explicit: dotted names of options that were given by hand; the linear rule leaves them alone.
      then_evaluate: whether an evaluation will follow; its data are then checked before the training starts.

    Returns:
      The evaluator of the run's test sets with its compiled programs, or None if the run needs none.

    Raises:
      UserError: if config, data or work folder are faulty, in which case nothing has been overwritten; or if data,
        storage or numbers fail during training, in which case the last checkpoint remains.
      Stopped: if a signal ended the run; a checkpoint is written.
    """
    config = settle(config, workdir)
    base.check(config, explicit)
    require_trackers(config)
    prepare(config.log.compilation_cache)
    options = {
        "keep": config.checkpoint.keep,
        "strict": config.checkpoint.on_error == "error",
        "keep_best": bool(config.checkpoint.best),
    }
    with run_lock(workdir, active=config.checkpoint.lock), Checkpoints(workdir, **options) as checkpoints:
        run = Run(config, workdir, checkpoints, explicit=explicit, then_evaluate=then_evaluate)
        if (finished := run.why_finished()) is None:
            run.train()
        elif jax.process_index() == 0:
            print_line(f"{workdir} is trained: {finished}")
        return run.evaluator


class Run:
    """A run that is ready to start.

    Attributes:
      rule: batch size, learning rate and schedule.
      start: number of updates done before.
      last: number of the last update.
      evaluator: evaluates the run's test sets; None if the run needs none.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        checkpoints: Checkpoints,
        *,
        explicit: Collection[str] = (),
        then_evaluate: bool = False,
    ):
        """Reads the data, and the newest checkpoint or the weights to start from."""
        self.config, self._workdir, self._checkpoints = config, workdir, checkpoints
        self._is_first = jax.process_index() == 0
        self._dataset = build.with_train_proposals(config, build.dataset(config, config.train.datasets))
        latest = checkpoints.latest()
        before = {} if latest is None else checkpoints.metadata()
        _check_data(workdir, before.get("data"), fingerprint(self._dataset))
        self._rule_options = _rule_options(config, explicit, before)
        self.rule = build.rule(config, **self._rule_options)
        schedule = self.rule.schedule
        self.last = schedule.max_iter
        self._learning_rate = build.learning_rate(config, schedule)
        self._optimizer = build.make_optimizer(config, schedule)
        self._detector = build.detector(config, len(self._dataset.class_names), collect_scale=schedule.collect_scale)
        self._reader = build.train_reader(config, self._dataset, self.rule.batch)
        evaluates = config.test.every or then_evaluate
        self.evaluator = Evaluator(config, workdir, self._dataset.class_names) if evaluates else None
        self._metadata = self._make_metadata(window_start(before, latest or 0, every=config.log.every))
        state, origin = self._begin() if latest is None else self._resume(latest)
        self._selection = self._make_selection()
        self._selection.resume(before)
        self._state = replicate(state)
        self.start = int(state.step)
        if self._is_first:
            self._announce(origin)

    def _make_metadata(self, window_start) -> dict[str, Any]:
        """The metadata of every checkpoint."""
        return {
            "class_names": self._dataset.class_names,
            "category_ids": self._dataset.category_ids,
            "data": fingerprint(self._dataset),
            "batch_size": self.rule.batch.images,
            "config": json.loads(json.dumps(self.config.to_dict())),
            "explicit": sorted(self._rule_options["explicit"]),
            "scale_rate": self._rule_options["scale_rate"],
            "window_start": window_start,
        }

    def _begin(self) -> tuple[TrainState, list[str]]:
        """The state of a new run, and lines on the origin of its weights."""
        variables, origin = initial_variables(self.config, self._detector.network, self._dataset.class_names)
        keep_config(self._workdir, self.config.to_dict(), resuming=False)
        return self._first_state(variables), origin

    def _resume(self, step) -> tuple[TrainState, list[str]]:
        """The state of the newest checkpoint, that of `step`, and lines on it and on a change of the schedule."""
        changes = self._schedule_changes(step)
        keep_config(self._workdir, self.config.to_dict(), resuming=True, write=step <= self.last)
        return self._restore(), [f"resumed at step {step}", *changes]

    def why_finished(self) -> str | None:
        """Why there is nothing to train, in words, or None."""
        if self.start >= self.last:
            return f"step {self.start} of {self.last}; a larger solver.max_iter goes on"
        if reason := self._selection.reason_to_stop():
            return f"step {self.start}, {reason}; a larger train.early_stopping.patience goes on"
        return None

    def train(self) -> None:
        """Trains to the end; rolls back up to `train.max_rollbacks` times if updates stay non-finite."""
        config = self.config
        program = step_program(
            self._detector, self._optimizer, iter_size=config.solver.iter_size, log_every=config.log.every
        )
        update = bind_run(program, seed=config.rng_seed, window_start=self._metadata["window_start"])
        compile_ahead(self._programs(update))
        trackers = make_trackers(config, self._workdir)
        with (
            RunLog(self._workdir, start_step=self.start, active=self._is_first, trackers=trackers) as log,
            index_page(log, active=self._is_first and config.log.report),
            StopRequest() as stop,
        ):
            for rollback in range(config.train.max_rollbacks + 1):
                try:
                    self._attempt(update, log, stop)
                    break
                except StoppedEarly as early:
                    log.event(early.step, early.reason)
                    break
                except Diverged as error:
                    if rollback == config.train.max_rollbacks:
                        options = {"seed": config.rng_seed, "minibatch": self.rule.batch.per_device}
                        give_up(error, self._detector, self._reader, workdir=self._workdir, **options)
                    self._roll_back(error, log)
        if self._is_first:
            draw_curves(self._workdir)

    def _attempt(self, update, log, stop):
        """Trains from the present state to the last update; a hook ends it earlier by an exception."""
        config, start = self.config, int(self._state.step)
        images = self.rule.batch.images * config.solver.iter_size
        journal = Journal(log, Progress(start=start, total=self.last, images_per_step=images))
        log_metrics = LogMetrics(
            journal,
            learning_rate=self._learning_rate,
            images=self._image_ids,
            max_bad_steps=config.train.max_bad_steps,
            start=start,
        )
        selection = self._selection
        save = Save(self._checkpoints, self._metadata, log, every=config.checkpoint.every, selection=selection)
        evaluate = []
        if self.evaluator and config.test.every:
            options = {"every": config.test.every, "averaged": config.test.ema, "page": config.log.report}
            evaluate = [Evaluate(self.evaluator, journal, save=save, selection=selection, **options)]
        stream = batches(self._reader, start, self.last, **build.loading(config))
        run_steps(
            update,
            self._state,
            to_devices(stream, ahead=config.data.prefetch),
            last=self.last,
            log_every=config.log.every,
            hooks=[log_metrics, *evaluate, save, StopEarly(selection, save), Stop(stop, save)],
        )

    def _image_ids(self, update):
        """The ids of the images of an update; updates are numbered from 0."""
        return self._dataset.records.image_ids[self._reader.schedule.entries(update).index].tolist()

    def _programs(self, update):
        """The programs that the run needs: training steps and, if it evaluates, detection."""
        blanks = to_devices(self._reader.blanks(self.start, self.last), ahead=0)
        wanted = [(update, self._state, blank) for blank in blanks]
        if self.evaluator:
            wanted += self.evaluator.programs(self._state.variables)
        return wanted

    def _make_selection(self) -> ModelSelection:
        config, criterion = self.config, None
        if self.evaluator and config.test.every:
            criterion = find_criterion(config.checkpoint.best, self.evaluator.metric_names())
        return ModelSelection(criterion, **config.train.early_stopping)

    def _restore(self) -> TrainState:
        shapes = self._detector.network.variable_shapes()
        return self._checkpoints.restore(jax.eval_shape(self._first_state, shapes))

    def _first_state(self, variables) -> TrainState:
        decay = self.config.solver.ema_decay
        return create_state(variables, self._optimizer, self._detector.loss_names, ema_decay=decay)

    def _roll_back(self, error, log):
        self._checkpoints.finish()
        step = self._checkpoints.latest()
        if step is None:
            variables, _ = initial_variables(self.config, self._detector.network, self._dataset.class_names)
            state = self._first_state(variables)
        else:
            state = self._restore()
        self._selection.resume({} if step is None else self._checkpoints.metadata())
        self._state = replicate(state)
        log.rewind(int(state.step))
        log.event(error.step, f"{error.count} updates skipped in a row: back to step {int(state.step)}")

    def _schedule_changes(self, step) -> list[str]:
        """Lines on a change of the schedule since the run stopped at `step`."""
        before = (read_config(self._workdir) or {}).get("solver", {})
        with_before = self.config.copy_and_resolve_references()
        try:
            with_before.solver.update({name: before[name] for name in SCHEDULE if name in before})
            old, new = build.rule(with_before, **self._rule_options).schedule, self.rule.schedule
        except (TypeError, ValueError):
            return []  # the file has been edited by hand
        if (old.max_iter, old.steps) == (new.max_iter, new.steps):
            return []
        return [
            f"schedule: solver.max_iter {old.max_iter} -> {new.max_iter}, solver.steps {old.steps} -> {new.steps}; "
            f"the rate at step {step} is {self._learning_rate(step):.3g}, it was "
            f"{build.learning_rate(with_before, old)(step):.3g}"
        ]

    def _announce(self, origin):
        """Logs a summary of the run; `origin` are lines on the origin of its weights."""
        dataset, reader, config = self._dataset, self._reader, self.config
        trainable = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        print_line(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)")
        classes = len(dataset.class_names) - 1
        print_line(f"{dataset.name}: {len(dataset)} images, {classes} classes, {reader.steps} steps an epoch")
        loss = f"RPN alone, {config.model.rpn_loss_type}" if config.model.rpn_only else config.model.loss_type
        print_line(f"{loss} loss, {trainable / 1e6:.2f} million parameters")
        for line in self.rule.changes:
            print_line(f"adapted to the batch  {line}")
        for line in origin:
            print_line(line)
        if not (config.resnets.use_gn or config.resnets.use_bn) and not origin:
            logging.warning(
                "the backbone starts from random weights with frozen affine layers, which seldom trains well; set "
                "resnets.imagenet_pretrained_weights to a file (docs/running.md has the addresses of some), or for "
                "random weights resnets.use_gn=True or resnets.use_bn=True"
            )


def _rule_options(config, explicit, before) -> dict[str, Any]:
    """The keyword arguments of `build.rule` for a run with the options `explicit` and its metadata `before`."""
    # A resumed run keeps its learning rate, also if the option is given again; only its length may change.
    may_change = {f"solver.{name}" for name in SCHEDULE} if _was_trained(before) else set(batch_rule.OPTIONS)
    return {
        "batch_size": before.get("batch_size"),
        "explicit": frozenset(before.get("explicit", ())) | (may_change & set(explicit)),
        # Runs from before this option scaled Adam's learning rate, and keep it.
        "scale_rate": before.get("scale_rate", True) if _was_trained(before) else config.solver.type == "SGD",
    }


def _was_trained(metadata: Mapping[str, Any]) -> bool:
    """Whether a checkpoint comes from training; an imported one may have a step, but no update was made here."""
    return "batch_size" in metadata


def window_start(before: Mapping[str, Any], step: int, *, every: int) -> int:
    """The number of updates done when `log.every` got its present value.

    A line of the log has the means of the updates since the line before. The first line after a change of `log.every`
    has the means of the updates since the change.

    Args:
      before: the metadata of the checkpoint from which a run is resumed; empty for a new run.
      step: number of updates done at this start.
      every: log.every at this start.
    """
    then = before.get("config", {}).get("log", {}).get("every", every)
    return before.get("window_start", 0) if _was_trained(before) and then == every else step


def _check_data(workdir, before, now):
    """Raises UserError if a resumed run would get other data."""
    if before is not None and before != now:
        raise UserError(
            f"{workdir} was trained on {before['images']} images with {before['boxes']} boxes, and this data set has "
            f"{now['images']} with {now['boxes']}, or others; bring the data back, or start in another --workdir with "
            f"--config.init.checkpoint={workdir}"
        )
