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
    if weights is None:
        weights = np.ones((1, len(matches.image_ids)))
    names = matches.area_names if areas else matches.area_names[:1]
    half, third = (matches.threshold(iou) for iou in (0.5, 0.75))
    precision, recall = zip(*(class_scores(matches, weights, area) for area in range(len(names))), strict=True)
    statistics = {
        "AP": _mean(precision[0]),
        "AP50": _mean(precision[0][half]),
        "AP75": _mean(precision[0][third]),
    }
    statistics |= {f"AP{name[0]}": _mean(precision[area]) for area, name in enumerate(names) if area}
    for limit, values in zip(matches.max_dets, recall[0], strict=True):
        statistics[f"AR{limit}"] = _mean(values)
    statistics |= {f"AR{name[0]}": _mean(recall[area][-1]) for area, name in enumerate(names) if area}
    return Scores(statistics, precision[0].mean(0).T, precision[0][half].T)


def class_scores(matches: Matches, weights: np.ndarray, area: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """AP and recall of each class and IoU threshold in an area range.

    Args:
      matches: the matches.
      weights: (S, I), how often each image counts.
      area: row of `Matches.area_names`.

    Returns:
      AP (T, N, S) with the largest of ``max_dets``, and recall (limits, T, N, S) for each of them; NaN without objects.
    """
    weights = np.asarray(weights, np.float64)
    shape = len(matches.iou_thresholds), len(matches.class_names), len(weights)
    precision, recall = np.full(shape, np.nan), np.full((len(matches.max_dets), *shape), np.nan)
    for row in range(shape[1]):
        one = ClassRows.of(matches, row, area)
        objects = one.count(weights)
        with np.errstate(invalid="ignore"):
            for place, limit in enumerate(matches.max_dets):
                recall[place, :, row] = one.hits(weights, limit) / objects
        precision[:, row] = np.where(objects > 0, one.average_precision(weights, objects), np.nan)
    return precision, recall


@dataclasses.dataclass(frozen=True)
class ClassRows:
    """The detections of one class in one area range, divided by their effect on AP.

    AP depends on precision where a detection is right at some threshold. Detections that are wrong at all thresholds
    matter as counts between these, and so they need no axis of thresholds.

    Attributes:
      images: int (n,), images of the detections that are right at some threshold, or ignored at some; by score.
      ranks: int (n,), their place in their image.
      right: bool (T, n).
      counted: bool (T, n), right or wrong.
      wrong_images: int (w,), images of the detections that are wrong at all thresholds, by score.
      wrong_before: int (n,), how many of these have a higher score than each of `images`.
      object_images: int (g,), images of the objects.
      recalls: float64 (101,), recalls at which precision is read.
    """

    images: np.ndarray
    ranks: np.ndarray
    right: np.ndarray
    counted: np.ndarray
    wrong_images: np.ndarray
    wrong_before: np.ndarray
    object_images: np.ndarray
    recalls: np.ndarray

    @classmethod
    def of(cls, matches: Matches, row: int, area: int = 0) -> "ClassRows":
        """The rows of a class, given as a row of `Matches.class_names`."""
        found, true, mine = matches.found, matches.true, matches.rows(row)
        matched, counted = found.matched[area, :, mine] >= 0, ~found.ignored[area, :, mine]
        right = matched & counted
        wrong = counted.all(0) & ~right.any(0)
        event = np.flatnonzero(counted.any(0) & ~wrong)
        return cls(
            images=found.images[mine][event],
            ranks=found.ranks[mine][event],
            right=right[:, event],
            counted=counted[:, event],
            wrong_images=found.images[mine][wrong],
            wrong_before=np.cumsum(wrong)[event],
            object_images=true.images[(true.classes == row) & ~true.ignored[area]],
            recalls=matches.recalls,
        )

    def count(self, weights: np.ndarray) -> np.ndarray:
        """float64 (S,): the objects, for weights (S, I)."""
        return weights[:, self.object_images].sum(1)

    def hits(self, weights: np.ndarray, limit: int) -> np.ndarray:
        """float64 (T, S): objects found by the `limit` best detections of their image."""
        few = self.ranks < limit
        return self.right[:, few].astype(np.float64) @ weights[:, self.images[few]].T

    def average_precision(
        self, weights: np.ndarray, objects: np.ndarray, *, first: np.ndarray | None = None
    ) -> np.ndarray:
        """AP (T, S), without meaning where there are no objects.

        Args:
          weights: float64 (S, I), how often each image counts.
          objects: float64 (S,), the number of objects.
          first: float64 (S,), a number of right detections of higher score than all others.
        """
        sets, ap = len(weights), np.zeros((len(self.right), len(weights)))
        # Blocks of sets whose arrays fit into the processor's cache.
        block = max(1, BLOCK // max(1, self.right.size + len(self.wrong_images)))
        for start in range(0, sets, block):
            part = slice(start, start + block)
            mine = weights[part]
            wrong = np.zeros((len(mine), len(self.wrong_images) + 1))
            np.cumsum(mine[:, self.wrong_images], 1, out=wrong[:, 1:])
            each = mine[:, None, self.images]
            hits, counted = np.cumsum(each * self.right, 2), np.cumsum(each * self.counted, 2)
            counted += wrong[:, None, self.wrong_before]
            ap[:, part] = read_precision(
                hits, counted, objects[part, None], self.recalls, first=None if first is None else first[part, None]
            ).T
        return ap


# Elements of a block of float64; several such arrays are in use at a time.
BLOCK = 1 << 17


def read_precision(
    hits: np.ndarray, counted: np.ndarray, objects: np.ndarray, recalls: np.ndarray, *, first: np.ndarray | None = None
) -> np.ndarray:
    """COCOeval's AP: the mean of precision, made monotone, over fixed recalls.

    Each recall reads precision at the first detection that reaches it. So the detection n stands for the recalls above
    recall n - 1 up to recall n, and AP is a sum over detections.

    Args:
      hits: float64 (..., n), number of right detections up to each one, by descending score.
      counted: float64 (..., n), number of all detections likewise.
      objects: float64 (...), number of objects.
      recalls: float64 (R,), the recalls, ascending from 0 to 1 in equal steps.
      first: float64 (...), a number of right detections before all others.

    Returns:
      float64 (...), without meaning where there are no objects.
    """
    objects = np.maximum(objects, 1)
    if first is None:
        reached = np.zeros(hits.shape[:-1])
    else:
        hits, counted = hits + first[..., None], counted + first[..., None]
        # Their precision is 1.
        reached = np.where(first > 0, _reached(first / objects, recalls), 0)
    if not hits.shape[-1]:
        return reached / len(recalls)
    precision = hits / np.maximum(counted, 1)
    precision = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    steps = np.diff(_reached(hits / objects[..., None], recalls), axis=-1, prepend=reached[..., None])
    return (reached + (precision * steps).sum(-1)) / len(recalls)


def _reached(recall: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """How many of the `recalls` are not above `recall`, as float64."""
    # A recall is a fraction of whole numbers: it equals a step, or is farther from it than the summand.
    step = np.floor(recall * (len(recalls) - 1) + 1e-9)
    return step + 1 - (recall < recalls[step.astype(np.intp)])


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over all axes but the last one, of the numbers that are defined."""
    values = values.reshape(-1, values.shape[-1])
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)
