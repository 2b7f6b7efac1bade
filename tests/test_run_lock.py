"""One training run at a time in a work folder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT

from diou_jax.command import import_weights
from diou_jax.errors import UserError
from diou_jax.evaluation import evaluate
from diou_jax.training import train
from diou_jax.workdir import run_lock


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_is_refused_before_anything_changes(tiny_config, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("junk\n")
    with run_lock.run_lock(tmp_path / "run"):
        before = tree(tmp_path)
        with pytest.raises(UserError, match=rf"a run is going on in \S+run: process {os.getpid()}"):
            train.train(tiny_config(), str(tmp_path / "run"))
        assert tree(tmp_path) == before


@pytest.mark.slow
def test_an_import_takes_the_folder_too(tiny_config, tmp_path, monkeypatch):
    def stop(*_, **__):
        with pytest.raises(UserError, match="a run is going on"), run_lock.run_lock(tmp_path / "run"):
            pass
        raise UserError("seen")

    monkeypatch.setattr(import_weights, "keep_config", stop)
    monkeypatch.setattr(import_weights, "weight_source", lambda *_: type("Source", (), {"num_classes": 7}))
    monkeypatch.setattr(import_weights.build, "class_table", lambda *_: (("background", *"abcdef"), tuple(range(7))))
    monkeypatch.setattr(import_weights, "import_tensors", lambda source, variables, **_: (variables, []))
    with pytest.raises(UserError, match="seen"):
        import_weights.import_file(tiny_config(), "weights.pth", tmp_path / "run")


def test_a_folder_that_was_made_for_the_lock_goes_if_nothing_came(tmp_path):
    with run_lock.run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").exists()
    assert not (tmp_path / "run").exists()
    with run_lock.run_lock(tmp_path):
        pass
    assert tmp_path.exists()


def test_without_locks_it_refuses_and_names_the_option(tiny_config, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(UserError, match=r"has no locks \(No locks available\).*--config\.checkpoint\.lock=False"):
        train.train(tiny_config(), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with run_lock.run_lock(tmp_path / "run", active=False):
        assert not (tmp_path / "run").exists()


def test_what_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "lock").mkdir(parents=True)
    for folder, words in {"file": "is a file", "file/below": "cannot be written", "run": "cannot be written"}.items():
        with pytest.raises(UserError, match=words), run_lock.run_lock(tmp_path / folder):
            pass


def test_other_processes_end_with_the_reason_of_the_first(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        run_lock.multihost_utils, "broadcast_one_to_all", lambda text: sent.append(np.array(text)) or sent[0]
    )
    (tmp_path / "file").write_text("")
    for number in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        with pytest.raises(UserError, match="file is a file, not a folder"), run_lock.run_lock(tmp_path / "file"):
            pass
    assert not sent[1].any()


CHILD = """
import sys
from absl import flags
flags.FLAGS.mark_as_parsed()
sys.path.insert(0, {root!r})
import json
from diou_jax.configs import base
from diou_jax.training import train
config = base.get_config()
config.update(json.loads({config!r}))
train.train(config, {workdir!r})
"""


@pytest.mark.slow
def test_a_killed_run_frees_its_folder_and_an_evaluation_beside_it_disturbs_nothing(tiny_config, tmp_path):
    import json

    config = tiny_config()
    config.solver.max_iter = 1_000_000
    config.checkpoint.every = 10
    config.log.every = 10
    source = CHILD.format(root=str(ROOT), config=json.dumps(config.to_dict()), workdir=str(tmp_path / "run"))
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen([sys.executable, "-c", source], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 200
        while not list((tmp_path / "run" / "checkpoints.sealed").glob("*.json")):
            assert child.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.1)
        kept = (tmp_path / "run" / "config.json").read_bytes()
        with pytest.raises(UserError, match=f"process {child.pid} on"):
            train.train(tiny_config(), str(tmp_path / "run"))
        assert evaluate.evaluate(tiny_config(), str(tmp_path / "run"))
        assert child.poll() is None and (tmp_path / "run" / "config.json").read_bytes() == kept
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    config = tiny_config()
    config.solver.max_iter = 1
    train.train(config, str(tmp_path / "run"))  # it is trained beyond that, and says so
    assert not (tmp_path / "run" / "lock").exists()
