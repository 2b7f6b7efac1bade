"""Large-scale jitter: an image is scaled by a random factor and cut to a fixed size.

References:
  Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, CVPR 2021.
"""

import dataclasses

from diou_jax.data.augmentation import Key
from diou_jax.data.view import Size, View, cropped, resized_size, scaled


@dataclasses.dataclass(frozen=True)
class ScaleJitter:
    """Scales an image to a random multiple of the largest size that fits into a square, and cuts it to the square.

    The aspect ratio stays. A larger image shows a random part; a smaller one stands in the upper left corner, and the
    rest is padding. The same as torchvision's ScaleJitter and FixedSizeCrop.

    Attributes:
      low: smallest factor; the paper has 0.1.
      high: largest factor; the paper has 2.
      side: side of the square, pixels; the paper has 1024.
    """

    low: float
    high: float
    side: int

    def __call__(self, key: Key, size: Size) -> View:
        share, top, left = key.uniform("scale jitter", 3)
        factor = self.low + (self.high - self.low) * share
        view = scaled(size, factor * self.side / max(size))
        height, width = (max(length - self.side, 0) for length in view.size)
        # The part begins at a whole pixel, so that it ends at one, too.
        corner = int(top * (height + 1)), int(left * (width + 1))
        return view.then(cropped(view.size, *corner, shape=(self.side, self.side)))

    def largest(self, size: Size) -> Size:
        height, width = resized_size(*size, self.high * self.side / max(size))
        return min(height, self.side), min(width, self.side)
