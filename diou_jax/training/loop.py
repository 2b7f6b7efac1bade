"""The training loop: one compiled update after the other, and the hooks that look at each."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import jax

from diou_jax.structures import Batch
from diou_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Moment:
    """An update that is done.

    Attributes:
      step: its number, from 1.
      is_last: whether it is the run's last.
      is_logged: whether the log gets a line; several processes speak with each other at such steps only.
      state: after it, on the devices.
      metrics: the state's window.
    """

    step: int
    is_last: bool
    is_logged: bool
    state: TrainState
    metrics: dict[str, jax.Array]


class Hook(Protocol):
    """Looks at each update; whatever it raises ends the loop."""

    def __call__(self, moment: Moment) -> None:
        """Called after the update, in the order of the hooks."""


def run_steps(
    update: Callable[[TrainState, Batch], tuple[TrainState, dict]],
    state: TrainState,
    stream: Iterable[Batch],
    *,
    last: int,
    log_every: int,
    hooks: Sequence[Hook],
) -> TrainState:
    """Takes an update for each batch and returns the last state.

    Args:
      update: the compiled step, which takes the memory of the state that it is given.
      state: to start from, on the devices.
      stream: batches on the devices.
      last: number of the run's last update.
      log_every: updates between two lines of the log.
      hooks: called after each update.
    """
    for step, batch in enumerate(stream, start=int(state.step) + 1):
        state, metrics = update(state, batch)
        moment = Moment(step, step == last, step == last or step % log_every == 0, state, metrics)
        for hook in hooks:
            hook(moment)
    return state
