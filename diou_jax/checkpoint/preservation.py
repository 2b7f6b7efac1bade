"""Decides which checkpoints stay when a new one is complete."""

from collections.abc import Sequence
from typing import Any


class NewestAndBest:
    """A preservation policy of orbax: the newest checkpoints and one more.

    Orbax's own `BestN` ranks by an item of its own in each checkpoint and has no rule for ties and NaN. Here the caller
    ranks, by the metadata.

    Attributes:
      newest: number of newest checkpoints that stay.
      best: step of the best checkpoint, which stays as well, or None.
    """

    def __init__(self, newest: int):
        """Keeps the newest ones only, until `best` is set."""
        self.newest = newest
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
        """Whether to keep each of some checkpoints, in ascending order of their steps."""
        del context
        first = len(checkpoints) - self.newest
        return [number >= first or one.step == self.best for number, one in enumerate(checkpoints)]
