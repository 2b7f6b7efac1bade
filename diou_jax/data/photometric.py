"""Photometric jitter: random brightness, contrast, saturation and hue.

Each is a linear change of a pixel's colour, so that together they are one, too (`View.colour`), and values are rounded
and limited to 0 to 255 once.

References:
  Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016; the ranges are those of its code.
"""

import dataclasses
import math

import numpy as np

from diou_jax.data.augmentation import Key
from diou_jax.data.view import Size, View, recoloured, whole

# Weights of blue, green and red in the grey value of a pixel (ITU-R BT.601).
LUMA = np.array([0.114, 0.587, 0.299])


@dataclasses.dataclass(frozen=True)
class PhotometricJitter:
    """Changes brightness, contrast, saturation and hue in this order, each with the same probability.

    Attributes:
      probability: of each of the four changes.
      brightness: largest number that is added to all channels, or subtracted.
      contrast: smallest and largest factor of all channels.
      saturation: smallest and largest factor of a pixel's difference from its grey value.
      hue: largest angle in degrees by which colours turn about the grey axis; a third of a turn makes blue green.
    """

    probability: float
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0

    def __call__(self, key: Key, size: Size) -> View:
        draws = key.uniform("photometric jitter", 8)
        wanted, amounts = draws[:4] < self.probability, draws[4:]
        changes = (
            brighter(_between(-self.brightness, self.brightness, amounts[0])),
            multiplied(_between(*self.contrast, amounts[1])),
            saturated(_between(*self.saturation, amounts[2])),
            turned(_between(-self.hue, self.hue, amounts[3])),
        )
        colour = np.eye(4)
        for change, takes_place in zip(changes, wanted, strict=True):
            if takes_place:
                colour = change @ colour
        return recoloured(size, colour[:3]) if wanted.any() else whole(size)

    def largest(self, size: Size) -> Size:
        return size


def brighter(amount: float) -> np.ndarray:
    """Adds a number to all channels: (4, 4), to be applied to (b, g, r, 1)."""
    change = np.eye(4)
    change[:3, 3] = amount
    return change


def multiplied(factor: float) -> np.ndarray:
    """Multiplies all channels by a factor: (4, 4)."""
    return np.diag([factor, factor, factor, 1.0])


def saturated(factor: float) -> np.ndarray:
    """Multiplies the difference of a pixel from its grey value by a factor: (4, 4); 0 makes an image grey."""
    change = np.eye(4)
    change[:3, :3] = factor * np.eye(3) + (1 - factor) * LUMA
    return change


def turned(degrees: float) -> np.ndarray:
    """Turns colours about the grey axis: (4, 4). Grey stays; 120 degrees take blue to green, to red, to blue."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)) / math.sqrt(3)
    change = np.eye(4)
    even = np.full((3, 3), (1 - cosine) / 3)
    change[:3, :3] = cosine * np.eye(3) + even + sine * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return change


def _between(low, high, share):
    return low + (high - low) * share
