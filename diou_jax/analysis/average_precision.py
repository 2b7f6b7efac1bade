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
    half, three_quarters = (matches.threshold(iou) for iou in (0.5, 0.75))
    precision, recall = class_scores(matches, weights)
    ap = {"AP": _mean(precision), "AP50": _mean(precision[half]), "AP75": _mean(precision[three_quarters])}
    ar = {f"AR{limit}": _mean(values) for limit, values in zip(matches.max_dets, recall, strict=True)}
    for area, name in list(enumerate(matches.area_names))[1:] if areas else ():
        of_size = class_scores(matches, weights, area)
        ap[f"AP{name[0]}"], ar[f"AR{name[0]}"] = _mean(of_size[0]), _mean(of_size[1][-1])
    return Scores(ap | ar, precision.mean(0).T, precision[half].T)


# Sets of weights that are computed together: enough for vectors of numbers.
BLOCK = 1000

# Elements of the array of a class's detections and such sets; it has 256 MiB.
LARGEST = 1 << 25


def class_scores(matches: Matches, weights: np.ndarray, area: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """AP and recall of each class in an area range.

    Args:
      matches: the matches.
      weights: (S, I), how often each image counts.
      area: row of `Matches.area_names`.

    Returns:
      AP (T, N, S) with the largest of ``max_dets``, and recall (limits, N, S) for each of them, the mean over IoU
      thresholds; NaN without objects.
    """
    shape = len(matches.class_names), len(weights)
    precision = np.full((len(matches.iou_thresholds), *shape), np.nan)
    recall = np.full((len(matches.max_dets), *shape), np.nan)
    matched = matches.found.classes[(matches.found.matched[area] >= 0).any(0)]
    block = max(1, min(BLOCK, LARGEST // max(1, np.bincount(matched, minlength=1).max())))
    for start in range(0, len(weights), block):
        part = slice(start, start + block)
        columns = np.ascontiguousarray(weights[part].T, np.float64)
        for row in range(shape[0]):
            one = ClassRows.of(matches, row, area)
            objects = columns[one.object_images].sum(0)
            absent = np.where(objects > 0, 0, np.nan)
            precision[:, row, part] = one.average_precision(columns, objects) + absent
            for place, limit in enumerate(matches.max_dets):
                recall[place, row, part] = one.hits(columns, limit).mean(0) / np.maximum(objects, 1) + absent
    return precision, recall


@dataclasses.dataclass(frozen=True)
class ClassRows:
    """The detections of one class in one area range, divided by their effect on AP.

    AP depends on precision where a detection is right at some threshold. Detections that are wrong at all thresholds
    matter as counts between these.

    Attributes:
      images: int (n,), images of the detections that are right, or ignored, at some threshold; by descending score.
      ranks: int (n,), their place in their image.
      right: bool (T, n).
      counted: bool (T, n), right or wrong.
      wrong_images: int (w,), images of the detections that are wrong at all thresholds, by descending score.
      wrong_before: int (n,), how many of these come before each of `images`.
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

    def hits(self, columns: np.ndarray, limit: int) -> np.ndarray:
        """float64 (T, S): objects found by the `limit` best detections of each image, for weights (I, S)."""
        few = self.ranks < limit
        return self.right[:, few].astype(np.float64) @ columns[self.images[few]]

    def average_precision(
        self, columns: np.ndarray, objects: np.ndarray, *, first: np.ndarray | None = None
    ) -> np.ndarray:
        """`read_precision` for many sets of weights.

        The detections are walked from the last to the first, so that the monotone precision of all sets and thresholds
        is a running maximum, and no array has more than two axes.

        Args:
          columns: float64 (I, S), how often each image counts.
          objects: float64 (S,), the number of objects.
          first: float64 (S,), a number of right detections before all others.

        Returns:
          float64 (T, S), without meaning where there are no objects.
        """
        objects, first = np.maximum(objects, 1), np.zeros(len(objects)) if first is None else first
        # Recalls that the detections before all others reach are read at them, with a precision of 1.
        least = np.where(first > 0, recalls_reached(first / objects, self.recalls), 0)
        if not len(self.images):
            return np.repeat(least[None] / len(self.recalls), len(self.right), 0)
        always = np.all(self.counted, axis=0)
        hits = first + self.right.astype(np.float64) @ columns[self.images]
        # Counts of detections: those that count at every threshold, and those that do so at some.
        common = np.append(self.images[always], self.wrong_images[: self.wrong_before[-1]])
        common = first + np.bincount(common, minlength=len(columns)).astype(np.float64) @ columns
        special = self.counted[:, ~always].astype(np.float64) @ columns[self.images[~always]]
        level = recalls_reached(hits / objects, self.recalls)
        best, total = np.zeros(hits.shape), np.zeros(hits.shape)
        # Precision is read at right detections only; the thresholds between the first and the last are harmless.
        starts, ends = self.right.argmax(0), len(hits) - self.right[::-1].argmax(0)
        ends = np.where(self.right.any(0), ends, starts)
        gapless = ends - starts == self.right.sum(0)
        parts = [slice(*pair) for pair in zip(starts.tolist(), ends.tolist(), strict=True)]
        wrong_before = [0, *self.wrong_before.tolist()]
        for row in range(len(self.images) - 1, -1, -1):
            each, part = columns[self.images[row]], parts[row]
            mine = hits[part]
            np.maximum(best[part], mine / np.maximum(common + special[part], 1), out=best[part])
            mine -= each if gapless[row] else each * self.right[part, row, None]
            now = recalls_reached(mine / objects, self.recalls)
            total[part] += best[part] * (level[part] - now)
            level[part] = now
            if always[row]:
                common -= each
            else:
                special -= each * self.counted[:, row, None]
            if wrong_before[row] < wrong_before[row + 1]:
                common -= columns[self.wrong_images[wrong_before[row] : wrong_before[row + 1]]].sum(0)
        # The rest of the recalls lie at the first detection: `least`, or recall 0, which precedes all objects.
        return (total + np.where(first > 0, least, best)) / len(self.recalls)


def read_precision(hits: np.ndarray, counted: np.ndarray, objects: np.ndarray, *, recalls: np.ndarray) -> np.ndarray:
    """COCOeval's AP: the mean of precision, made monotone, over fixed recalls.

    Each recall reads precision at the first detection that reaches it. So the detection n stands for the recalls above
    recall n - 1 up to recall n, and AP is a sum over detections.

    Args:
      hits: (..., n), number of right detections up to each one, by descending score.
      counted: (..., n), number of right and wrong detections likewise.
      objects: (...), number of objects.
      recalls: float64 (R,), the recalls, ascending from 0 to 1 in equal steps.

    Returns:
      float64 (...), without meaning where there are no objects.
    """
    precision = hits / np.maximum(counted, 1)
    precision = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    reached = recalls_reached(hits / np.maximum(objects, 1)[..., None], recalls)
    return (precision * np.diff(reached, axis=-1, prepend=0)).sum(-1) / len(recalls)


def recalls_reached(recall: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """How many of the `recalls`, ascending from 0 to 1 in equal steps, are not above `recall`, as float64."""
    # A recall is a fraction of whole numbers: it equals a step, or is farther from it than the summand. A step is
    # numpy's product, which differs in the last bit from some of these fractions.
    step = np.floor(recall * (len(recalls) - 1) + 1e-9)
    return step + 1 - (recall < step * recalls[1])


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over all axes but the last one, of the numbers that are defined."""
    values = values.reshape(-1, values.shape[-1])
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)
