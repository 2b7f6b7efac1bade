"""Proposals of a whole data set: the table, and its file."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class ProposalTable:
    """The proposals of N images, M in all, as columns; image i has the rows offsets[i] to offsets[i + 1] - 1.

    Attributes:
      image_ids: (N,) the ids of the annotation file, int64, or strings where one is not an integer of 64 bits.
      offsets: (N + 1,) int64.
      boxes: (M, 4) float32, x1, y1, x2, y2 in inclusive pixels of the image file; best first within an image.
      scores: (M,) float32, objectness probabilities.
    """

    image_ids: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) and scores (n,) of one image; views, not copies."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return self.boxes[rows], self.scores[rows]


def make_table(image_ids: Iterable[int | str], proposals: Iterable[tuple[np.ndarray, np.ndarray]]) -> ProposalTable:
    """Packs the boxes (n, 4) and scores (n,) of images into a table."""
    ids, pairs = list(image_ids), list(proposals)
    whole = all(isinstance(one, (int, np.integer)) and -(2**63) <= one < 2**63 for one in ids)
    # An empty array comes first, so that a table without proposals has columns of the right shape, too.
    return ProposalTable(
        image_ids=np.array(ids, np.int64) if whole else np.array([str(one) for one in ids]),
        offsets=np.cumsum([0, *(len(scores) for _, scores in pairs)], dtype=np.int64),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(boxes for boxes, _ in pairs)]).astype(np.float32),
        scores=np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in pairs)]).astype(np.float32),
    )


def write(path: str | os.PathLike, table: ProposalTable) -> None:
    """Writes a table atomically as an ``.npz`` file, one array for each of its columns."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        np.savez(file, **{field.name: getattr(table, field.name) for field in dataclasses.fields(table)})
    os.replace(draft, path)
