"""The series that the rows of a log belong to: an evaluation is one with those of its data set and options alone."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

# Options of an evaluation that its title names; of the others it gives the number.
NAMED = 3


class Series(NamedTuple):
    """Rows whose numbers a curve may join.

    Attributes:
      dataset: name of the data set of an evaluation; None for rows of training.
      options: the options of an evaluation that differ from the run's, as JSON; empty if there are none.
    """

    dataset: str | None
    options: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Series":
        """The series of a row."""
        dataset, options = row.get("dataset"), row.get("options")
        dataset = None if dataset is None else str(dataset)
        if not isinstance(options, Mapping) or not options:
            return cls(dataset)
        return cls(dataset, json.dumps(dict(options)))

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
