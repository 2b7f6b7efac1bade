"""Programs compiled ahead: they are taken where their shape is met, in parallel, and say so."""

import threading

import jax
import numpy as np
import pytest

from diou_jax.devices import replicate, to_devices
from diou_jax.options import build
from diou_jax.programs import Programs, compile_ahead
from diou_jax.structures import blank_batch


def batches(*sizes):
    return list(to_devices([jax.device_get(blank_batch(2, *size)) for size in sizes], ahead=0))


def test_a_compiled_program_is_taken_and_any_other_shape_compiled_at_its_call():
    traced = []

    def function(tree, batch):
        traced.append(batch.rows.index.shape)
        return tree["w"] + batch.placement.scale[:, 0].sum()

    programs = Programs("sum", jax.pmap(function, "batch", in_axes=(None, 0)))
    tree = replicate({"w": np.float32(1)})
    first, second = batches((32, 64), (64, 32))
    programs.compile(tree, first)
    assert programs.has(first) and not programs.has(second)
    assert len(traced) == 1
    np.testing.assert_array_equal(programs(tree, first), [2, 2])
    assert len(traced) == 1, "nothing was traced again"
    np.testing.assert_array_equal(programs(tree, second), [2, 2])
    assert len(traced) == 2


def test_programs_are_compiled_side_by_side_and_each_is_told(capsys, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    meeting = threading.Barrier(2, timeout=20)

    def function(tree, batch):
        meeting.wait()  # one after the other they would never meet
        return tree + batch.placement.scale[:, 0].sum()

    programs = Programs("sum", jax.pmap(function, "batch", in_axes=(None, 0)))
    compile_ahead([(programs, replicate(np.float32(0)), batch) for batch in batches((32, 64), (64, 32))])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["compiled 1 of 2", "compiled 2 of 2"]
    assert {"sum 32x64", "sum 64x32"} == {line.split(": ")[1].split(",")[0] for line in lines}


def test_a_program_that_cannot_be_compiled_is_an_error():
    def function(tree, batch):
        raise ValueError("no such operation")

    programs = Programs("sum", jax.pmap(function, "batch", in_axes=(None, 0)))
    with pytest.raises(ValueError, match="no such operation"):
        compile_ahead([(programs, replicate(np.float32(0)), batches((32, 32))[0])])
    compile_ahead([])


def test_a_reader_tells_the_shapes_that_its_steps_meet(tiny_config, shapes_root):
    config = tiny_config()
    config.data.buckets = ((64, 96), (96, 64), (64, 64))
    data = build.dataset(config, config.train.datasets)
    reader = build.train_reader(config, data, build.rule(config).batch)
    blanks = reader.blanks(0, 10 * reader.steps)
    met = {reader(step)[0].image.shape for step in range(reader.steps)}
    assert {blank.image.shape for blank in blanks} == met
    assert jax.tree.map(np.shape, blanks[0]) == jax.tree.map(np.shape, reader(0)[0]) or len(met) > 1
    assert [blank.image.shape for blank in reader.blanks(3, 4)] == [reader(3)[0].image.shape]
    assert reader.blanks(5, 5) == []
