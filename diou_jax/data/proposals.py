"""Proposals that were made before, for all images of a data set."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from diou_jax.data.id_column import id_column
from diou_jax.data.view import View
from diou_jax.structures import Proposals

# A proposal is used if both of its sides are longer than this number of pixels, as in the original.
MIN_SIDE = 2

NONE = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)


@dataclasses.dataclass(frozen=True)
class ProposalTable:
    """The proposals of N images, as columns; those of image i are the rows starts[i] to stops[i] - 1 of M.

    Attributes:
      image_ids: (N,) the ids of the annotation file, int64, or strings where one is not an integer of 64 bits.
      starts: (N,) int64.
      stops: (N,) int64.
      boxes: (M, 4) float32, x1, y1, x2, y2 in inclusive pixels of the image file; best first within an image.
      scores: (M,) float32, objectness probabilities.
    """

    image_ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) and scores (n,) of one image; views, not copies."""
        rows = slice(self.starts[index], self.stops[index])
        return self.boxes[rows], self.scores[rows]


def make_table(image_ids: Iterable[int | str], proposals: Iterable[tuple[np.ndarray, np.ndarray]]) -> ProposalTable:
    """Packs the boxes (n, 4) and scores (n,) of images into a table."""
    ids, pairs = id_column(list(image_ids)), list(proposals)
    stops = np.cumsum([len(scores) for _, scores in pairs], dtype=np.int64)
    # An empty array comes first, so that a table without proposals has columns of the right shape, too.
    return ProposalTable(
        image_ids=ids if ids.dtype == np.int64 else np.array([str(one) for one in ids]),  # files hold no objects
        starts=np.concatenate([np.zeros(1, np.int64), stops])[: len(stops)],
        stops=stops,
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(boxes for boxes, _ in pairs)]).astype(np.float32),
        scores=np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in pairs)]).astype(np.float32),
    )


def in_view(table: ProposalTable, index: int, view: View, *, limit: int) -> Proposals:
    """The usable proposals of an image for a batch, without the leading axis.

    As in the original they are clipped to the image; of those that are equal when rounded to whole pixels the first
    stays, and those with a side of `MIN_SIDE` pixels or less are left out. Boxes that are not finite are left out, too.

    Args:
      table: the proposals of the data set.
      index: the image's row in the data set.
      view: the network's view of the image; boxes are mirrored with it, and cut off where it ends.
      limit: R, the number of proposals that are kept, best first.

    Returns:
      Boxes (R, 4) in pixels of the image, scores (R,), and valid (R,).
    """
    boxes, scores = table.of(index)
    height, width = view.source
    finite = np.isfinite(boxes).all(1)
    boxes, scores = boxes[finite], scores[finite]
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32) - 1)
    first = np.sort(np.unique(np.round(boxes), axis=0, return_index=True)[1])
    boxes, scores = boxes[first], scores[first]
    large = (boxes[:, 2:] - boxes[:, :2] + 1 > MIN_SIDE).all(1)
    boxes, seen = view.boxes(boxes[large])
    boxes, scores = boxes[seen][:limit], scores[large][seen][:limit]
    return pad(boxes, scores, limit=limit)


def pad(boxes: np.ndarray, scores: np.ndarray, *, limit: int) -> Proposals:
    """Boxes (n, 4) and scores (n,) of one image with rows that are not valid, up to R = `limit` rows."""
    padded = Proposals(np.zeros((limit, 4), np.float32), np.zeros(limit, np.float32), np.arange(limit) < len(boxes))
    padded.boxes[: len(boxes)], padded.scores[: len(boxes)] = boxes, scores
    return padded
