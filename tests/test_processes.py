"""Several processes on one machine, joined by gloo, each with one device."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import fast_compilation
import numpy as np
import pytest
from conftest import ROOT

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.reporting.run_log import read_metrics
from diou_jax.training import train

CONFIG = """
import json
from diou_jax.configs import base
def get_config():
    config = base.get_config()
    config.update(json.loads({content!r}))
    return config
"""


@pytest.fixture
def start(tiny_config, tmp_path):
    """``start(workdir, processes=2, **options)`` starts a training run and returns its processes."""
    started = []

    def launch(workdir, *, processes, **options):
        config = tiny_config()
        for name, value in options.items():
            config[name].update(value)
        file = tmp_path / "config.py"
        file.write_text(CONFIG.format(content=json.dumps(config.to_dict())))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = os.environ | {
            "XLA_FLAGS": f"{fast_compilation.FLAGS} --xla_force_host_platform_device_count=1",
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, "main.py", "--config", str(file), "--workdir", str(workdir), "--mode", "train"]
        joined = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num_processes", str(processes)]
        for number in range(processes):
            extra = [*joined, "--process_id", str(number)]
            options = {"cwd": ROOT, "env": environment, "stderr": subprocess.STDOUT}
            with (tmp_path / f"log{number}").open("w") as log:
                started.append(subprocess.Popen([*command, *extra], stdout=log, **options))
        return started[-processes:]

    yield launch
    for process in started:
        process.kill()
        process.wait()


def log(tmp_path, number):
    return (tmp_path / f"log{number}").read_text()


def wait_for_step(workdir, step, timeout=240):
    """Waits until the log of a run has reached a step."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if (workdir / "metrics.jsonl").exists() and any(row["step"] >= step for row in read_metrics(workdir)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no step {step} in {timeout} s")


def training(workdir):
    return [row for row in read_metrics(workdir) if "loss" in row]


@pytest.mark.slow
def test_two_processes_with_one_device_equal_one_with_two(start, tiny_config, tmp_path):
    """They also agree on the best checkpoint, and stop early together: no loss falls by a thousand."""
    options = {
        "solver": {"ema_decay": 0.9, "max_iter": 10},
        "test": {"every": 4, "losses": 3},
        "checkpoint": {"best": "val/loss", "keep": 1},
        "train": {"batch_size": 2, "early_stopping": {"patience": 1, "min_delta": 1000.0}},
    }
    config = tiny_config()
    for name, value in options.items():
        config[name].update(value)
    train.train(config, str(tmp_path / "one"))
    for process in start(tmp_path / "two", processes=2, **options):
        assert process.wait(300) == 0, log(tmp_path, 0) + log(tmp_path, 1)
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [row["step"] for row in training(tmp_path / "one")] == [2, 4, 6, 8]
    assert [row.keys() for row in one] == [row.keys() for row in two]
    for a, b in zip(one, two, strict=True):
        for name in a.keys() & {*training(tmp_path / "one")[0], "val/loss", "best/val/loss"} - {"images_per_second"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-7, err_msg=name)
    for name in ("one", "two"):
        losses = {row["step"]: row["val/loss"] for row in read_metrics(tmp_path / name) if "val/loss" in row}
        assert losses.keys() == {4, 8}
        with Checkpoints(tmp_path / name, which="best", create=False) as checkpoints:
            assert checkpoints.chosen() == min(losses, key=losses.get)
            assert checkpoints.steps() == sorted({checkpoints.chosen(), 8})


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_the_same_step_and_a_death_ends_both(start, tmp_path):
    """In between they go on from a checkpoint that was killed before its seal; one process alone reads it first."""
    workdir, long = tmp_path / "run", {"solver": {"max_iter": 100000}, "checkpoint": {"every": 100000}}
    processes = start(workdir, processes=2, **long)
    wait_for_step(workdir, 4)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in processes] == [128 + signal.SIGTERM] * 2, log(tmp_path, 0)
    (saved,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved % 2 == 0
    for number in range(2):
        assert f"stopped by SIGTERM after step {saved}" in log(tmp_path, number)

    for file in (workdir / "checkpoints.sealed").iterdir():
        file.unlink()
    processes = start(workdir, processes=2, **long)
    wait_for_step(workdir, saved + 4)
    assert f"resumed at step {saved}" in log(tmp_path, 0)
    processes[1].kill()
    began = time.monotonic()
    assert processes[0].wait(60) != 0
    assert time.monotonic() - began < 60
    assert "start all of them again" in log(tmp_path, 0)
    assert [int(path.name) for path in (workdir / "checkpoints").iterdir()] == [saved]


# Two processes that only join; what follows is the first line of the program.
MEMBER = """
import os, sys, time
import diou_jax.command.program as program
from diou_jax.errors import UserError

def do(command):
    import jax, numpy as np
    from jax.experimental import multihost_utils
    multihost_utils.process_allgather(np.int32(1))
    print("joined", flush=True)
    {then}
    multihost_utils.process_allgather(np.int32(1))

program._do = do
program.main(sys.argv)
"""


@pytest.fixture
def members(tmp_path):
    """``members(then)`` starts two processes of the program that join and run ``then``, and returns them."""
    started = []

    def launch(then):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (tmp_path / "member.py").write_text(MEMBER.format(then=then))
        for number in range(2):
            joined = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num_processes", "2"]
            command = [sys.executable, str(tmp_path / "member.py"), "--mode", "train", "--workdir", str(tmp_path)]
            command += ["--config", str(ROOT / "configs" / "shapes.py"), *joined, "--process_id", str(number)]
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
            with (tmp_path / f"log{number}").open("w") as log:
                options = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": subprocess.STDOUT}
                started.append(subprocess.Popen(command, **options))
        return started

    yield launch
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_mistake_that_one_process_meets_ends_both_at_once(members, tmp_path, who):
    processes = members(f'if jax.process_index() == {who}: raise UserError("a bad image")')
    codes = [process.wait(60) for process in processes]
    assert codes[who] == 2 and codes[1 - who] != 0, log(tmp_path, 0) + log(tmp_path, 1)
    assert "error: a bad image" in log(tmp_path, who)


@pytest.mark.slow
def test_a_signal_outside_the_training_loop_ends_the_process(members, tmp_path):
    processes = members("time.sleep(100)")
    end = time.monotonic() + 60
    while "joined" not in log(tmp_path, 1) and time.monotonic() < end:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    assert processes[1].wait(20) == -signal.SIGTERM, log(tmp_path, 1)
