"""Whole runs of Mask R-CNN on a small data set, with two devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import assert_same_bits, saved_state

from diou_jax.data.loader import batches
from diou_jax.devices import replicate, to_devices
from diou_jax.evaluation import evaluate
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.reporting.run_log import read_metrics
from diou_jax.training import train
from diou_jax.training.step import make_train_step

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tiny_mask_config, tmp_path_factory):
    """A run that was never interrupted, evaluated."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    evaluate.evaluate(tiny_mask_config(), str(workdir), train.train(tiny_mask_config(), str(workdir)))
    return workdir


def test_a_run_leaves_what_it_promises(finished):
    rows = read_metrics(finished)
    training = [row for row in rows if "loss" in row]
    assert all(np.isfinite(row["loss_mask"]) and row["loss_mask"] > 0 for row in training)
    assert all(0 <= row["accuracy_mask"] <= 1 for row in training)
    assert {"eval/AP", "eval/segm/AP", "eval/segm/AP50", "eval/segm/AP/ring"} < rows[-1].keys()
    boxes, masks = (
        json.loads((finished / f"{kind}_val_results.json").read_text()) for kind in ("bbox", "segmentations")
    )
    assert len(boxes) == len(masks) > 0
    assert masks[0]["segmentation"]["size"] == [128, 128] and isinstance(masks[0]["segmentation"]["counts"], str)
    assert [row["score"] for row in boxes] == [row["score"] for row in masks]


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_ends(
    tiny_mask_config, finished, tmp_path, monkeypatch
):
    def interrupted(reader, start, end, **options):
        for number, batch in enumerate(batches(reader, start, end, **options)):
            if start + number >= 4:
                raise KeyboardInterrupt
            yield batch

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.train(tiny_mask_config(), str(workdir))
    train.train(tiny_mask_config(), str(workdir))
    assert_same_bits(saved_state(tiny_mask_config(), workdir), saved_state(tiny_mask_config(), finished))


def test_two_devices_average_what_each_finds_on_its_own_image(tiny_mask_config):
    config = tiny_mask_config()
    config.solver.type, config.solver.clip_norm, config.solver.weight_decay = "SGD", 0.0, 0.0
    data, rule = build.dataset(config, config.train.datasets), build.rule(config)
    batch, _ = build.train_reader(config, data, rule.batch)(0)
    assert (batch.gt.masks.part >= 0).any((1, 2)).all()
    optimizer, rate = build.make_optimizer(config, rule.schedule), float(build.learning_rate(config, rule.schedule)(0))
    detector = build.detector(config, len(data.class_names))
    variables = detector.network.init_variables(jax.random.key(0))

    @jax.jit
    def alone(params, one, key):
        return jax.grad(lambda p: detector.losses(variables | {"params": p}, one, key[None]), has_aux=True)(params)

    state = create_state(variables, optimizer, detector.loss_names)
    before = jax.device_get(state.params)
    gradients, losses = zip(
        *(
            alone(
                before,
                jax.tree.map(lambda x, slot=slot: jnp.asarray(x[slot : slot + 1]), batch),
                jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 0), slot),
            )
            for slot in (0, 1)
        )
    )
    assert all(one["loss_mask"] > 0 for one in losses)
    step = make_train_step(detector, optimizer, seed=7, iter_size=1, log_every=1)
    state, metrics = step(replicate(state), next(to_devices([batch], ahead=0)))
    np.testing.assert_allclose(
        float(metrics["loss_mask"]), np.mean([float(one["loss_mask"]) for one in losses]), rtol=1e-5
    )
    wanted = jax.tree.map(lambda p, a, b: p - rate * (a + b) / 2, before, *gradients)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=jax.tree_util.keystr(path))
