"""The order of evaluated checkpoints, by a metric of their own metadata."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

# A row of metrics has the name of its data set as "dataset", and metrics by name; None or NaN: the metric has no value.
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The metric that ranks checkpoints.

    Attributes:
      dataset: name of the test set that decides.
      metric: name of the metric in its row, such as "eval/AP". Validation losses (names that begin with
        "val/", except accuracies) are better if they are smaller, all other metrics if they are larger.
    """

    dataset: str
    metric: str

    def value(self, rows: Sequence[Row]) -> float | None:
        """The metric in the rows of an evaluation; None if it is missing or not finite."""
        found = next((row.get(self.metric) for row in rows if row.get("dataset") == self.dataset), None)
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None

    def is_better(self, value: float | None, than: float | None, *, by: float = 0.0) -> bool:
        """Whether a value is better than another by more than `by`; no value, None, is worse than any value."""
        if value is None or than is None:
            return value is not None
        return than - value > by if self.smaller_is_better else value - than > by

    @property
    def smaller_is_better(self) -> bool:
        """Whether the metric is a loss."""
        return self.metric.startswith("val/") and not self.metric.startswith("val/accuracy")


def ranking(evaluations: Mapping[int, Sequence[Row]], criterion: Criterion) -> list[int]:
    """Steps, best first, of the evaluations that have the criterion's metric; of equal ones the earliest is best.

    Args:
      evaluations: the rows of each evaluation by its step.
      criterion: the metric to compare.
    """
    values = {step: criterion.value(rows) for step, rows in evaluations.items()}
    sign = 1 if criterion.smaller_is_better else -1
    return sorted((step for step, value in values.items() if value is not None), key=lambda s: (sign * values[s], s))  # type: ignore[operator]


def stored_criterion(metadata: Mapping[int, Mapping[str, Any]]) -> Criterion | None:
    """The criterion of checkpoints, "best_by" of the newest one that has it, from their metadata by step."""
    named = (metadata[step].get("best_by") for step in sorted(metadata, reverse=True))
    return next((Criterion(**fields) for fields in named if fields), None)


def rank_checkpoints(metadata: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """As `ranking`, for checkpoints with an "evaluation" in their metadata, by `stored_criterion`; else empty.

    Args:
      metadata: the metadata of each checkpoint by its step.
    """
    criterion = stored_criterion(metadata)
    if criterion is None:
        return []
    return ranking({step: content.get("evaluation") or () for step, content in metadata.items()}, criterion)
