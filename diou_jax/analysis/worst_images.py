"""The images that cost the most AP, and the errors in them."""

import dataclasses

import numpy as np

from diou_jax.analysis.average_precision import BLOCK, ClassRows
from diou_jax.analysis.errors import Errors, Kind
from diou_jax.analysis.matches import Matches

# Kinds of detections that are no duplicates and yet wrong.
FALSE = (Kind.CLASS, Kind.PLACE, Kind.BOTH, Kind.BACKGROUND)


@dataclasses.dataclass(frozen=True)
class ImageErrors:
    """The errors in an image at IoU 0.5.

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
    is. So right detections of a low score are a loss, too. The gain is exact, as AP is computed anew for each image;
    gains of several images do not add up. It is 0 for an image whose errors cost nothing.
    """
    losses = np.zeros(len(matches.image_ids))
    counted = matches.objects() > 0
    # Each set of weights leaves one image out.
    columns = np.ones((len(losses), min(BLOCK, len(losses))))
    for row in np.flatnonzero(counted).tolist():
        one = ClassRows.of(matches, row)
        objects = np.bincount(one.object_images, minlength=len(losses)).astype(np.float64)
        before = one.average_precision(columns[:, :1], objects.sum(keepdims=True))
        every, chosen, group = _alike(one)
        gained = np.zeros(len(chosen))
        for start in range(0, len(chosen), BLOCK):
            part = chosen[start : start + BLOCK]
            sets = np.arange(len(part))
            columns[part, sets] = 0
            # Its objects are found before all others.
            after = one.average_precision(
                columns[:, : len(part)], np.repeat(objects.sum(), len(part)), first=objects[part]
            )
            columns[part, sets] = 1
            gained[start : start + BLOCK] = (after - before).mean(0)
        losses[every] += gained[group]
    return losses / max(1, counted.sum())


def _alike(one: ClassRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images that have objects or detections of a class, in groups that cost the same AP.

    Most have no object and one detection that is wrong at all thresholds. It matters only between which of the other
    detections it stands.

    Returns:
      The images; one image of each group; the group of each image.
    """
    every, counts = np.unique(np.concatenate([one.images, one.wrong_images, one.object_images]), return_counts=True)
    place = np.searchsorted(one.wrong_before, np.arange(len(one.wrong_images)), side="right")
    alone = counts[np.searchsorted(every, one.wrong_images)] == 1
    # Places come before the images that are in a group of their own.
    key = len(one.images) + 1 + every
    key[np.searchsorted(every, one.wrong_images[alone])] = place[alone]
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    return every, every[first], group


def worst_images(
    matches: Matches, errors: Errors, *, count: int = 20, losses: np.ndarray | None = None
) -> list[ImageErrors]:
    """The `count` images with the largest losses, largest first, of those with an error at IoU 0.5.

    Args:
      matches: the matches.
      errors: their errors.
      count: number of images.
      losses: result of `image_losses`, computed by default.
    """
    losses = image_losses(matches) if losses is None else losses
    threshold = matches.threshold(0.5)
    kinds, missed = errors.found[threshold], matches.true.matched[0, threshold] < 0
    missed &= ~matches.true.ignored[0]
    faulty = np.zeros(len(losses), bool)
    faulty[matches.found.images[np.isin(kinds, (Kind.DUPLICATE, *FALSE))]] = True
    faulty[matches.true.images[missed]] = True
    worst = np.argsort(-losses, kind="stable")
    return [
        ImageErrors(
            image=image,
            image_id=matches.image_ids[image],
            loss=float(losses[image]),
            right=_by_score(matches, image, kinds == Kind.RIGHT),
            missed=np.flatnonzero(missed & (matches.true.images == image)),
            duplicates=_by_score(matches, image, kinds == Kind.DUPLICATE),
            false=_by_score(matches, image, np.isin(kinds, FALSE)),
        )
        for image in worst[faulty[worst] & (losses[worst] > 0)][:count].tolist()
    ]


def _by_score(matches: Matches, image: int, chosen: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(chosen & (matches.found.images == image))
    return rows[np.argsort(-matches.found.scores[rows], kind="stable")]
