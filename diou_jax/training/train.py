"""The training run: set up or resume, step, log, save; and what happens when something goes wrong."""

import json
import time
from collections.abc import Collection

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
from diou_jax.options import build
from diou_jax.options.open_options import settle
from diou_jax.programs import compile_ahead
from diou_jax.reporting.curves import draw_curves
from diou_jax.reporting.run_log import Progress, RunLog, read_metrics, say
from diou_jax.training import batch_rule
from diou_jax.training.diagnosis import Diverged, give_up
from diou_jax.training.step import TrainState, create_state, make_train_step
from diou_jax.training.stop import Stopped, StopRequest
from diou_jax.training.watch import Watch
from diou_jax.workdir.run_config import keep_config, read_config
from diou_jax.workdir.run_lock import run_lock

# Of solver's options, those that may change when a run goes on.
SCHEDULE = ("max_iter", "steps")


def train(
    config: ConfigDict, workdir: str, *, explicit: Collection[str] = frozenset(), then_evaluate: bool = False
) -> None:
    """Trains to `solver.max_iter`, from the newest checkpoint in `workdir` or from the start.

    Args:
      config: of the run.
      workdir: its folder, which it holds alone until it ends.
      explicit: dotted names of options that were given by hand and are meant: the linear rule leaves them alone.
      then_evaluate: an evaluation will follow, so that its data must be sound before anything is computed.

    Raises:
      UserError: the config, the data or the work folder does not allow it, and nothing has been overwritten; or the
        data, the storage or the numbers fail on the way, and the last checkpoint stands.
      Stopped: a signal ended the run; a checkpoint is written.
    """
    config = settle(config, workdir)
    base.check(config, explicit)
    prepare(config.log.compilation_cache)
    options = {"keep": config.checkpoint.keep, "strict": config.checkpoint.on_error == "error"}
    with run_lock(workdir, active=config.checkpoint.lock), Checkpoints(workdir, **options) as checkpoints:
        run = Run(config, workdir, checkpoints, explicit, then_evaluate=then_evaluate)
        if run.start < run.rule.max_iter:
            run.go()
        elif jax.process_index() == 0:
            say(f"{workdir} is trained: step {run.start} of {run.rule.max_iter}; a larger solver.max_iter goes on")


