"""MLflow as a tracker. MLFLOW_EXPERIMENT_NAME names the experiment."""

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image

from diou_jax.files import shortened
from diou_jax.reporting.tracking import TrackedRun

EXPERIMENT = "diou-jax"
# Letters of a parameter and of a metric's name, and parameters and metrics of a request, that all versions of MLflow
# take.
LONGEST, LONGEST_NAME, BATCH, METRICS = 500, 250, 100, 1000


class MlflowTracker:
    """A run at a tracking URI; it goes on under its id if it was tracked before."""

    def __init__(self, uri: str, run: TrackedRun):
        """Starts or resumes the run; raises the errors of mlflow."""
        import mlflow  # an extra

        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        service = f"mlflow:{uri}"
        run_id = run.id_in(service)
        self._id = run_id if run_id is not None and self._goes_on(run_id) else self._begin(run)
        if self._id != run_id:
            run.keep_id(service, self._id)
        self._client.log_dict(self._id, {name: _plain(value) for name, value in run.config.items()}, "config.json")

    def _goes_on(self, run_id) -> bool:
        """Whether the run exists at this URI and is not deleted; it is then marked as running."""
        import mlflow

        try:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                return False
        except mlflow.exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        self._client.update_run(run_id, status="RUNNING")
        return True

    def _begin(self, run) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id = self._client.create_run(experiment_id, run_name=run.folder.name).info.run_id
        # Parameters can never be changed, so that they are those of the first start; config.json has the present ones.
        params = [self._entities.Param(key, str(value)[:LONGEST]) for key, value in run.config.items()]
        for first in range(0, len(params), BATCH):
            self._client.log_batch(run_id, params=params[first : first + BATCH])
        return run_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Tracker`."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_name(name), value, now, step) for name, value in values.items()]
        for first in range(0, len(metrics), METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + METRICS])

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """As `Tracker`."""
        self._client.log_image(self._id, image, artifact_file=f"{_name(name)}/{step:07d}.png")

    def close(self, *, failed: bool) -> None:
        """As `Tracker`."""
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")


def _name(name: str) -> str:
    """A name without the characters and the empty or dotted parts that MLflow refuses; a class may be named so.

    The end of one that is too long becomes a checksum.
    """
    parts = re.sub(r"[^\w\-. /]", "_", name).split("/")
    name = "/".join(part if part.strip(". ") else "_" for part in parts)
    return shortened(name, longest=LONGEST_NAME)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
