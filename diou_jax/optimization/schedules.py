"""Learning rates as functions of the step."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diou_jax.errors import UserError

# The largest number of a step in a program, an int32. The linear rule may multiply smaller ones beyond it.
LAST_STEP = 2**31 - 1


def _check_step(option: str, step: int) -> None:
    if step > LAST_STEP:
        raise UserError(
            f"{option}: step {step} exceeds {LAST_STEP}, the last one that can be counted; give a smaller number, or "
            "solver.scale_with_devices=False if the linear rule has made it so large"
        )


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """The smaller learning rate of a run's first updates.

    Attributes:
      iters: SOLVER.WARM_UP_ITERS, number of these updates.
      factor: SOLVER.WARM_UP_FACTOR, factor of the learning rate at the start.
      method: SOLVER.WARM_UP_METHOD, "linear" from `factor` to 1, or "constant".
    """

    iters: int
    factor: float
    method: str

    def __post_init__(self):
        if self.method not in ("linear", "constant"):
            raise UserError(f"solver.warm_up_method {self.method!r}: there are linear, constant")
        _check_step("solver.warm_up_iters", self.iters)

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """The factor for the update with number `step`, from 0: float32 scalar, 1 from `iters` on."""
        progress = jnp.minimum(step / max(self.iters, 1), 1.0) if self.method == "linear" else 0.0
        return jnp.where(step < self.iters, self.factor * (1 - progress) + progress, 1.0)


@dataclasses.dataclass(frozen=True)
class MultiStep:
    """A learning rate that is multiplied by `gamma` at given steps.

    Attributes:
      base_lr: SOLVER.BASE_LR.
      steps: SOLVER.STEPS; as in the original, the first is the start of the schedule and ignored.
      gamma: SOLVER.GAMMA.
      warm_up: factor of `base_lr` in the first updates, in which no decay applies.
    """

    base_lr: float
    steps: tuple[int, ...]
    gamma: float
    warm_up: WarmUp

    def __post_init__(self):
        _check_step("solver.steps", max(self.steps, default=0))

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """The learning rate of the update with number `step`, from 0: float32 scalar."""
        decays = (step >= jnp.asarray(self.steps[1:], jnp.int32)).sum()
        # The original multiplies repeatedly; a float32 power of gamma would differ from that.
        rates = [self.base_lr]
        for _ in self.steps[1:]:
            rates.append(rates[-1] * self.gamma)
        rate = jnp.asarray(rates, jnp.float32)[decays]
        return jnp.where(step < self.warm_up.iters, self.base_lr * self.warm_up(step), rate)


# The share of the learning rate that is left, by the share of the steps that is left, from 1 to 0. The cosine's
# (1 + cos(pi (1 - x))) / 2 is written as a square, since the sum cancels near the end.
CURVES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cosine": lambda left: jnp.sin(0.5 * math.pi * left) ** 2,
    "linear": lambda left: left,
}


@dataclasses.dataclass(frozen=True)
class Annealed:
    """A learning rate that falls to 0 along a curve, from the end of the warm-up to the end of the run.

    Attributes:
      base_lr: SOLVER.BASE_LR, the learning rate at the end of the warm-up.
      curve: a name of `CURVES`; "cosine" is that of Loshchilov and Hutter, 2017, without restarts.
      last: SOLVER.MAX_ITER, the number of updates.
      warm_up: factor of `base_lr` in the first updates.
    """

    base_lr: float
    curve: str
    last: int
    warm_up: WarmUp

    def __post_init__(self):
        _check_step("solver.max_iter", self.last)

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """The learning rate of the update with number `step`, from 0: float32 scalar."""
        falling = max(self.last - self.warm_up.iters, 1)
        left = jnp.clip((self.last - jnp.asarray(step)) / jnp.float32(falling), 0.0, 1.0)
        share = jnp.where(step < self.warm_up.iters, self.warm_up(step), CURVES[self.curve](left))
        return self.base_lr * share
