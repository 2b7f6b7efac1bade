"""Greedy NMS and DIoU-NMS side by side: the detections that only one of them keeps, and which of the two was right."""

import dataclasses
import enum

import numpy as np

from diou_jax.analysis.average_precision import score
from diou_jax.analysis.matches import Matches


class Verdict(enum.IntEnum):
    """The verdict on a detection that only one of two kinds of suppression keeps, at IoU 0.5.

    RIGHT: it finds an object of its class that the other kind of suppression misses.
    EXCHANGED: it finds an object that the other kind finds, too, by another detection that only that one keeps.
    DUPLICATE: the other kind finds its object by a detection that both keep, or it overlaps an object of its class, by
      an IoU of 0.5 or more, that a detection of higher score has already.
    BACKGROUND: it overlaps no object of its class so much.
    IGNORED: it lies in a region to ignore.
    LIMIT: the other kind may have kept it as well, but keeps as many better detections as the limit allows.
    """

    RIGHT = 0
    EXCHANGED = 1
    DUPLICATE = 2
    BACKGROUND = 3
    IGNORED = 4
    LIMIT = 5


@dataclasses.dataclass(frozen=True)
class OnlyKept:
    """The K detections that one kind of suppression keeps and the other does not.

    Attributes:
      rows: int64 (K,), rows of the kind's `FoundObjects`.
      verdicts: int8 (K,), their `Verdict`.
      counts: int64 (N, 6), detections by class and verdict.
    """

    rows: np.ndarray
    verdicts: np.ndarray
    counts: np.ndarray

    @property
    def right(self) -> int:
        """The number of detections that were rightly kept: without them, their objects are missed."""
        return int(self.counts[:, Verdict.RIGHT].sum())

    @property
    def wrong(self) -> int:
        """The number of detections that were wrongly kept: duplicates, and detections of background."""
        return int(self.counts[:, [Verdict.DUPLICATE, Verdict.BACKGROUND]].sum())


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """Greedy NMS and DIoU-NMS on the same candidates, with the same thresholds.

    Attributes:
      greedy: matches of the detections that greedy NMS keeps.
      diou: matches of those that DIoU-NMS keeps; the objects are the same, row by row.
      only_greedy: the detections that only greedy NMS keeps.
      only_diou: the detections that only DIoU-NMS keeps.
      both: the number of detections that both keep.
    """

    greedy: Matches
    diou: Matches
    only_greedy: OnlyKept
    only_diou: OnlyKept
    both: int

    def lines(self) -> list[str]:
        """A table for the terminal."""
        names = ["only", *(verdict.name.lower() for verdict in Verdict)]
        head = f" {'':10}  {'AP':>6}  {'AP50':>6}  " + "  ".join(f"{name:>10}" for name in names)
        rows = []
        for name, matches, kept in (
            ("greedy NMS", self.greedy, self.only_greedy),
            ("DIoU-NMS", self.diou, self.only_diou),
        ):
            statistics = score(matches, areas=False).statistics
            numbers = [len(kept.rows), *kept.counts.sum(0).tolist()]
            ap = "  ".join(f"{statistics[name][0]:6.3f}" for name in ("AP", "AP50"))
            rows.append(f" {name:10}  {ap}  " + "  ".join(f"{number:10d}" for number in numbers))
        return [f"{self.both} detections are kept by greedy NMS and by DIoU-NMS; those of one alone:", head, *rows]


def side_by_side(greedy: Matches, diou: Matches, *, limit: int) -> SideBySide:
    """Compares the detections that both kinds of suppression make of the same candidates.

    Args:
      greedy: matches of the detections of greedy NMS.
      diou: matches of the detections of DIoU-NMS, with the same images and objects.
      limit: the largest number of detections of an image, TEST.DETECTIONS_PER_IM.
    """
    assert greedy.image_ids == diou.image_ids and len(greedy.true) == len(diou.true), "other images or objects"
    of_greedy, of_diou = _keys(greedy), _keys(diou)
    alone = np.array([key not in of_diou for key in of_greedy], bool)
    diou_alone = np.array([key not in of_greedy for key in of_diou], bool)
    return SideBySide(
        greedy,
        diou,
        _only_kept(greedy, diou, alone, diou_alone, limit),
        _only_kept(diou, greedy, diou_alone, alone, limit),
        int((~alone).sum()),
    )


def _keys(matches: Matches) -> dict[tuple, int]:
    """The row of each detection by its identity: the candidates are the same, so that equal ones are equal bit for bit.

    Of candidates that are alike in everything the number tells them apart.
    """
    found, keys = matches.found, {}
    columns = found.images.tolist(), found.classes.tolist(), found.scores.tolist(), map(tuple, found.boxes.tolist())
    for row, key in enumerate(zip(*columns, strict=True)):
        number = 0
        while (*key, number) in keys:
            number += 1
        keys[(*key, number)] = row
    return keys


def _only_kept(mine: Matches, other: Matches, alone: np.ndarray, other_alone: np.ndarray, limit: int) -> OnlyKept:
    """The verdicts on the detections that only `mine` has, (D,) `alone`; likewise those of `other`."""
    row = mine.threshold(0.5)
    found, rows = mine.found, np.flatnonzero(alone)
    matched, ignored = found.matched[0, row, rows], found.ignored[0, row, rows]
    rival = np.where(matched >= 0, other.true.matched[0, row, matched], -1) if len(other.true) else matched
    pairs = mine.overlaps
    same_class = (found.classes[pairs.found] == mine.true.classes[pairs.true]) & ~mine.true.crowd[pairs.true]
    covers = np.zeros(len(found), bool)
    covers[pairs.found[same_class & (pairs.ious >= mine.iou_thresholds[row])]] = True
    rival_alone = other_alone[rival] if len(other_alone) else np.zeros(len(rows), bool)
    verdicts = np.select(
        [
            _beyond_limit(mine, other, limit)[rows],
            ignored,
            (matched >= 0) & (rival < 0),
            (matched >= 0) & rival_alone,
            (matched >= 0) | covers[rows],
        ],
        [Verdict.LIMIT, Verdict.IGNORED, Verdict.RIGHT, Verdict.EXCHANGED, Verdict.DUPLICATE],
        Verdict.BACKGROUND,
    ).astype(np.int8)
    counts = np.zeros((len(mine.class_names), len(Verdict)), np.int64)
    np.add.at(counts, (found.classes[rows], verdicts), 1)
    return OnlyKept(rows, verdicts, counts)


def _beyond_limit(mine: Matches, other: Matches, limit: int) -> np.ndarray:
    """Whether, bool (D,), the other kind has its full number of detections in the image, all as good or better."""
    images, classes = len(mine.image_ids), len(mine.class_names)
    found, kept = mine.found, other.found
    beyond = np.zeros(len(found), bool)
    # The limit of an image, and COCOeval's limit of an image and class.
    for groups, mine_group, other_group, most in (
        (images, found.images, kept.images, limit),
        (
            images * classes,
            found.images.astype(np.int64) * classes + found.classes,
            kept.images.astype(np.int64) * classes + kept.classes,
            mine.max_dets[-1],
        ),
    ):
        worst = np.full(groups, np.inf)
        np.minimum.at(worst, other_group, kept.scores)
        full = np.bincount(other_group, minlength=groups) >= most
        beyond |= full[mine_group] & (found.scores <= worst[mine_group])
    return beyond
