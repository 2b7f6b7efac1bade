"""Whole runs on a small data set, with two devices."""

import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.data.loader import batches
from diou_jax.devices import replicate, to_devices
from diou_jax.errors import UserError
from diou_jax.evaluation import evaluate
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.reporting.run_log import read_metrics
from diou_jax.training import train
from diou_jax.training.step import make_train_step


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """A run that was never interrupted, evaluated, with its pages."""
    workdir, config = tmp_path_factory.mktemp("runs") / "whole", tiny_config()
    config.log.report = True
    train.train(config, str(workdir))
    evaluate.evaluate(config, str(workdir))
    return workdir


def saved_state(config, workdir):
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    like = create_state(
        detector.network.init_variables(jax.random.key(0)),
        build.make_optimizer(config, build.rule(config).schedule),
        detector.loss_names,
    )
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(like)


def assert_same_bits(a, b):
    for (path, x), (_, y) in zip(*(jax.tree_util.tree_leaves_with_path(tree) for tree in (a, b)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("stop", [4, slow(6)])
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_ends(
    tiny_config, finished, tmp_path, monkeypatch, stop
):
    def interrupted(reader, start, end, **options):
        for number, batch in enumerate(batches(reader, start, end, **options)):
            if start + number >= stop:
                raise KeyboardInterrupt
            yield batch

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.train(tiny_config(), str(workdir))
    train.train(tiny_config(), str(workdir))
    assert_same_bits(saved_state(tiny_config(), workdir), saved_state(tiny_config(), finished))

    def losses(folder):
        return [
            {k: v for k, v in row.items() if k != "images_per_second"} for row in read_metrics(folder) if "loss" in row
        ]

    assert losses(workdir) == losses(finished)


@pytest.mark.slow
def test_a_resumed_run_of_a_modern_recipe_is_the_same_to_the_bit(tiny_config, tmp_path, monkeypatch):
    config = tiny_config()
    config.solver.type, config.solver.lr_policy = "AdamW", "cosine"
    config.solver.backbone_lr, config.solver.layer_decay = 0.5, 0.8
    config.train.jitter, config.train.jitter_size = (0.5, 2.0), 64
    config.train.iou_crop = config.train.photometric = 0.5
    config.data.repeat_threshold = 0.9
    config.resnets.use_bn = config.fpn.use_bn = config.fpn.mask_padding_train = True
    config.fpn.rpn_num_convs = 2
    config.checkpoint.every, config.test.every = 4, 0
    train.train(config, str(tmp_path / "whole"))

    def interrupted(reader, start, end, **options):
        yield from itertools.islice(batches(reader, start, end, **options), 6)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, str(tmp_path / "stopped"))
    train.train(config, str(tmp_path / "stopped"))
    assert_same_bits(*(saved_state(config, tmp_path / name) for name in ("stopped", "whole")))
    rates = [[row["rate"] for row in read_metrics(tmp_path / name)] for name in ("stopped", "whole")]
    # Of the updates 1, 3, 5 and 7, from 0: the first is one of two of the warm-up, the others go down the cosine.
    wanted = [2 / 3, *((1 + np.cos(np.pi * np.array([1, 3, 5]) / 6)) / 2)]
    np.testing.assert_allclose(rates[0], config.solver.base_lr * np.array(wanted), rtol=1e-6)
    assert rates[0] == rates[1]


LOGGED = (
    *("loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"),
    *("accuracy_cls", "bbox_sl1", "bbox_iou", "bbox_giou", "grad_norm"),
)


def test_a_run_leaves_what_it_promises(finished, tiny_config):
    rows = read_metrics(finished)
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == [2, 4, 6, 8]
    for row in training:
        assert {*LOGGED, "rate", "images_per_second"} < row.keys()
        assert all(np.isfinite(value) for value in row.values())
    assert rows[-1]["step"] == 8 and "eval/AP50" in rows[-1] and "eval/AP/ring" in rows[-1]
    assert json.loads((finished / "config.json").read_text())["model"]["loss_type"] == "ciou"
    assert isinstance(json.loads((finished / "bbox_val_results.json").read_text()), list)
    assert len(list((finished / "pictures").glob("*.jpg"))) == 2
    assert (finished / "curves.png").stat().st_size > 10_000
    assert "Evaluated on val" in (finished / "report.html").read_text()
    assert "The run is finished: all 8 steps are done." in (finished / "index.html").read_text()
    assert sorted(int(path.name) for path in (finished / "checkpoints").iterdir()) == [3, 6, 8]
    assert list((finished / "tensorboard").iterdir())


@pytest.mark.slow
def test_evaluating_again_gives_the_same_bytes(finished, tiny_config):
    file = finished / "bbox_val_results.json"
    before = file.read_bytes()
    file.unlink()
    evaluate.evaluate(tiny_config(), str(finished))
    assert file.read_bytes() == before


def test_a_finished_run_is_left_alone(finished, tiny_config, capsys):
    before = {
        path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and "config" not in path.name
    }
    train.train(tiny_config(), str(finished))
    assert "is trained" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.fixture(scope="module")
def plain(tiny_config):
    """``plain(iter_size)``: a config whose update is the rate times the gradient, and its rule, data and optimiser."""

    def make(iter_size):
        config = tiny_config()
        config.solver.type, config.solver.clip_norm, config.solver.weight_decay = "SGD", 0.0, 0.0
        config.solver.iter_size = iter_size
        rule = build.rule(config)
        batch, _ = build.train_reader(config, build.dataset(config, config.train.datasets), rule.batch)(0)
        return batch, build.make_optimizer(config, rule.schedule), float(build.learning_rate(config, rule.schedule)(0))

    return make


@pytest.fixture(scope="module")
def on_its_own(tiny_config):
    """The detector, initial variables, and ``alone(params, batch, slot)``: losses and gradient of a batch's image."""
    config = tiny_config()
    detector = build.detector(config, len(build.dataset(config, config.train.datasets).class_names))
    # On the host, since the compiled step donates the memory of its state, which may be that of these variables.
    variables = jax.device_get(detector.network.init_variables(jax.random.key(0)))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def losses(params, batch, key):
        return detector.losses(variables | {"params": params}, batch, key[None])

    def alone(params, batch, slot):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 0), slot)
        (_, values), gradient = losses(params, jax.tree.map(lambda x: jnp.asarray(x[slot : slot + 1]), batch), key)
        return values, gradient

    return detector, variables, alone


