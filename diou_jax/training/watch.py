"""Detects from the log that a run has collapsed."""

from collections.abc import Iterable, Mapping
from typing import Any

from diou_jax.reporting.series import Series

# A run has collapsed if one of these metrics falls below SHARE of its best value: AP, or the recall of an RPN that is
# trained alone. Best values below LEAST_BEST do not count.
METRICS = ("eval/AP", "eval/AR@1000")
SHARE, LEAST_BEST = 0.5, 0.02

# A run has also collapsed if this number of rows in a row have exactly the same loss.
FROZEN_ROWS = 5


class Watch:
    """Checks the rows of a run's metrics, in order, including those from before it was resumed."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()):
        """Reads the existing rows."""
        self._best: dict[Series, float] = {}
        self._loss, self._equal = None, 1
        for row in rows:
            self.sign_of_collapse(row)

    def sign_of_collapse(self, row: Mapping[str, Any]) -> str | None:
        """The sign of a collapse that a new row shows, in words, or None."""
        for metric in METRICS:
            if metric in row:
                return self._by_evaluation(row, metric)
        return self._by_loss(row["loss"]) if "loss" in row else None

    def _by_evaluation(self, row, metric):
        value, series = row[metric], Series.of(row)
        value = value if isinstance(value, int | float) else 0.0
        best = self._best.get(series, 0.0)
        self._best[series] = max(best, value)
        if best >= LEAST_BEST and value < SHARE * best:
            return f"{metric.removeprefix('eval/')} fell to {value:.3f} from {best:.3f}: the run has collapsed"
        return None

    def _by_loss(self, loss):
        self._equal = self._equal + 1 if loss is not None and loss == self._loss else 1
        self._loss = loss
        if self._equal == FROZEN_ROWS:
            return f"the loss was exactly {loss} in {FROZEN_ROWS} lines: nothing is learnt any more"
        return None
