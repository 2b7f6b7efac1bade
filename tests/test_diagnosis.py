"""A run that gives up names the tensor, whatever becomes of the evidence, and examines what the step computed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.errors import UserError
from diou_jax.optimization.state import create_state
from diou_jax.structures import blank_batch
from diou_jax.training import diagnosis
from diou_jax.training.diagnosis import Diverged, batch_file, give_up, load_batch, not_finite


def weights(value):
    return {"params": {"a": {"kernel": jnp.full((2, 3), float(value))}}}


def diverged(step=40, value=1.0):
    state = create_state(weights(value), optax.sgd(0.1), ("loss",))
    guard = state.guard.replace(in_a_row=jnp.int32(2))
    return Diverged(step, 2, state.replace(guard=guard, step=jnp.int32(step)))


def reader(step):
    return jax.tree.map(np.asarray, blank_batch(2, 32, 32)).replace(index=np.int32([step, step])), ()


@pytest.fixture
def named(monkeypatch):
    monkeypatch.setattr(diagnosis, "not_finite", lambda *_, **__: ["loss_cls"])


def fail_to_train(tmp_path, **options):
    with pytest.raises(UserError) as error:
        give_up(diverged(**options), None, reader, workdir=tmp_path, seed=0)
    return str(error.value)


def kept_weights(tmp_path):
    with Checkpoints(tmp_path / "bad", create=False) as checkpoints:
        return checkpoints.latest(), float(checkpoints.stored_variables()["params"]["a"]["kernel"][0, 0])


def test_each_start_that_diverges_is_diagnosed_and_its_evidence_replaces_the_older(tmp_path, named):
    for step, value in ((40, 1.0), (40, 2.0), (20, 3.0)):
        message = fail_to_train(tmp_path, step=step, value=value)
        assert f"does not get past step {step - 2}: loss_cls is not finite" in message
        assert f"batch_{step - 2}.npz holds the batch" in message and "bad/checkpoints holds the weights" in message
        assert kept_weights(tmp_path) == (step, value)
        assert load_batch(tmp_path / "bad" / f"batch_{step - 2}.npz").index.tolist() == [step - 2] * 2


def test_evidence_that_cannot_be_kept_does_not_hide_the_diagnosis(tmp_path, named):
    (tmp_path / "bad").write_text("a file where the folder should be")
    message = fail_to_train(tmp_path)
    assert "does not get past step 38: loss_cls is not finite; the batch could not be kept (" in message
    assert "the weights could not be kept (" in message and "a lower solver.base_lr" in message


def test_the_evidence_is_kept_if_the_search_fails(tmp_path, monkeypatch):
    def out_of_memory(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(diagnosis, "not_finite", out_of_memory)
    message = fail_to_train(tmp_path)
    assert "a tensor that could not be searched for (RuntimeError: RESOURCE_EXHAUSTED" in message
    assert (tmp_path / "bad" / "batch_38.npz").exists() and kept_weights(tmp_path) == (40, 1.0)


def test_each_process_has_a_file_of_its_own(tmp_path, monkeypatch):
    assert batch_file(tmp_path, 7).name == "batch_7.npz"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert batch_file(tmp_path, 7).name == "batch_7_process1.npz"


class Poisoned:
    """A detector whose class loss is NaN where it meets one random key, in minibatches of the right size."""

    def __init__(self, key, images):
        self._poison, self._images = jax.random.key_data(key), images

    def training_losses(self, variables, batch, keys):
        assert batch.image.shape[0] == keys.shape[0] == self._images
        met = (jax.random.key_data(keys) == self._poison).all(-1).any()
        # As with batch norm over several devices, which names the axis.
        mean = jax.lax.pmean(variables["params"]["a"]["kernel"].sum(), "batch")
        bad = mean * jnp.where(met, jnp.nan, 1.0)
        return bad + mean, ({"loss": bad + mean, "loss_cls": bad, "loss_bbox": mean}, None)


@pytest.mark.parametrize("slot", [4, 9, 11])
def test_the_minibatches_and_the_draws_are_those_of_the_step(slot):
    """The second of two processes with two devices, each with two minibatches of two images."""
    step, seed = 5, 3
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), slot)
    batch, _ = reader(0)
    batch = jax.tree.map(lambda x: np.concatenate([x] * 4), batch)
    detector, options = Poisoned(key, images=2), {"step": step, "seed": seed, "minibatch": 2}
    assert not_finite(detector, weights(1), batch, **options, first_slot=8) == ["loss_cls"] * (slot >= 8)
    assert not_finite(detector, weights(1), batch, **options) == ["loss_cls"] * (slot < 8)
    assert not_finite(detector, weights(jnp.nan), batch, **options) == ["params/a/kernel"]
