import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from test_checkpoint import random_state, same_bits

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.errors import UserError


def test_another_network_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(random_state(1), 1, {})
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            UserError,
            match=r"this config's variables: params/fc/bias is float32 \(5,\) there and float32 \(6,\) here; params/fc",
        ),
    ):
        checkpoints.restore(random_state(1, width=6))


def test_another_dtype_is_refused_rather_than_cast(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(random_state(1), 1, {})
    like = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_state(1).variables)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"params/fc/bias is float32 \(5,\) there and bfloat16 \(5,\) here"),
    ):
        checkpoints.restore_variables(like)


def test_a_checkpoint_of_another_format_is_refused_by_its_number(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr("diou_jax.checkpoint.storage.FORMAT", 7)
        checkpoints.save(random_state(1), 1, {"seed": 1})
        checkpoints.finish()
        assert checkpoints.metadata() == {"seed": 1}
    monkeypatch.undo()
    with Checkpoints(tmp_path, create=False) as checkpoints:
        for read in (checkpoints.metadata, lambda: checkpoints.restore(random_state(0)), checkpoints.stored_variables):
            with pytest.raises(UserError, match=r"checkpoints/1 is a checkpoint of format 7.* reads formats 1 to 3"):
                read()


def test_a_checkpoint_without_a_number_is_of_the_first_format(tmp_path, monkeypatch):
    save = ocp.args.JsonSave
    monkeypatch.setattr(
        ocp.args, "JsonSave", lambda item: save({name: value for name, value in item.items() if name != "format"})
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(random_state(1), 1, {"seed": 1})
        checkpoints.finish()
    assert "format" not in (tmp_path / "checkpoints" / "1" / "metadata" / "metadata").read_text()
    with Checkpoints(tmp_path, create=False) as checkpoints:
        same_bits(checkpoints.restore(random_state(0)), random_state(1))


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_checkpoint_of_the_first_format_gets_the_names_of_this_one(tmp_path, monkeypatch, kind):
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr("diou_jax.checkpoint.storage.FORMAT", 1)
        checkpoints.save(random_state(1, kind=kind, parts=("body", "fpn", "rpn")), 1, {})
    monkeypatch.undo()
    names = ("backbone", "neck", "rpn")
    like, wanted = (random_state(seed, kind=kind, parts=names) for seed in (0, 1))
    with Checkpoints(tmp_path) as checkpoints:
        same_bits(checkpoints.restore(like), wanted)
        same_bits(checkpoints.restore_variables(like.variables), wanted.variables)
        same_bits(checkpoints.stored_variables(), wanted.variables)
        checkpoints.save(wanted, 2, {})
        checkpoints.finish()
        same_bits(checkpoints.restore(like), wanted)
