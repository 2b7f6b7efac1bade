"""The losses of training on images of a test set, without a gradient."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.data.loader import batches
from diou_jax.data.reader import Reader
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.devices import AXIS, to_devices
from diou_jax.programs import Programs
from diou_jax.structures import Batch


class ValidationLosses:
    """Computes a detector's losses on images of test sets, each image by itself, and averages them by test set.

    An image's samples are drawn by the seed and its row in the data set alone, so that evaluations differ by the
    weights only, and no number of devices changes the draws.

    Attributes:
      names: names of the metrics, ``val/loss`` first.
    """

    def __init__(self, detector: FasterRCNN, readers: Mapping[str, Reader], *, seed: int, loading: dict[str, Any]):
        """Takes the images of each test set.

        Args:
          detector: network and rules; those of training steer the losses.
          readers: readers of test sets, by name, whose batches have one image with ground truth for each device.
          seed: seed of the samples.
          loading: keyword arguments of `batches`.
        """
        self._readers, self._loading = readers, loading
        self.names = tuple(f"val/{name}" for name in detector.loss_names)
        on_devices = jax.pmap(_sums(detector, seed), AXIS, in_axes=(None, 0), out_axes=None)
        self._sums = Programs("validation losses", on_devices)

    def __call__(self, variables: dict) -> dict[str, dict[str, float]]:
        """By test set, the means over all images that can be read, NaN if there is none; every process gets the same.

        Args:
          variables: the network's variables as training has them, on the devices.
        """
        return {name: self._means(variables, reader) for name, reader in self._readers.items()}

    def _means(self, variables, reader):
        stream = batches(reader, 0, reader.steps, **self._loading)
        sums = [self._sums(variables, batch) for batch in to_devices(stream, ahead=1)]
        total = np.asarray(jax.device_get(sums), np.float64).sum(0)
        means = total[1:] / total[0] if total[0] else np.full(len(self.names), np.nan)
        return dict(zip(self.names, means.tolist(), strict=True))

    def programs(self, variables: dict) -> list[tuple[Programs, Any, Any]]:
        """The programs that a call with such variables needs and that are not yet compiled, for `compile_ahead`."""
        blanks = (blank for reader in self._readers.values() for blank in reader.blanks(0, reader.steps))
        return [(self._sums, variables, batch) for batch in to_devices(blanks, ahead=0) if not self._sums.has(batch)]


def _sums(detector, seed) -> Callable[[dict, Batch], jax.Array]:
    """A function of one device: (1 + losses,) float32, the number of present images and the sum of each loss."""

    def of_image(variables, batch: Batch):
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(batch.index)
        _, values = detector.losses(variables, batch, keys)
        found = jnp.stack([jnp.float32(1), *(values[name] for name in detector.loss_names)])
        # Where no image is, even NaN must not count.
        return jax.lax.psum(jnp.where(batch.present[0], found, 0.0), AXIS)

    return of_image
