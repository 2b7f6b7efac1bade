"""Evaluations compared image by image: the differences of AP, the classes that gain or lose, the images that differ."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diou_jax.analysis.intervals import RESAMPLES, Intervals, paired_bootstraps
from diou_jax.analysis.matches import Matches
from diou_jax.analysis.worst_images import image_losses


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the evaluations that are compared.

    Attributes:
      name: short name, for tables: that of a run, or a setting of test options.
      folder: the folder with its results.
      step: number of updates of the weights, None if it is not known.
      statistics: COCOeval's numbers by name, in [0, 1]; -1 without objects.
      matches: which detection was matched with which object; objects are the same on every side, row by row.
      options: the values of all options of its config, by dotted name.
    """

    name: str
    folder: str
    step: int | None
    statistics: Mapping[str, float]
    matches: Matches
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ImageDifference:
    """An image in which two sides differ; matches are those at IoU 0.5.

    Attributes:
      image: row of `Matches.image_ids`.
      image_id: its id.
      gain: AP lost in this image by the first side less that of the other; positive where the other is better. See
        `worst_images.image_losses`.
      gained: rows of `TrueObjects` that only the other side finds.
      lost: rows of `TrueObjects` that only the first side finds.
      false: rows of the first side's `FoundObjects` in this image that are wrong, by descending score.
      other_false: likewise of the other side.
    """

    image: int
    image_id: int | str
    gain: float
    gained: np.ndarray
    lost: np.ndarray
    false: np.ndarray
    other_false: np.ndarray


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of another side from the first.

    Attributes:
      intervals: paired intervals of ``other - first`` of COCOeval's numbers and of every class.
      images: the images that differ most, largest absolute gain first, without those in which detections are equal.
    """

    intervals: Intervals
    images: tuple[ImageDifference, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Evaluations of the same images, each compared with the first.

    Attributes:
      dataset: name of the data set.
      kind: "bbox" or "segm", whether boxes or masks were compared with the ground truth.
      sides: two or more evaluations.
      differences: one for each side but the first.
      options: by name the values, one for each side, of the options in which the sides differ; None where a side's
        config lacks the option.
    """

    dataset: str
    kind: str
    sides: tuple[Side, ...]
    differences: tuple[Difference, ...]
    options: dict[str, tuple[Any, ...]]


def compare(
    sides: Sequence[Side], *, dataset: str, images: int = 20, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compares every side with the first.

    Args:
      sides: evaluations of the same images against the same objects.
      dataset: name of the data set.
      images: the largest number of images that differ most; 0 leaves out this part.
      resamples: number of bootstrap resamples.
      seed: seed of the resamples.

    Raises:
      UserError: if two sides have other images, classes or kinds.
    """
    first, *others = sides
    intervals = paired_bootstraps(first.matches, [other.matches for other in others], resamples=resamples, seed=seed)
    differing: list[tuple[ImageDifference, ...]] = [()] * len(others)
    if images and others:
        losses = image_losses(first.matches)
        differing = [_images(first.matches, other.matches, losses=losses, count=images) for other in others]
    differences = tuple(map(Difference, intervals, differing))
    return Comparison(dataset, first.matches.kind, tuple(sides), differences, different_options(sides))


def different_options(sides: Sequence[Side]) -> dict[str, tuple[Any, ...]]:
    """By name the values of the options in which the sides differ."""
    names = sorted({name for side in sides for name in side.options})
    values = {name: tuple(side.options.get(name) for side in sides) for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _images(first: Matches, other: Matches, *, losses: np.ndarray, count: int) -> tuple[ImageDifference, ...]:
    # Perfection in an image would outrank false detections elsewhere, so that losses differ in equal images, too.
    same = [one == two for one, two in zip(_by_image(first), _by_image(other), strict=True)]
    gains = np.where(same, 0.0, losses - image_losses(other))
    order = np.argsort(-np.abs(gains), kind="stable")[:count]
    row = first.threshold(0.5)
    found, other_found = (matches.true.matched[0, row] >= 0 for matches in (first, other))
    wrong, other_wrong = (matches.wrong()[row] for matches in (first, other))
    return tuple(
        ImageDifference(
            image=image,
            image_id=first.image_ids[image],
            gain=float(gains[image]),
            gained=np.flatnonzero((first.true.images == image) & other_found & ~found),
            lost=np.flatnonzero((first.true.images == image) & found & ~other_found),
            false=_by_score(first, wrong & (first.found.images == image)),
            other_false=_by_score(other, other_wrong & (other.found.images == image)),
        )
        for image in order.tolist()
        if gains[image] != 0
    )


def _by_image(matches: Matches) -> list[bytes]:
    """The detections of each image, in a form that is equal for equal ones."""
    found = matches.found
    rows = np.column_stack([found.images, found.classes, found.scores, found.boxes])
    rows = rows[np.lexsort(rows.T[::-1])]
    ends = np.searchsorted(rows[:, 0], np.arange(len(matches.image_ids) + 1))
    return [rows[start:end].tobytes() for start, end in itertools.pairwise(ends.tolist())]


def _by_score(matches: Matches, chosen: np.ndarray) -> np.ndarray:
    """The chosen rows (D,) of `FoundObjects`, by descending score."""
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-matches.found.scores[rows], kind="stable")]
