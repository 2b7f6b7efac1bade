"""Random crops that keep objects.

References:
  Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, section 2.2, "Data augmentation".
"""

import dataclasses

import numpy as np

from diou_jax.data.augmentation import Key
from diou_jax.data.view import Size, View, cropped, whole

# Smallest IoU of a part with one of its objects, one of which is drawn; the part may be the whole image.
OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
TRIALS = 40


@dataclasses.dataclass(frozen=True)
class IoUCrop:
    """Cuts out a random part that holds the centre of an object and overlaps such an object enough.

    The sides of a part are 0.3 to 1 of the image's, and its aspect ratio, in units of the image's, is 0.5 to 2. The
    smallest overlap is drawn from `OVERLAPS`; with 1, without an object or after `TRIALS` parts in vain the image stays
    whole.

    Attributes:
      probability: the probability that a part is looked for.
    """

    probability: float

    def __call__(self, key: Key, size: Size) -> View:
        wanted, choice = key.uniform("crop or not", 2)
        least = OVERLAPS[int(choice * len(OVERLAPS))]
        if wanted >= self.probability or least == 1 or not len(key.boxes):
            return whole(size)
        parts = _parts(key.uniform("crop", 4 * TRIALS).reshape(TRIALS, 4), size)
        found = np.flatnonzero(_keeps(parts, key.boxes, least))
        if not len(found):
            return whole(size)
        left, top, right, bottom = parts[found[0]].tolist()
        return cropped(size, top, left, shape=(bottom - top, right - left))

    def largest(self, size: Size) -> Size:
        return size


def _parts(draws, size):
    """Parts of an image, edges x1, y1, x2, y2 in whole pixels: int (TRIALS, 4); empty for a wrong aspect ratio."""
    sides = np.array(size[::-1])
    shares = 0.3 + 0.7 * draws[:, :2]
    lengths = np.maximum((shares * sides).astype(int), 1)
    corner = ((sides - lengths + 1) * draws[:, 2:]).astype(int)
    ratio = shares[:, 0] / shares[:, 1]
    allowed = (ratio >= 0.5) & (ratio <= 2)
    return np.concatenate([corner, corner + lengths * allowed[:, None]], 1)


def _keeps(parts, boxes, least):
    """Whether the IoU of a part (T, 4) with a box (n, 4) whose centre it holds is large enough: bool (T,)."""
    centre = 0.5 * (boxes[:, :2] + boxes[:, 2:])
    holds = ((centre > parts[:, None, :2]) & (centre < parts[:, None, 2:])).all(-1)
    shared = np.minimum(parts[:, None, 2:], boxes[:, 2:]) - np.maximum(parts[:, None, :2], boxes[:, :2])
    intersection = np.maximum(shared, 0).prod(-1)
    area, areas = (parts[:, 2:] - parts[:, :2]).prod(1), (boxes[:, 2:] - boxes[:, :2]).prod(1)
    union = area[:, None] + areas - intersection
    return (holds & (intersection >= least * union)).any(1)