class Run:
    """A run that is set up.

    Attributes:
      rule: batch, rate and schedule.
      start: updates done before.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        checkpoints: Checkpoints,
        explicit: Collection[str] = (),
        *,
        then_evaluate: bool = False,
    ):
        """Reads the data, and the newest checkpoint or the weights to start from."""
        self.config, self._workdir, self._checkpoints = config, workdir, checkpoints
        self._first = jax.process_index() == 0
        self._dataset = build.dataset(config, config.train.datasets)
        latest = checkpoints.latest()
        before = {} if latest is None else checkpoints.metadata()
        _check_data(workdir, before.get("data"), fingerprint(self._dataset))
        going_on = "batch_size" in before  # an imported checkpoint has not been trained yet
        explicit = meant(explicit, before.get("explicit", ()), going_on=going_on)
        self._rule_options = {
            "batch_size": before.get("batch_size"),
            "explicit": explicit,
            # Runs that began when Adam's rate followed the batch, too, keep theirs.
            "scale_rate": before.get("scale_rate", True) if going_on else config.solver.type != "Adam",
        }
        self.rule = build.rule(config, **self._rule_options)
        self._rate = build.rate(config, self.rule)
        self._optimizer = build.make_optimizer(config, self.rule)
        self._detector = build.detector(config, len(self._dataset.class_names), collect_scale=self.rule.collect_scale)
        self._reader = build.train_reader(config, self._dataset, self.rule)
        evaluates = config.test.every or then_evaluate
        self._evaluator = Evaluator(config, workdir, self._dataset.class_names) if evaluates else None
        self._metadata = {
            "class_names": self._dataset.class_names,
            "category_ids": self._dataset.category_ids,
            "data": fingerprint(self._dataset),
            "batch_size": self.rule.batch_size,
            "config": json.loads(json.dumps(config.to_dict())),
            "explicit": sorted(explicit),
            "scale_rate": self._rule_options["scale_rate"],
        }
        if latest is None:
            variables, origin = build.initial_variables(config, self._detector.network, self._dataset.class_names)
            state = self._first_state(variables)
            keep_config(workdir, config.to_dict(), resuming=False)
        else:
            lengthened = self._lengthened(latest)
            keep_config(workdir, config.to_dict(), resuming=True, write=latest <= self.rule.max_iter)
            state = self._restore()
            origin = [f"resumed at step {latest}", *lengthened]
        self._state = replicate(state)
        self.start = int(state.step)
        if self._first:
            self._announce(origin)

    def go(self) -> None:
        """Trains to the end; rolls back where updates cannot be taken, as often as `train.max_rollbacks` allows."""
        config = self.config
        self._step_function = make_train_step(
            self._detector,
            self._optimizer,
            seed=config.rng_seed,
            iter_size=config.solver.iter_size,
            log_every=config.log.every,
        )
        compile_ahead(self._programs())
        with RunLog(self._workdir, start_step=self.start, active=self._first) as log, StopRequest() as stop:
            self._log, self._stop = log, stop
            self._watch = Watch(read_metrics(self._workdir) if self._first else ())
            for rollback in range(config.train.max_rollbacks + 1):
                try:
                    self._steps()
                    break
                except Diverged as error:
                    if rollback == config.train.max_rollbacks:
                        give_up(self._detector, self._state, self._reader, self._workdir, config, error.step)
                    self._roll_back(error)
        if self._first:
            draw_curves(self._workdir)

    def _programs(self):
        """The programs that the run asks for, of its training steps and, where it evaluates, of detection."""
        blanks = to_devices(self._reader.blanks(self.start, self.rule.max_iter), ahead=0)
        wanted = [(self._step_function, self._state, blank) for blank in blanks]
        if self._evaluator and (self.config.test.every or self.config.log.compilation_cache):
            wanted += self._evaluator.programs(self._state.variables)
        return wanted

    def _steps(self):
        config, last = self.config, self.rule.max_iter
        start = self._reported = int(self._state.step)
        self._progress = Progress(
            start=start, total=last, images_per_step=self.rule.batch_size * config.solver.iter_size
        )
        stream = batches(self._reader, start, last, **build.loading(config))
        for step, batch in enumerate(to_devices(stream, ahead=config.data.prefetch), start=start + 1):
            began = time.perf_counter()
            self._state, metrics = self._step_function(self._state, batch)
            if step == start + 1:
                jax.block_until_ready(metrics)
                if self._first:
                    say(f"the first step took {time.perf_counter() - began:.1f} s")
                self._progress.restart(step)
            meeting = step % config.log.every == 0 or step == last
            if meeting:
                self._report(step, metrics)
                self._checkpoints.check()
            saved = (step % config.checkpoint.every == 0 or step == last) and self._save(step, final=step == last)
            if config.test.every and step % config.test.every == 0 and step < last:
                for row in self._evaluator(self._state.variables, step, self._log):
                    self._look(step, row)
                self._progress.restart(step)
            if (number := self._stop.signal(meeting=meeting)) and step < last:
                if not saved:
                    self._save(step, final=True)
                self._checkpoints.finish()
                raise Stopped(number, step)

    def _report(self, step, metrics):
        """A line of the log; says which updates were skipped since the last one."""
        values, guard = jax.device_get((metrics, self._state.guard))
        values = {name: float(value) for name, value in values.items()}
        speed = self._progress.speed(step)
        values |= {"rate": float(self._rate(step - 1)), "images_per_second": speed}
        self._log.scalars(step, values)
        if self._first:
            say(self._progress.line(step, speed, values))
        for bad in sorted(number for number in guard.recent.tolist() if number >= self._reported):
            ids = self._dataset.records.image_ids[self._reader.schedule.entries(bad).index].tolist()
            self._log.event(bad + 1, f"update skipped, loss or gradient not finite; images {ids}")
        self._reported = step
        self._look(step, values)
        if guard.in_a_row >= self.config.train.max_bad_steps:
            raise Diverged(step, int(guard.in_a_row))

    def _look(self, step, row):
        if self._first and row and (problem := self._watch.look(row)):
            self._log.event(step, problem)

    def _save(self, step, *, final) -> bool:
        """Saves, unless the last update was skipped: a rollback needs a state of before."""
        if not final and int(self._state.guard.in_a_row) > 0:
            self._log.event(step, "no checkpoint while updates are being skipped")
            return False
        self._checkpoints.save(self._state, step, self._metadata)
        return True

    def _restore(self) -> TrainState:
        shapes = self._detector.network.variable_shapes()
        like = jax.eval_shape(
            lambda variables: create_state(variables, self._optimizer, self._detector.loss_names), shapes
        )
        return self._checkpoints.restore(like)

    def _roll_back(self, error):
        self._checkpoints.finish()
        step = self._checkpoints.latest()
        if step is None:
            variables, _ = build.initial_variables(self.config, self._detector.network, self._dataset.class_names)
            state = self._first_state(variables)
        else:
            state = self._restore()
        self._state = replicate(state)
        self._log.rewind(int(state.step))
        self._log.event(error.step, f"{error.count} updates skipped in a row: back to step {int(state.step)}")

    def _lengthened(self, step) -> list[str]:
        """What has become of the schedule since `step`; nothing where it is the same."""
        before = (read_config(self._workdir) or {}).get("solver", {})
        with_before = self.config.copy_and_resolve_references()
        try:
            with_before.solver.update({name: before[name] for name in SCHEDULE if name in before})
            old, new = build.rule(with_before, **self._rule_options), self.rule
        except (TypeError, ValueError):
            return []  # somebody has edited the file
        if (old.max_iter, old.steps) == (new.max_iter, new.steps):
            return []
        return [
            f"schedule: solver.max_iter {old.max_iter} -> {new.max_iter}, solver.steps {old.steps} -> {new.steps}; "
            f"the rate at step {step} is {self._rate(step):.3g}, it was {build.rate(with_before, old)(step):.3g}"
        ]

    def _announce(self, origin):
        """Says what is about to be trained; `origin` are lines on where its weights come from."""
        dataset, reader, config = self._dataset, self._reader, self.config
        trainable = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        say(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)")
        classes = len(dataset.class_names) - 1
        say(f"{dataset.name}: {len(dataset)} images, {classes} classes, {reader.steps} steps an epoch")
        say(f"{config.model.loss_type} loss, {trainable / 1e6:.2f} million parameters")
        for line in self.rule.changes:
            say(f"adapted to the batch  {line}")
        for line in origin:
            say(line)
        if not config.resnets.use_gn and not origin:
            logging.warning(
                "the body starts from random weights behind frozen affine layers, which seldom trains well; "
                "resnets.imagenet_pretrained_weights takes a file, resnets.use_gn=True is meant for random weights"
            )


def meant(given: Collection[str], before: Collection[str], *, going_on: bool) -> frozenset[str]:
    """The options that the linear rule leaves alone.

    Where a run goes on its rate is what it was, whether the options are given again or not; only its length may change.

    Args:
      given: options of this start.
      before: those that the run has kept.
      going_on: whether there is a run.
    """
    schedule = {f"solver.{name}" for name in SCHEDULE}
    return frozenset(before) | (schedule & set(given) if going_on else set(batch_rule.OPTIONS) & set(given))


def _check_data(workdir, before, now):
    """Raises UserError where a run would go on with other data."""
    if before is not None and before != now:
        raise UserError(
            f"{workdir} was trained on {before['images']} images with {before['boxes']} boxes, and this data set has "
            f"{now['images']} with {now['boxes']}, or others; bring the data back, or start in another --workdir with "
            f"--config.init.checkpoint={workdir}"
        )
