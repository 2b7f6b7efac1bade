"""Experiment trackers, with small modules in place of their packages."""

import json
import logging
import sys
import threading
import types

import numpy as np
import pytest

from diou_jax.configs import base
from diou_jax.errors import UserError
from diou_jax.options.trackers import make_trackers, require_trackers
from diou_jax.reporting import run_log, tracking
from diou_jax.reporting.run_log import RunLog
from diou_jax.reporting.tracking import Background


class FakeWandb(types.ModuleType):
    """Notes the calls of the tracker; `failing` calls raise."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(origin="somewhere")
        self.started, self.logged, self.finished, self.failing = [], [], [], 0

    def Settings(self, **options):  # noqa: N802
        return options

    def Image(self, image):  # noqa: N802
        return image.mode, image.size

    def init(self, **options):
        self.started.append(options)
        return types.SimpleNamespace(log=self._log, define_metric=lambda *_, **__: None, finish=self._finish)

    def _log(self, row):
        if self.failing:
            self.failing -= 1
            raise ConnectionError("the service is away")
        self.logged.append(row)

    def _finish(self, exit_code):
        self.finished.append(exit_code)


class MlflowError(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


class FakeMlflow(types.ModuleType):
    """An MLflow of one experiment; it refuses names as the real one does."""

    def __init__(self):
        super().__init__("mlflow")
        self.__spec__ = types.SimpleNamespace(origin="somewhere")
        self.exceptions = types.SimpleNamespace(MlflowException=MlflowError)
        self.entities = types.SimpleNamespace(Param=lambda *x: x, Metric=lambda *x: x)
        self.runs, self.files, self.uris = {}, {}, []

    def MlflowClient(self, tracking_uri):  # noqa: N802
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return name

    def create_run(self, experiment_id, run_name):
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {"name": run_name, "params": [], "metrics": [], "status": "RUNNING"}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def get_run(self, run_id):
        if run_id not in self.runs:
            raise MlflowError
        return types.SimpleNamespace(info=types.SimpleNamespace(lifecycle_stage="active"))

    def update_run(self, run_id, status):
        self.runs[run_id]["status"] = status

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100 and not any(set("()?") & set(metric[0]) for metric in metrics)
        assert len(metrics) <= 1000 and all(len(metric[0]) <= 250 for metric in metrics)
        self.runs[run_id]["params"] += params
        self.runs[run_id]["metrics"] += [(name, value, step) for name, value, _, step in metrics]

    def log_dict(self, run_id, content, name):
        self.files[name] = json.loads(json.dumps(content))

    def log_image(self, run_id, image, artifact_file):
        self.files[artifact_file] = image.mode, image.size

    def set_terminated(self, run_id, status):
        self.runs[run_id]["status"] = status


@pytest.fixture
def packages(monkeypatch):
    found = types.SimpleNamespace(wandb=FakeWandb(), mlflow=FakeMlflow())
    for name, module in vars(found).items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def config_with(**trackers):
    config = base.get_config()
    config.log.update(trackers)
    return config


def log_some(folder, config, start=0):
    with RunLog(folder, start_step=start, trackers=make_trackers(config, folder)) as log:
        log.scalars(start + 1, {"loss": 0.5, "accuracy": float("nan")})
        log.scalars(start + 1, {"eval/AP": 0.25, "eval/AP/dog (small)?": 0.5, "val/loss": 2.0}, dataset="val")
        log.scalars(start + 1, {"best/AP": 0.25})
        log.image(start + 1, "detections/val/0", np.zeros((8, 12, 3), np.uint8))


CURVES = {"eval/val/AP": 0.25, "eval/val/AP/dog (small)?": 0.5, "val/val/loss": 2.0}


def test_wandb_gets_curves_config_and_pictures_and_goes_on_under_its_id(tmp_path, packages):
    config, wandb = config_with(wandb="detectors"), packages.wandb
    require_trackers(config)
    log_some(tmp_path / "ciou", config)
    log_some(tmp_path / "ciou", config, start=1)
    rows = [{"step": 1, "train/loss": 0.5}, {"step": 1, **CURVES}, {"step": 1, "best/AP": 0.25}]
    assert wandb.logged[:4] == [*rows, {"step": 1, "detections/val/0": ("RGB", (12, 8))}]
    first, second = wandb.started
    assert (first["project"], first["name"], first["dir"]) == ("detectors", "ciou", str(tmp_path / "ciou"))
    assert first["config"]["model.loss_type"] == "smooth_l1" and first["resume"] == "allow"
    assert first["id"] == second["id"] and wandb.finished == [0, 0]
    log_some(tmp_path / "ciou", config_with(wandb="others"))
    assert wandb.started[2]["id"] != first["id"]


def test_mlflow_gets_curves_config_and_pictures_and_goes_on_under_its_id(tmp_path, packages):
    config, mlflow = config_with(mlflow="sqlite:///here"), packages.mlflow
    log_some(tmp_path / "ciou", config)
    config.solver.max_iter = 7  # an option that may change; MLflow's parameters never do
    log_some(tmp_path / "ciou", config, start=1)
    (run,) = mlflow.runs.values()
    assert run["name"] == "ciou" and run["status"] == "FINISHED" and mlflow.uris == ["sqlite:///here"] * 2
    assert dict(run["params"])["solver.max_iter"] == "90000" and mlflow.files["config.json"]["solver.max_iter"] == 7
    assert len(run["params"]) == len(dict(run["params"]))
    wanted = [("train/loss", 0.5, 1), *((name.replace("(small)?", "_small__"), x, 1) for name, x in CURVES.items())]
    assert run["metrics"][:5] == [*wanted, ("best/AP", 0.25, 1)]
    assert mlflow.files["detections/val/0/0000002.png"] == ("RGB", (12, 8))
    mlflow.runs.clear()  # the run was deleted there
    log_some(tmp_path / "ciou", config, start=2)
    assert len(mlflow.runs) == 1


def test_a_service_that_fails_is_named_once_and_costs_its_own_points_only(tmp_path, packages, caplog):
    packages.wandb.failing = 2
    log_some(tmp_path, config_with(wandb="detectors"))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["log.wandb: ConnectionError: the service is away; the run goes on without"]
    assert packages.wandb.logged[0] == {"step": 1, "best/AP": 0.25} and packages.wandb.finished == [0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_service_that_cannot_begin_or_ends_the_program_is_named(tmp_path, packages, caplog, monkeypatch):
    def exits(**_):
        raise SystemExit("no key")

    monkeypatch.setattr(packages.wandb, "init", exits)
    log_some(tmp_path, config_with(wandb="detectors"))
    assert "log.wandb: it cannot begin (SystemExit: no key); the run goes on without" in caplog.text


def test_a_service_that_hangs_makes_nobody_wait(tmp_path, packages, caplog, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(packages.wandb, "init", lambda **_: released.wait(60))
    monkeypatch.setattr(run_log, "TRACKERS_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "WAITING", 2)
    log_some(tmp_path, config_with(wandb="detectors"))
    assert "log.wandb: 2 calls wait for it, and further ones are left out" in caplog.text
    assert "log.wandb: it has not taken everything by the run's end" in caplog.text
    released.set()


def test_a_run_that_fails_is_marked(tmp_path, packages):
    config = config_with(mlflow="uri")
    with pytest.raises(RuntimeError), RunLog(tmp_path, trackers=make_trackers(config, tmp_path)):
        raise RuntimeError
    assert [run["status"] for run in packages.mlflow.runs.values()] == ["FAILED"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_absent_package_is_named_with_its_extra(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / name).mkdir()  # a folder of runs is no package
    with pytest.raises(UserError, match=rf"log\.{name} needs the package {name}: pip install 'diou-jax\[{name}\]'"):
        require_trackers(config_with(**{name: "x"}))
    require_trackers(config_with())


def test_nothing_begins_in_a_process_that_does_not_log(tmp_path, packages):
    with RunLog(tmp_path, active=False, trackers=make_trackers(config_with(wandb="x", mlflow="y"), tmp_path)) as log:
        log.scalars(1, {"loss": 1.0})
        log.image(1, "a", np.zeros((2, 2, 3), np.uint8))
    assert not packages.wandb.started and not packages.mlflow.uris


def test_calls_come_in_their_order_from_one_thread():
    seen = []

    class Noting:
        def scalars(self, step, values):
            seen.append((step, threading.current_thread().name))

        def close(self, *, failed):
            seen.append(("closed", failed))

    background = Background("noting", Noting)
    for step in range(100):
        background.scalars(step, {})
    background.close(failed=False)
    background.join(10)
    assert seen == [*((step, "noting") for step in range(100)), ("closed", False)]


def test_mlflow_gets_as_many_metrics_and_letters_as_it_takes(tmp_path, packages):
    long = "a class of a very long name " * 20
    values = {f"eval/AP/{name}": 0.5 for name in [*map(str, range(2500)), long + "a", long + "b"]}
    with RunLog(tmp_path, trackers=make_trackers(config_with(mlflow="here"), tmp_path)) as log:
        log.scalars(1, values, dataset="val")
    (run,) = packages.mlflow.runs.values()
    names = [name for name, _, _ in run["metrics"]]
    assert len(names) == len(set(names)) == 2502 and names[2499] == "eval/val/AP/2499"
    assert all(name.startswith("eval/val/AP/a class of a very long") for name in names[2500:])
