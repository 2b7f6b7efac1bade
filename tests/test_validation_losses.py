"""Losses on images of a test set; a made-up detector gives each image a loss of its own, so that little is compiled."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.data.loader import batches
from diou_jax.devices import replicate, to_devices
from diou_jax.evaluation.validation_losses import ValidationLosses
from diou_jax.options import build

LOADING = {"threads": 1, "workers": 0, "timeout": 60.0}


@pytest.fixture(scope="module")
def data(tiny_config):
    config = tiny_config()
    return build.dataset(config, config.test.datasets)


def reader_of(tiny_config, data, images):
    config = tiny_config()
    config.test.losses = images
    return build.validation_reader(config, data)


def made_up_losses(variables, batch, keys):
    """The row of the image, its objects, and a number that is drawn for it."""
    assert batch.index.shape == (1,)
    row, count = jnp.float32(batch.index[0]), batch.gt.valid.sum().astype(jnp.float32)
    loss = jnp.where(batch.present[0], variables["scale"] * row, jnp.nan)
    return loss, {"loss": loss, "loss_count": count, "drawn": jax.random.uniform(keys[0])}


MADE_UP = types.SimpleNamespace(loss_names=("loss", "loss_count", "drawn"), losses=made_up_losses)


def test_each_image_counts_once_and_the_blank_that_fills_a_batch_not_at_all(tiny_config, data):
    reader = reader_of(tiny_config, data, 5)
    losses = ValidationLosses(MADE_UP, {"val": reader}, seed=7, loading=LOADING)
    found = losses(replicate({"scale": jnp.float32(2)}))["val"]
    assert tuple(found) == losses.names == ("val/loss", "val/loss_count", "val/drawn")
    rows = [0, 1, 2, 4, 5]  # 5 of 6 images, spread evenly; 2 devices take them, so that the last batch has a blank
    count = [len(data.records.annotations(row)[1]) for row in rows]
    drawn = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(7), row))) for row in rows]
    np.testing.assert_allclose(list(found.values()), [2 * np.mean(rows), np.mean(count), np.mean(drawn)], rtol=1e-6)
    assert losses(replicate({"scale": jnp.float32(2)})) == {"val": found}


def test_images_without_an_object_are_left_out(tiny_config, data):
    reader = reader_of(tiny_config, data, 100)
    rows = np.concatenate([reader.schedule.entries(step).index for step in range(reader.steps)])
    present = np.concatenate([reader.schedule.entries(step).present for step in range(reader.steps)])
    crowds_only = [not (~data.records.annotations(row)[2]).any() for row in range(len(data))]
    assert sorted(rows[present]) == [row for row in range(len(data)) if not crowds_only[row]]


def test_an_image_that_cannot_be_read_does_not_count(tiny_config, data):
    reader = reader_of(tiny_config, data, 3)
    losses = ValidationLosses(MADE_UP, {"val": reader}, seed=7, loading=LOADING)
    step = reader(0)[0]
    absent = step.replace(present=np.zeros_like(step.present))
    total = losses._sums(replicate({"scale": jnp.float32(1)}), next(to_devices([absent], ahead=0)))
    assert np.asarray(total).tolist() == [0, 0, 0, 0]


@pytest.mark.slow
def test_a_detector_has_the_mean_of_the_losses_of_its_images(tiny_config, data):
    config = tiny_config()
    detector, reader = build.detector(config, len(data.class_names)), reader_of(tiny_config, data, 5)
    variables = detector.network.init_variables(jax.random.key(0))
    losses = ValidationLosses(detector, {"val": reader}, seed=3, loading=LOADING)
    found = losses(replicate(variables))["val"]
    alone = jax.jit(detector.losses)
    values = []
    for batch in batches(reader, 0, reader.steps, **LOADING):
        for slot in np.flatnonzero(batch.present):
            key = jax.random.fold_in(jax.random.key(3), int(batch.index[slot]))
            one = jax.tree.map(lambda x, slot=slot: jnp.asarray(x[slot : slot + 1]), batch)
            values.append(alone(variables, one, key[None])[1])
    assert len(values) == 5
    for name in detector.loss_names:
        wanted = np.mean([float(value[name]) for value in values])
        np.testing.assert_allclose(found[f"val/{name}"], wanted, rtol=1e-5, err_msg=name)
