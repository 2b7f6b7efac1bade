"""Functions of the network's variables on the first local device, or on all of them."""

from collections.abc import Callable
from typing import Any

import jax

from diou_jax.devices import AXIS, replicate
from diou_jax.programs import Programs


class OnDevices:
    """The network's variables on all local devices.

    Attributes:
      devices: the local devices.
      first: the variables on the first of them, without a copy.
    """

    def __init__(self, variables: dict):
        """Copies the variables to the devices."""
        self.devices = jax.local_devices()
        everywhere = replicate(variables)
        self.first = jax.tree.map(
            lambda x: next(shard.data for shard in x.addressable_shards if shard.device == self.devices[0]), everywhere
        )
        self._variables = {len(self.devices): everywhere, 1: self.first}

    def compiled(self, function: Callable) -> "Compiled":
        """``function(variables, batch, thresholds)``, a function of one device, for one device and for all."""
        several = jax.pmap(function, AXIS, in_axes=(None, 0, None))
        return Compiled({len(self.devices): several, 1: jax.jit(function)}, self._variables)

    def augmented(self, build: Callable[[Callable[[str, Callable], Programs]], Callable]) -> "Compiled":
        """As `compiled`, for a function that is made of several programs; `build` gets a compiler of these."""

        def on_all(title, function):
            return Programs(title, jax.pmap(function, AXIS, in_axes=(None, 0)))

        def on_one(title, function):
            return Programs(title, jax.jit(function))

        return Compiled({len(self.devices): build(on_all), 1: build(on_one)}, self._variables)


class Compiled:
    """A function that runs on one device or on all.

    Attributes:
      one: the program of one device, a function of variables, batch and thresholds.
    """

    def __init__(self, programs: dict[int, Callable], variables: dict[int, dict]):
        """Takes programs and variables by the number of devices."""
        self.one, self._programs, self._variables = programs[1], programs, variables

    def __call__(self, batch: Any, thresholds: Any, *, devices: int) -> Any:
        """The result for a batch; arrays have a leading axis of devices if there are several."""
        return self._programs[devices](self._variables[devices], batch, thresholds)
