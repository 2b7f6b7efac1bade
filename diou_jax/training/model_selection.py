"""Decides which checkpoint of a run is the best, and whether the run has stopped getting better."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diou_jax.checkpoint.ranking import Criterion, Row


class ModelSelection:
    """The best evaluation of a run, and the number of evaluations since the last improvement.

    All of this is part of each checkpoint's metadata, so that a resumed run makes the same decisions as one that was
    never interrupted.
    """

    def __init__(self, criterion: Criterion | None, *, patience: int = 0, min_delta: float = 0.0):
        """Starts without any evaluation.

        Args:
          criterion: the metric that ranks checkpoints; None: no checkpoint is the best one.
          patience: evaluations in a row without an improvement after which the run ends; 0: it never ends early.
          min_delta: a value is an improvement if it is better than the last improvement by more than this.
        """
        self._criterion, self._patience, self._min_delta = criterion, patience, min_delta
        self._latest: tuple[int, list[dict]] | None = None
        self._best: tuple[int, float] | None = None
        # The last improvement by more than `min_delta`. The best value may be better by less than that.
        self._improvement: tuple[int, float] | None = None
        self._waited = 0

    def resume(self, metadata: Mapping[str, Any]) -> None:
        """Continues with the evaluations in a checkpoint's metadata; starts anew if they rank by another metric."""
        self._latest, self._best, self._improvement, self._waited = None, None, None, 0
        stored = metadata.get("early_stopping")
        if stored and self._criterion and metadata.get("best_by") == vars(self._criterion):
            self._improvement = None if stored["value"] is None else (stored["step"], stored["value"])
            self._waited = stored["waited"]
            best = metadata.get("best_so_far")
            self._best = (best["step"], best["value"]) if best else self._improvement

    def record(self, step: int, rows: Sequence[Row], *, counts: bool) -> dict[str, float]:
        """Records an evaluation; all processes call this.

        Args:
          step: number of updates done.
          rows: the rows of metrics; only those of the first process matter.
          counts: whether the evaluation counts for early stopping. An evaluation of a run's last step does not if it
            lies between the regular ones, since a longer run would not have it.

        Returns:
          Values for the log: the best one of the evaluations that count so far, and its step.
        """
        if self._criterion is None:
            return {}
        self._latest = (step, [{name: _as_json(value) for name, value in row.items()} for row in rows])
        value = _from_first(self._criterion.value(rows))
        if not counts:
            return {}
        if value is not None and self._criterion.is_better(value, self._best and self._best[1]):
            self._best = (step, value)
        if value is not None and self._criterion.is_better(
            value, self._improvement and self._improvement[1], by=self._min_delta
        ):
            self._improvement, self._waited = (step, value), 0
        else:
            self._waited += 1
        if self._best is None:
            return {}
        name = self._criterion.metric.removeprefix("eval/")
        return {f"best/{name}": self._best[1], "best/step": float(self._best[0])}

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata of a step's checkpoint, JSON values."""
        if self._criterion is None:
            return {}
        improved, value = self._improvement or (None, None)
        found: dict[str, Any] = {
            "best_by": dict(vars(self._criterion)),
            "early_stopping": {"step": improved, "value": value, "waited": self._waited},
        }
        if self._best is not None and self._best != self._improvement:
            found["best_so_far"] = dict(zip(("step", "value"), self._best, strict=True))
        return found | ({"evaluation": self._latest[1]} if self._latest and self._latest[0] == step else {})

    def was_evaluated(self, step: int) -> bool:
        """Whether the last evaluation was at this step."""
        return self._latest is not None and self._latest[0] == step

    def reason_to_stop(self) -> str | None:
        """Why the run should end now, in words, or None."""
        if self._criterion is None or not self._patience or self._waited < self._patience:
            return None
        name = f"{self._criterion.metric.removeprefix('eval/')} of {self._criterion.dataset}"
        if self._improvement is None:
            return f"early stopping: {name} had no value in {self._waited} evaluations"
        step, value = self._improvement
        return f"early stopping: {name} has not improved on {value:.4g} of step {step} in {self._waited} evaluations"


def _as_json(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_first(value: float | None) -> float | None:
    """The first process' number with all of its 64 bits, sent as bytes, since JAX would round it to 32 bits."""
    if jax.process_count() == 1:
        return value
    sent = np.frombuffer(np.float64(math.nan if value is None else value).tobytes(), np.uint8)
    found = float(np.frombuffer(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes(), np.float64)[0])
    return None if math.isnan(found) else found
