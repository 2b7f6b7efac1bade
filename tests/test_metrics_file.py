import errno
import json
import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diou_jax.reporting.curves import draw_curves
from diou_jax.reporting.run_log import RunLog, read_metrics
from diou_jax.training.watch import Watch
from diou_jax.workdir.metrics_file import append_row, drop_rows, read_rows

GOOD = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def write(path, *middle):
    first, last = (json.dumps(row).encode() for row in GOOD)
    path.write_bytes(b"\n".join([first, *middle, last]) + b"\n")


JUNK = {
    "binary": bytes(range(128, 256)),
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "no step": b'{"loss": 1}',
    "a step in words": b'{"step": "two", "loss": 1}',
    "a step that is true": b'{"step": true}',
    "a step below 0": b'{"step": -3}',
    "a step in digits": b'{"step": ' + b"9" * 5000 + b"}",
    "invalid UTF-8": b'{"step": 1, "loss": "\xff"}',
    "nested": b"[" * 100000,
}


@pytest.mark.parametrize("line", JUNK.values(), ids=JUNK)
def test_lines_that_are_no_rows_are_moved_aside_and_the_rest_stays(tmp_path, line, caplog):
    path = tmp_path / "metrics.jsonl"
    write(path, line)
    with RunLog(tmp_path, start_step=5) as log:
        log.scalars(6, {"loss": 0.125})
    assert read_metrics(tmp_path) == [*GOOD, {"step": 6, "loss": 0.125}]
    assert line in (tmp_path / "metrics.jsonl.damaged-1").read_bytes()
    assert "metrics.jsonl had 1 line(s)" in caplog.text and "metrics.jsonl.damaged-1" in caplog.text
    Watch(read_metrics(tmp_path))
    assert draw_curves(tmp_path).exists()


@pytest.mark.parametrize("line", [b"", b"\0" * 50, b'{"step": 2, "lo'])
def test_what_a_kill_leaves_just_goes(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write(path, line)
    assert drop_rows(path, 1) is None
    assert read_rows(path) == GOOD[:1] and os.listdir(tmp_path) == ["metrics.jsonl"]


def test_rows_that_cannot_be_read_now_are_not_lost(tmp_path, monkeypatch, caplog):
    """A disk that fails for a while; before, the file was replaced by an empty one."""
    path = tmp_path / "metrics.jsonl"
    write(path)

    def failing(self):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", failing)
        assert read_rows(path) == []
        with pytest.raises(OSError, match="Input/output error"):
            drop_rows(path, 1)
        with RunLog(tmp_path, start_step=5) as log:
            log.scalars(6, {"loss": 0.125})
    assert read_metrics(tmp_path) == [*GOOD, {"step": 6, "loss": 0.125}]
    assert "Input/output error" in caplog.text


def test_numbers_that_are_not_finite_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    huge = "1" + "0" * 400
    path.write_text(f'{{"step": 1, "loss": NaN, "rate": -Infinity, "eval/AP": 1e999, "loss_cls": {huge}}}\n')
    assert read_rows(path) == [{"step": 1, "loss": None, "rate": None, "eval/AP": None, "loss_cls": None}]
    path.write_text('{"step": 1, "loss": "low", "eval/AP": [1]}\n')
    Watch(read_metrics(tmp_path))
    draw_curves(tmp_path)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_survived(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("log")
    path = folder / "metrics.jsonl"
    path.write_bytes(content)
    drop_rows(path, 10)
    append_row(path, GOOD[0])
    assert read_rows(path)[-1] == GOOD[0]


def test_what_is_in_the_place_of_a_file_or_folder_is_moved_aside(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "metrics.jsonl" / "mine").write_text("precious")
    (tmp_path / "tensorboard").write_text("mine")
    (tmp_path / "curves.png").mkdir()
    with RunLog(tmp_path, start_step=0) as log:
        log.scalars(1, {"loss": 1})
        draw_curves(tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    assert (tmp_path / "metrics.jsonl.damaged-1" / "mine").read_text() == "precious"
    assert (tmp_path / "tensorboard.damaged-1").read_text() == "mine"
    assert list((tmp_path / "tensorboard").iterdir())


def test_an_evaluation_moves_nothing_and_goes_on(tmp_path, caplog):
    """A run may be training beside it."""
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "events.jsonl").mkdir()
    (tmp_path / "tensorboard").write_text("")
    with RunLog(tmp_path) as log:
        for step in (1, 2):
            log.scalars(step, {"eval/AP": 0.5})
            log.event(step, "something")
    assert sorted(os.listdir(tmp_path)) == ["events.jsonl", "metrics.jsonl", "tensorboard"]
    assert caplog.text.count("metrics.jsonl cannot be written") == 1


def test_a_row_of_an_evaluation_survives_the_rollback_of_the_run_beside_it(tmp_path):
    with RunLog(tmp_path, start_step=0) as training, RunLog(tmp_path) as evaluation:
        training.scalars(4, {"loss": 1})
        training.rewind(3)
        evaluation.scalars(3, {"eval/AP": 0.5})
        training.scalars(4, {"loss": 2})
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, 4]
