"""Weights & Biases as a tracker. Its own variables decide the rest: WANDB_MODE=offline, WANDB_ENTITY, WANDB_API_KEY."""

import uuid
from collections.abc import Mapping

from PIL import Image

from diou_jax.reporting.tracking import TrackedRun

# Seconds after which a login or a start without an answer counts as failed.
LOGIN, START = 30, 60


class WandbTracker:
    """A run of a project; it goes on under its id if it was tracked before."""

    def __init__(self, project: str, run: TrackedRun):
        """Starts or resumes the run; raises the errors of wandb."""
        import wandb  # an extra

        self._wandb = wandb
        service = f"wandb:{project}"
        run_id = run.id_in(service)
        if run_id is None:
            # Kept before it is used, so that a run that is killed at once goes on under it.
            run_id = uuid.uuid4().hex[:12]
            run.keep_id(service, run_id)
        self._run = wandb.init(
            project=project,
            id=run_id,
            resume="allow",
            name=run.folder.name,
            dir=str(run.folder),
            config=dict(run.config),
            allow_val_change=True,  # a run that goes on may change some options
            settings=wandb.Settings(login_timeout=LOGIN, init_timeout=START),
        )
        # A run that goes on repeats steps, which wandb's own counter would refuse.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Tracker`."""
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, image: Image.Image) -> None:
        """As `Tracker`."""
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self, *, failed: bool) -> None:
        """As `Tracker`."""
        self._run.finish(exit_code=int(failed))