@pytest.mark.slow
def test_two_devices_average_what_each_finds_on_its_own_image(plain, on_its_own):
    """Each device has its own proposals, samples and normalisers; the gradients are averaged."""
    batch, optimizer, rate = plain(1)
    detector, variables, alone = on_its_own
    state = create_state(variables, optimizer, detector.loss_names)
    before = jax.device_get(state.params)
    ones = [alone(before, batch, slot) for slot in (0, 1)]
    wanted = jax.tree.map(lambda p, a, b: p - rate * (a + b) / 2, before, *(gradient for _, gradient in ones))

    step = make_train_step(detector, optimizer, seed=7, iter_size=1, log_every=1)
    state, metrics = step(replicate(state), next(to_devices([batch], ahead=0)))
    for name in ("loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "bbox_iou"):
        mean = np.mean([float(values[name]) for values, _ in ones])
        np.testing.assert_allclose(float(metrics[name]), mean, rtol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=jax.tree_util.keystr(path))

    on_devices = list(to_devices([batch] * 2, ahead=0))
    with jax.transfer_guard("disallow"):  # nothing in a step asks the host
        for placed in on_devices:
            state, _ = step(state, placed)
    for leaf in jax.tree.leaves(state):
        shards = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
        assert len(shards) == 2 and shards[0] == shards[1], "the replicas drifted apart"


@pytest.mark.slow
def test_summed_minibatches_make_one_update(plain, on_its_own):
    """SOLVER.ITER_SIZE: gradients are summed, not averaged."""
    batch, optimizer, rate = plain(2)
    assert batch.image.shape[0] == 2 * 2 * 1
    detector, variables, alone = on_its_own
    state = create_state(variables, optimizer, detector.loss_names)
    before = jax.device_get(state.params)
    ones = [alone(before, batch, slot)[1] for slot in range(4)]
    wanted = jax.tree.map(lambda p, *g: p - rate * sum(g) / 2, before, *ones)
    step = make_train_step(detector, optimizer, seed=7, iter_size=2, log_every=1)
    state, _ = step(replicate(state), next(to_devices([batch], ahead=0)))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.model.update(loss_type="ciuo"), "model.loss_type='ciuo': it must be one of smooth_l1"),
        (lambda c: c.train.update(batch_size=3), "train.batch_size=3 cannot be divided among 2 devices"),
        (lambda c: c.solver.update(type="sgd"), "one of SGD, Adam, AdamW"),
        (lambda c: c.data.update(source="voc"), "one of coco, own, tfds, shapes"),
        (lambda c: c.data.update(root="/nonexistent"), "does not exist"),
        (lambda c: c.update(dtype="float16"), "one of float32, bfloat16"),
    ],
)
def test_mistakes_are_answered_before_anything_is_written(tiny_config, tmp_path, change, words):
    config = tiny_config()
    change(config)
    with pytest.raises(UserError, match=words):
        train.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_config_in_the_same_workdir_is_refused(finished, tiny_config):
    config = tiny_config()
    config.model.loss_type = "iou"
    with pytest.raises(UserError, match=r"model\.loss_type was 'ciou', now 'iou'"):
        train.train(config, str(finished))


