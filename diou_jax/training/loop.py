"""The training loop: one compiled update after the other, each followed by the hooks."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import jax

from diou_jax.optimization.state import TrainState
from diou_jax.structures import Batch


@dataclasses.dataclass(frozen=True)
class Moment:
    """The moment after an update.

    Attributes:
      step: number of the update, from 1.
      is_last: whether it is the last update of the run.
      is_logged: whether the log gets a line; only at such steps several processes communicate.
      state: the state after the update, on the devices.
      metrics: the state's window.
    """

    step: int
    is_last: bool
    is_logged: bool
    state: TrainState
    metrics: dict[str, jax.Array]


class Hook(Protocol):
    """A function that is called after each update; an exception that it raises ends the loop."""

    def __call__(self, moment: Moment) -> None:
        """Handles an update; hooks are called in their order."""


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
      update: the compiled step; the memory of its input state is donated.
      state: the state to start from, on the devices.
      stream: batches on the devices.
      last: number of the run's last update.
      log_every: number of updates per line of the log.
      hooks: functions that are called after each update.
    """
    for step, batch in enumerate(stream, start=int(state.step) + 1):
        state, metrics = update(state, batch)
        moment = Moment(step, step == last, step == last or step % log_every == 0, state, metrics)
        for hook in hooks:
            hook(moment)
    return state
