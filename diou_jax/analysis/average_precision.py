"""COCOeval's twelve numbers from matches, for images that count several times or not at all."""

import dataclasses

import numpy as np

from diou_jax.analysis.matches import Matches


@dataclasses.dataclass(frozen=True)
class Scores:
    """COCOeval's numbers for S sets of weights, in [0, 1]; NaN without objects.

    Attributes:
      statistics: float64 (S,) by name: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, where another
        limit of detections replaces the 100; the order is that of `coco_results.STATISTICS`.
      class_ap: float64 (S, N), AP of each class.
      class_ap50: float64 (S, N), AP50 of each class.
    """

    statistics: dict[str, np.ndarray]
    class_ap: np.ndarray
    class_ap50: np.ndarray


def score(matches: Matches, weights: np.ndarray | None = None, *, areas: bool = True) -> Scores:
    """COCOeval's numbers of a data set in which image i occurs ``weights[s, i]`` times.

    They equal those of COCOeval on a data set with real copies, which stand side by side in the order of images. One
    case differs: detections of one image and class with equal scores. Copies of an image are counted together,
    detection by detection, where COCOeval counts them one after the other. With weights of 0 and 1 nothing differs.

    Args:
      matches: the matches.
      weights: integers (S, I), not negative; None counts every image once, S = 1.
      areas: False leaves out the numbers by size, which take half of the time.
    """
    raise NotImplementedError