@pytest.mark.slow
def test_a_finished_run_can_be_lengthened_and_ends_where_a_long_one_ends(finished, tiny_config, tmp_path, capsys):
    config = tiny_config()
    config.solver.max_iter = 4
    train.train(config, str(tmp_path))
    (tmp_path / "config.json").write_text("")  # the checkpoint holds it, too
    train.train(tiny_config(), str(tmp_path))
    assert (
        "schedule: solver.max_iter 4 -> 8, solver.steps (0, 6) -> (0, 6); the rate at step 4 is"
        in capsys.readouterr().out
    )
    assert_same_bits(saved_state(tiny_config(), tmp_path), saved_state(tiny_config(), finished))
    assert json.loads((tmp_path / "config.json").read_text())["solver"]["max_iter"] == 8
    config.solver.max_iter = 5
    train.train(config, str(tmp_path))
    assert "is trained: step 8 of 5; a larger solver.max_iter goes on" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["solver"]["max_iter"] == 8


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_rate_whether_options_are_given_again_or_not(tiny_config, tmp_path, capsys):
    config = tiny_config()
    config.solver.update(scale_with_devices=True, type="SGD", base_lr=1e-3, max_iter=4)
    config.num_gpus = 8
    train.train(config, str(tmp_path), explicit={"solver.max_iter", "model.loss_type"})
    assert "solver.max_iter stays 4, as given" in capsys.readouterr().out
    config.solver.max_iter = 6
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.metadata()["explicit"] == ["solver.max_iter"]
        for explicit in ((), {"solver.base_lr", "solver.max_iter"}):
            run = train.Run(config, str(tmp_path), checkpoints, explicit=explicit)
            assert (run.rule.schedule.base_lr, run.rule.schedule.max_iter, run.start) == (2.5e-4, 6, 4)


def test_evaluating_an_empty_workdir_is_an_error(tiny_config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate.evaluate(tiny_config(), str(tmp_path / "nothing"))
    assert not pathlib.Path(tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("before", "start"),
    [
        ({}, 70),
        ({"batch_size": 2, "config": {"log": {"every": 20}}}, 0),  # of a run from before this was recorded
        ({"batch_size": 2, "config": {"log": {"every": 20}}, "window_start": 30}, 30),
        ({"batch_size": 2, "config": {"log": {"every": 10}}, "window_start": 30}, 70),
        ({"config": {"log": {"every": 20}}}, 70),  # imported with its step
        ({"batch_size": 2}, 0),
    ],
)
def test_lines_of_the_log_count_from_the_start_that_changed_their_distance(before, start):
    assert train.window_start(before, 70, every=20) == start
