"""The series that the rows of a log belong to: an evaluation is one with those of its data set and options alone."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

# Options of an evaluation that its title names; of the others it gives the number.
NAMED = 3

# Groups of options, and options, that change no number of an evaluation.
NEUTRAL_GROUPS = ("checkpoint", "init", "log", "predict", "solver")
NEUTRAL = frozenset(
    {
        *("data.prefetch", "data.root", "data.threads", "data.timeout", "data.workers", "num_gpus"),
        *("test.compare_nms", "test.datasets", "test.every", "test.ims_per_batch"),
    }
)


class Series(NamedTuple):
    """Rows whose numbers a curve may join.

    Attributes:
      dataset: name of the data set of an evaluation; None for rows of training.
      options: the options of an evaluation that differ from the run's and may change its numbers, as JSON; empty if
        there are none.
    """

    dataset: str | None
    options: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Series":
        """The series of a row."""
        dataset, options = row.get("dataset"), row.get("options")
        dataset = None if dataset is None else str(dataset)
        given = options.items() if isinstance(options, Mapping) else ()
        kept = {name: value for name, value in given if not _is_neutral(name)}
        return cls(dataset, json.dumps(kept) if kept else "")

    def with_options(self) -> str:
        """The options in words, " with test.nms=0.3"; empty if there are none."""
        if not self.options:
            return ""
        options = json.loads(self.options)
        shown = ", ".join(f"{name}={value}" for name, value in list(options.items())[:NAMED])
        return f" with {shown}" + (f" and {len(options) - NAMED} more" if len(options) > NAMED else "")

    def title(self) -> str:
        """The data set and the options in words."""
        return f"{self.dataset or 'unnamed'}{self.with_options()}"


def _is_neutral(option: str) -> bool:
    return option in NEUTRAL or option.split(".")[0] in NEUTRAL_GROUPS
