"""The images that cost the most AP, and what is wrong in them."""

import dataclasses

import numpy as np

from diou_jax.analysis.errors import Errors
from diou_jax.analysis.matches import Matches


@dataclasses.dataclass(frozen=True)
class ImageErrors:
    """What is wrong in an image at IoU 0.5.

    Attributes:
      image: row of `Matches.image_ids`.
      image_id: its id.
      loss: see `image_losses`.
      right: rows of `FoundObjects`, by descending score.
      missed: rows of `TrueObjects` that no detection found.
      duplicates: rows of `FoundObjects`, by descending score.
      false: rows of `FoundObjects` with any other error, by descending score.
    """

    image: int
    image_id: int | str
    loss: float
    right: np.ndarray
    missed: np.ndarray
    duplicates: np.ndarray
    false: np.ndarray


def image_losses(matches: Matches) -> np.ndarray:
    """float64 (I,): the AP that the data set would gain if the detector were perfect in one image.

    Perfect means: every object of the image is found, with a score above all others and at every IoU, and nothing else
    is. The gain is exact, found by computing AP anew for each image; gains of several images do not add up. 0 for an
    image whose errors cost nothing, as those of classes without objects.
    """
    raise NotImplementedError


def worst_images(
    matches: Matches, errors: Errors, *, count: int = 20, losses: np.ndarray | None = None
) -> list[ImageErrors]:
    """The `count` images with the largest losses, largest first, without those that lose nothing.

    Args:
      matches: the matches.
      errors: their errors.
      count: number of images.
      losses: result of `image_losses`, computed by default.
    """
    raise NotImplementedError
