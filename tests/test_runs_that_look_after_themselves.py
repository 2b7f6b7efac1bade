"""Whole runs with a moving average, the best checkpoint and early stopping, on two devices, interrupted and not."""

import shutil

import jax
import numpy as np
import pytest
from test_train import assert_same_bits

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.data.loader import batches
from diou_jax.evaluation import evaluate
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.options.initial_weights import initial_variables
from diou_jax.prediction.detector import Detector
from diou_jax.reporting.run_log import read_metrics
from diou_jax.training import train

pytestmark = pytest.mark.slow

# AP of the evaluations at steps 2, 4, ...: best at 4, and two evaluations later, at 8, the patience of 2 is over.
ANSWERS = {2: 0.2, 4: 0.5, 6: 0.3, 8: 0.4, 10: 0.1, 12: 0.1}
DECAY = 0.75


@pytest.fixture(scope="module")
def full_config(tiny_config):
    def make():
        config = tiny_config()
        config.solver.max_iter, config.solver.ema_decay = 12, DECAY
        config.test.every, config.checkpoint.keep, config.log.images = 2, 1, 0
        config.train.early_stopping.patience = 2
        return config

    return make


@pytest.fixture(autouse=True)
def judged(monkeypatch):
    """The network is really evaluated; AP alone is made up, since these few steps teach it nothing."""
    original = evaluate.Evaluator._evaluate

    def answered(self, dataset, reader, variables, out):
        return original(self, dataset, reader, variables, out) | {"eval/AP": ANSWERS[out.step]}

    monkeypatch.setattr(evaluate.Evaluator, "_evaluate", answered)


def saved_state(config, workdir, which="last"):
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    optimizer = build.make_optimizer(config, build.rule(config).schedule)
    variables = detector.network.init_variables(jax.random.key(0))
    like = create_state(variables, optimizer, detector.loss_names, ema_decay=config.solver.ema_decay)
    with Checkpoints(workdir, which=which, create=False) as checkpoints:
        return checkpoints.chosen(), checkpoints.restore(like), checkpoints.metadata()


def rows_of(workdir):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in read_metrics(workdir)]


@pytest.fixture(scope="module")
def whole(full_config, tmp_path_factory):
    """A run that was never interrupted, and the parameters after each update."""
    workdir, seen = tmp_path_factory.mktemp("runs") / "whole", []
    with pytest.MonkeyPatch.context() as patch:
        original, run_steps = evaluate.Evaluator._evaluate, train.run_steps

        def answered(self, dataset, reader, variables, out):
            return original(self, dataset, reader, variables, out) | {"eval/AP": ANSWERS[out.step]}

        def watched(*arguments, hooks, **options):
            def watch(moment):
                seen.append(jax.device_get((moment.state.params, moment.state.ema.params)))

            return run_steps(*arguments, hooks=[watch, *hooks], **options)

        patch.setattr(evaluate.Evaluator, "_evaluate", answered)
        patch.setattr(train, "run_steps", watched)
        train.train(full_config(), str(workdir))
    return workdir, seen


def test_it_ends_early_and_keeps_the_best_and_the_last(whole, full_config):
    workdir, seen = whole
    assert len(seen) == 8
    steps = {which: saved_state(full_config(), workdir, which)[0] for which in ("best", "last")}
    assert steps == {"best": 4, "last": 8}
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [4, 8]
    best = [(row["step"], row["best/AP"], row["best/step"]) for row in read_metrics(workdir) if "best/AP" in row]
    assert best == [(2, 0.2, 2), (4, 0.5, 4), (6, 0.5, 4), (8, 0.5, 4)]
    assert "AP of val has not improved on 0.5 of step 4 in 2 evaluations" in (workdir / "events.jsonl").read_text()


def test_the_average_is_that_of_the_parameters_of_each_update(whole):
    _, seen = whole
    for taken in range(1, len(seen)):
        keep = min(DECAY, (1 + taken) / (10 + taken))
        before, (new, average) = seen[taken - 1][1], seen[taken]
        for old, now, found in zip(*map(jax.tree.leaves, (before, new, average)), strict=True):
            wanted = keep * np.float64(old) + (1 - keep) * np.float64(now)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, seen[-1]), strict=True))


class KilledError(Exception):
    """Ends a run at once."""


def test_interrupted_anywhere_it_ends_bit_for_bit_where_the_whole_one_ended(whole, full_config, tmp_path, monkeypatch):
    """Between an evaluation and its checkpoint, the best one, and between two evaluations after it."""

    def killed_before(stop):
        def ending(reader, start, end, **options):
            for number, batch in enumerate(batches(reader, start, end, **options)):
                if start + number >= stop:
                    raise KilledError
                yield batch

        return train, "batches", ending

    def killed_instead_of_saving(step):
        def save(self, state, number, metadata):
            if number == step:
                raise KilledError
            original(self, state, number, metadata)

        original = Checkpoints.save
        return Checkpoints, "save", save

    for kill in (killed_instead_of_saving(4), killed_before(7)):
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(*kill)
            train.train(full_config(), str(tmp_path))
    train.train(full_config(), str(tmp_path))
    for which in ("best", "last"):
        step, state, metadata = saved_state(full_config(), tmp_path, which)
        wanted_step, wanted, wanted_metadata = saved_state(full_config(), whole[0], which)
        assert step == wanted_step and metadata == wanted_metadata
        assert_same_bits(state, wanted)
    assert rows_of(tmp_path) == rows_of(whole[0])


def test_a_stopped_run_stays_stopped_and_a_longer_patience_goes_on(whole, full_config, tmp_path, capsys):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    train.train(full_config(), str(workdir))
    assert "is trained: step 8, early stopping: AP of val" in capsys.readouterr().out
    config = full_config()
    config.train.early_stopping.patience = 3
    with Checkpoints(workdir) as checkpoints:
        assert train.Run(config, str(workdir), checkpoints).why_finished() is None


def test_the_average_is_evaluated_and_the_raw_weights_on_request(whole, full_config, monkeypatch):
    seen = {}

    def noted(self, variables, step, log):
        seen[step, evaluate_ema] = jax.device_get(variables)
        return []

    monkeypatch.setattr(evaluate.Evaluator, "__call__", noted)
    _, state, _ = saved_state(full_config(), whole[0], "best")
    for evaluate_ema in (True, False):
        config = full_config()
        config.test.ema = evaluate_ema
        evaluate.evaluate(config, str(whole[0]), checkpoint="best")
    assert_same_bits(seen[4, True], state.averaged)
    assert_same_bits(seen[4, False], state.variables)


@pytest.mark.parametrize("which", ["last", "best"])
def test_fine_tuning_takes_the_average_of_the_named_checkpoint(whole, full_config, which):
    _, state, _ = saved_state(full_config(), whole[0], which)
    config = full_config()
    config.init.checkpoint, config.init.which = str(whole[0]), which
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    variables, _ = initial_variables(config, detector.network, data.class_names)
    assert_same_bits(variables["params"], state.ema.params)


def test_a_detector_is_made_of_any_checkpoint(whole, full_config):
    config = full_config()
    for which, step in (("best", "4"), ("last", "8")):
        ours, same = (Detector.from_checkpoint(whole[0], config, checkpoint=name) for name in (which, step))
        assert_same_bits(ours._variables, same._variables)
