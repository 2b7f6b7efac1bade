"""A run that is told to stop, whose numbers or disk fail, and that goes on with other devices or data."""

import functools
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from fast_compilation import FLAGS

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.data.loader import batches
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.errors import Stopped, UserError
from diou_jax.evaluation import evaluate
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.reporting.run_log import read_metrics
from diou_jax.training import diagnosis, train


def saved_state(config, workdir):
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    optimizer = build.make_optimizer(config, build.rule(config).schedule)
    first = functools.partial(create_state, optimizer=optimizer, loss_names=detector.loss_names)
    with Checkpoints(workdir, create=False) as checkpoints:
        return checkpoints.restore(jax.eval_shape(first, detector.network.variable_shapes()))


def same_bits(a, b):
    for (path, x), (_, y) in zip(*(jax.tree_util.tree_leaves_with_path(tree) for tree in (a, b)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


def events(workdir):
    file = pathlib.Path(workdir) / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def losses(workdir):
    return [(row["step"], row["loss"]) for row in read_metrics(workdir) if "loss" in row]


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train.train(tiny_config(), str(workdir))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_goes_on_later(tiny_config, whole, tmp_path, monkeypatch, number):
    def telling(reader, start, end, **options):
        for position, batch in enumerate(batches(reader, start, end, **options)):
            if start + position == 4:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(train, "batches", telling)
        with pytest.raises(Stopped, match="the same command goes on") as stopped:
            train.train(tiny_config(), str(tmp_path))
    assert stopped.value.exit_code == 128 + number and signal.getsignal(number) is before
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert 0 < checkpoints.latest() < 8
    train.train(tiny_config(), str(tmp_path))
    same_bits(saved_state(tiny_config(), tmp_path), saved_state(tiny_config(), whole))
    assert losses(tmp_path) == losses(whole)


def poisoned(monkeypatch, is_bad):
    """Makes the class loss NaN wherever ``is_bad(batch)`` holds."""
    original = FasterRCNN._losses

    def losses(self, network, batch, keys):
        total, metrics = original(self, network, batch, keys)
        poison = jnp.where(is_bad(batch), jnp.nan, 1.0)
        return total * poison, metrics | {"loss": total * poison, "loss_cls": metrics["loss_cls"] * poison}

    # The training step and the diagnosis after it both call this one.
    monkeypatch.setattr(FasterRCNN, "_losses", losses)


@pytest.mark.slow
def test_an_image_that_gives_nan_costs_its_own_updates_only(tiny_config, tmp_path, monkeypatch):
    config = tiny_config()
    data = build.dataset(config, config.train.datasets)
    schedule = build.train_reader(config, data, build.rule(config).batch).schedule
    shown = [schedule.entries(step).index for step in range(8)]
    victim = int(shown[3][0])
    bad = [step for step in range(8) if victim in shown[step]]
    poisoned(monkeypatch, lambda batch: (batch.index == victim).any())
    train.train(config, str(tmp_path))
    state = saved_state(config, tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert int(state.guard.total) == len(bad) and int(state.step) == 8
    assert [event["step"] for event in events(tmp_path)] == [step + 1 for step in bad]
    assert str(data.records.image_ids[victim]) in events(tmp_path)[0]["event"]
    assert sum(row["skipped"] for row in read_metrics(tmp_path)) == len(bad)
    assert all(row["loss"] is None or np.isfinite(row["loss"]) for row in read_metrics(tmp_path))


@pytest.mark.slow
def test_a_passing_fault_is_rolled_back_and_leaves_no_trace_in_the_weights(tiny_config, whole, tmp_path, monkeypatch):
    """For a while every batch is damaged, as by a broken device; afterwards the run repeats these steps."""
    faulty = [True]

    def damaged(reader, start, end, **options):
        for position, batch in enumerate(batches(reader, start, end, **options)):
            if faulty[0] and start + position >= 4:
                batch = batch.replace(rows=batch.rows.replace(weight=np.full_like(batch.rows.weight, np.nan)))
            yield batch
        faulty[0] = False

    original = train.Run._roll_back

    def mended(self, error, log):
        faulty[0] = False
        original(self, error, log)

    monkeypatch.setattr(train, "batches", damaged)
    monkeypatch.setattr(train.Run, "_roll_back", mended)
    config = tiny_config()
    config.train.max_bad_steps = 2
    train.train(config, str(tmp_path))
    same_bits(saved_state(config, tmp_path), saved_state(config, whole))
    assert losses(tmp_path) == losses(whole)
    assert "back to step 3" in events(tmp_path)[-1]["event"]


@pytest.mark.slow
def test_a_lasting_fault_ends_the_run_with_a_name_and_a_file(tiny_config, tmp_path, monkeypatch):
    poisoned(monkeypatch, lambda batch: True)
    config = tiny_config()
    config.train.max_bad_steps, config.train.max_rollbacks = 2, 1
    with pytest.raises(UserError, match="loss_cls is not finite") as error:
        train.train(config, str(tmp_path))
    assert sum("back to step 0" in event["event"] for event in events(tmp_path)) == 1
    file = tmp_path / "bad" / "batch_0.npz"
    assert str(file) in str(error.value)
    batch = diagnosis.load_batch(file)
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    with Checkpoints(tmp_path / "bad", create=False) as checkpoints:
        variables = jax.device_get(checkpoints.restore_variables(detector.network.variable_shapes()))
    # With the fault still there the file shows it, and none of the losses that are sound.
    assert diagnosis.not_finite(detector, variables, batch, step=0, seed=config.rng_seed) == ["loss_cls"]


@pytest.mark.slow
def test_weights_that_are_not_finite_are_named(tiny_config):
    config = tiny_config()
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    variables = detector.network.init_variables(jax.random.key(0))
    variables["params"]["box_head"]["fc1"]["bias"] += jnp.nan
    batch, _ = build.train_reader(config, data, build.rule(config).batch)(0)
    assert diagnosis.not_finite(detector, variables, batch, step=0, seed=0) == ["params/box_head/fc1/bias"]


@pytest.mark.slow
def test_evaluations_on_the_way_and_the_news_of_a_collapse(tiny_config, whole, tmp_path, monkeypatch):
    config = tiny_config()
    config.test.every = 3
    answers = iter([0.4, 0.1, 0.1])
    call = evaluate.Evaluator.__call__

    def judged(self, *arguments):
        return [row | {"eval/AP": next(answers)} for row in call(self, *arguments)]

    monkeypatch.setattr(evaluate.Evaluator, "__call__", judged)
    train.train(config, str(tmp_path))
    assert [row["step"] for row in read_metrics(tmp_path) if "eval/AP" in row] == [3, 6, 8]
    assert ["collapsed" in event["event"] for event in events(tmp_path)] == [True, True]
    same_bits(saved_state(config, tmp_path), saved_state(config, whole))


@pytest.fixture
def small_files():
    """The disk takes no file beyond some kilobytes, nearly as if it were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_cannot_be_written_is_an_error_or_a_warning(tmp_path, small_files, caplog):
    weights = {"w": {"kernel": jax.random.normal(jax.random.key(0), (200, 200))}}
    state = create_state({"params": weights}, build.optax.sgd(0.1), ("loss",))
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(state, 1, {})
    small_files()
    with pytest.raises(UserError, match="could not be written"), Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(state, 2, {})
    with Checkpoints(tmp_path, keep=3, strict=False) as checkpoints:
        checkpoints.save(state, 3, {})
        checkpoints.finish()
        assert "could not be written" in caplog.text
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        checkpoints.save(state, 4, {})
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.latest() == 4
        same_bits(checkpoints.restore_variables(state.variables), state.variables)
        assert (tmp_path / "checkpoints" / "1").is_dir()


@pytest.mark.slow
def test_other_data_in_the_same_workdir_are_refused(tiny_config, whole, shapes_root, tmp_path):
    config = tiny_config()
    root = tmp_path / "other"
    (root / "annotations").mkdir(parents=True)
    (root / "images").symlink_to(pathlib.Path(shapes_root) / "images")
    for file in (pathlib.Path(shapes_root) / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["annotations"] = content["annotations"][1:]
        (root / "annotations" / file.name).write_text(json.dumps(content))
    config.data.root = str(root)
    with pytest.raises(UserError, match=r"was trained on 24 images with .* or others; bring the data back"):
        train.train(config, str(whole))


CHILD = """
import sys
from absl import flags
flags.FLAGS.mark_as_parsed()
sys.path[:0] = [{root!r}, {tests!r}]
import json
from ml_collections import ConfigDict
from diou_jax.configs import base
from diou_jax.training import train
config = base.get_config()
config.update(json.loads({config!r}))
train.train(config, {workdir!r})
"""


def run_child(config, workdir, *, devices):
    source = CHILD.format(
        root=str(ROOT), tests=str(ROOT / "tests"), config=json.dumps(config.to_dict()), workdir=str(workdir)
    )
    environment = os.environ | {"XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}"}
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.mark.slow
def test_on_other_devices_the_batch_and_the_images_stay(tiny_config, whole, tmp_path):
    """Three steps on two devices, the rest on one; three devices cannot share the batch."""
    config = tiny_config()
    config.solver.max_iter = 4
    train.train(config, str(tmp_path))
    refused = run_child(tiny_config(), tmp_path, devices=3)
    assert (
        "cannot be divided among 3 devices; go on with 1 or 2, for example CUDA_VISIBLE_DEVICES=0,1" in refused.stderr
    )
    finished = run_child(tiny_config(), tmp_path, devices=1)
    assert finished.returncode == 0, finished.stderr[-2000:]
    ours, theirs = saved_state(tiny_config(), tmp_path), saved_state(tiny_config(), whole)
    assert int(ours.step) == 8
    # One device's proposals of both images compete, and its losses are normalised over both: equal but for that.
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, atol=0.05)
