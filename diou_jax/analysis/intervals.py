"""How sure AP is: bootstrap intervals over images, of one evaluation and of the difference of two."""

import dataclasses

from diou_jax.analysis.matches import Matches

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and the ends of its percentile interval; NaN where it is not defined.

    Attributes:
      value: the number on the data set itself.
      low: lower end.
      high: upper end.
      resamples: the number of resamples in which the number was defined.
    """

    value: float
    low: float
    high: float
    resamples: int


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Intervals of COCOeval's numbers.

    Attributes:
      statistics: by name, see `average_precision.Scores`.
      classes: of the AP of each class, N in the order of `Matches.class_names`.
      classes50: likewise of AP50.
      level: the share of resamples between the ends, 0.95.
    """

    statistics: dict[str, Interval]
    classes: tuple[Interval, ...]
    classes50: tuple[Interval, ...]
    level: float


def bootstrap(matches: Matches, *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95) -> Intervals:
    """Percentile intervals of one evaluation, over images that are drawn with replacement.

    An interval covers what another sample of images of the same source would change. It does not cover what another
    training run, other weights or other annotators would change, nor images of another source. It treats images as
    independent: frames of one video are not, and their interval is too narrow. With few images, or few objects of a
    class, a percentile interval is too narrow, too; `Interval.resamples` says in how many resamples the class had
    objects at all.
    """
    raise NotImplementedError


def paired_bootstrap(
    first: Matches, second: Matches, *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> Intervals:
    """Intervals of ``second - first``, both evaluated on the same images, which are drawn for both together.

    What makes an image difficult for both cancels, so that these intervals are much narrower than those of `bootstrap`.
    A difference is shown where its interval excludes 0. With 80 classes, four of the class intervals do so by chance.
    For the rest `bootstrap` says what the intervals cover: two training runs differ by more than their images.

    Raises:
      UserError: if both have other images, classes or kinds.
    """
    raise NotImplementedError
