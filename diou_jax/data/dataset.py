"""What every data set is, wherever it comes from: a table of ground truth and a source of image files.

`diou_jax.data.coco`, `tfds` and `shapes` make a `Dataset`; schedule, loader and evaluation know nothing else. It is
plain arrays, so that handing it to a worker process costs one copy of them and no Python object per box.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from absl import logging

from diou_jax.errors import UserError

BACKGROUND = "__background__"


class BadImageError(UserError):
    """An image file that is missing, cannot be decoded or is not what the annotations say it is.

    Attributes:
      kind: which of these, a plural noun phrase to count such files by.
    """

    def __init__(self, message: str, kind: str = "image files that cannot be read"):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Records:
    """The ground truth of N images, M boxes in all, by column; image i owns the rows offsets[i] to offsets[i + 1].

    Attributes:
      image_ids: (N,) int64, or object where an id is a string or exceeds 64 bits; as the annotations have them.
      heights: (N,) int32, of the image file.
      widths: (N,) int32.
      offsets: (N + 1,) int64.
      boxes: (M, 4) float32, x1, y1, x2, y2 in inclusive pixels of the image file.
      classes: (M,) int32, 1 to K - 1.
      crowd: (M,) bool.
    """

    image_ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (n, 4), classes (n,) and crowd flags (n,) of one image; views, not copies."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return self.boxes[rows], self.classes[rows], self.crowd[rows]


class Source(Protocol):
    """Where image files come from; picklable, as every worker process gets a copy."""

    def read(self, index: int) -> bytes:
        """The bytes of image `index`, still encoded; raises BadImageError, naming the file, where there are none."""

    def name(self, index: int) -> str:
        """What messages call the file."""


# How many cases of each kind of fault are kept by name.
EXAMPLES = 10


@dataclasses.dataclass
class Faults:
    """What was wrong in a data set.

    Attributes:
      counts: how often, by kind.
      examples: the first cases of each kind, at most `EXAMPLES`.
    """

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, *examples: str, count: int | None = None) -> None:
        """Counts `count` faults of a `kind`, a plural noun phrase; by default as many as there are `examples`."""
        count = len(examples) if count is None else count
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            kept = self.examples.setdefault(kind, [])
            kept += examples[: EXAMPLES - len(kept)]

    def merge(self, other: "Faults") -> None:
        """Adds another's."""
        for kind, count in other.counts.items():
            self.add(kind, *other.examples[kind], count=count)

    def report(self, name: str) -> None:
        """One warning in the log for each kind found in the data set `name`."""
        for kind, count in self.counts.items():
            logging.warning("%s: %d %s, the first: %s", name, count, kind, self.examples[kind][0])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """N images with ground truth.

    Attributes:
      name: what messages call it.
      records: the ground truth.
      source: the image files, in the records' order.
      class_names: K names, `BACKGROUND` first, then by rising category id.
      category_ids: K ids by class, as in the annotation file; the background's is -1.
      annotation_files: COCO json files to evaluate against; several where data sets were joined, none if unknown.
      annotated: whether there is ground truth at all; COCO's test sets have none.
      faults: what was dropped.
      notes: what was mended without loss.
    """

    name: str
    records: Records
    source: Source
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    annotation_files: tuple[str, ...] = ()
    annotated: bool = True
    faults: Faults = dataclasses.field(default_factory=Faults)
    notes: Faults = dataclasses.field(default_factory=Faults)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> bytes:
        """The encoded file of image `index`; raises BadImageError."""
        return self.source.read(index)

    def image_name(self, index: int) -> str:
        """What messages call the file of image `index`."""
        return self.source.name(index)


def make_records(
    image_ids: Sequence[int | str],
    heights: Sequence[int],
    widths: Sequence[int],
    annotations: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Records:
    """Packs N images, each with boxes (n, 4), classes (n,) and crowd flags (n,), into a table."""
    boxes, classes, crowd = zip(*annotations, strict=True) if len(annotations) else ((), (), ())
    # The empty array leads, so that a data set without a box still has columns of the right shape.
    return Records(
        image_ids=id_column(image_ids),
        heights=np.asarray(heights, np.int32),
        widths=np.asarray(widths, np.int32),
        offsets=np.cumsum([0, *map(len, classes)], dtype=np.int64),
        boxes=np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float32),
        classes=np.concatenate([np.zeros(0), *classes]).astype(np.int32),
        crowd=np.concatenate([np.zeros(0), *crowd]).astype(bool),
    )


def id_column(image_ids: Sequence[int | str]) -> np.ndarray:
    """Ids as int64 where all of them are such integers, else as they are in an object array."""
    if all(isinstance(i, (int, np.integer)) and -(2**63) <= i < 2**63 for i in image_ids):
        return np.asarray(image_ids, np.int64)
    column = np.empty(len(image_ids), object)
    column[:] = image_ids
    return column


def clean_boxes(
    xywh: np.ndarray, height: np.ndarray | int, width: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The original's treatment of COCO boxes: to inclusive corners, clipped to the image, flat ones dropped.

    Args:
      xywh: (n, 4) float64, COCO's x, y, width, height.
      height: of each box's image, (n,) or a scalar, in pixels.
      width: likewise.

    Returns:
      Boxes (n, 4) float32; keep (n,) bool, for those with x2 > x1 and y2 > y1; the dropped, (n,) bool by kind of fault.
    """
    xywh = np.asarray(xywh, np.float64).reshape(-1, 4)
    finite = np.all(np.isfinite(xywh), axis=1)
    x, y, w, h = np.where(finite[:, None], xywh, 0).T
    with np.errstate(over="ignore"):  # a sum of finite numbers that is not finite lies beyond any border
        right, bottom = x + w, y + h
        corners = np.stack([x, y, x + np.maximum(w - 1, 0), y + np.maximum(h - 1, 0)], 1)
    limit = np.stack(np.broadcast_arrays(width, height, width, height, x)[:4], 1) - 1
    boxes = np.clip(corners, 0, limit).astype(np.float32)
    keep = finite & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    flat = finite & ~keep & ((w <= 0) | (h <= 0))
    outside = finite & ~keep & ~flat & ((x >= width) | (y >= height) | (right <= 0) | (bottom <= 0))
    faults = {
        "boxes with coordinates that are not finite": ~finite,
        "boxes without area": flat,
        "boxes outside their image": outside,
        "boxes thinner than two pixels": finite & ~keep & ~flat & ~outside,
    }
    return boxes, keep, faults


@dataclasses.dataclass(frozen=True)
class JoinedSource:
    """Several sources, one after the other; `starts` holds the first index of each."""

    sources: tuple[Source, ...]
    starts: np.ndarray

    def read(self, index: int) -> bytes:
        """As `Source.read`."""
        part = int(np.searchsorted(self.starts, index, "right")) - 1
        return self.sources[part].read(index - int(self.starts[part]))

    def name(self, index: int) -> str:
        """As `Source.name`."""
        part = int(np.searchsorted(self.starts, index, "right")) - 1
        return self.sources[part].name(index - int(self.starts[part]))


def join(datasets: Sequence[Dataset]) -> Dataset:
    """The data sets read as one, in the order given; raises UserError unless their classes agree."""
    first, *others = datasets
    if not others:
        return first
    for other in others:
        if (other.class_names, other.category_ids) != (first.class_names, first.category_ids):
            difference = class_difference(first.class_names, other.class_names) or "their ids are others"
            raise UserError(
                f"{first.name} and {other.name} cannot be read as one data set: their categories differ "
                f"({len(first.class_names) - 1} and {len(other.class_names) - 1}: {difference}); give both json files "
                "the same list"
            )
    tables = [dataset.records for dataset in datasets]
    box_starts = np.cumsum([0, *(len(table.boxes) for table in tables)])
    faults, notes = Faults(), Faults()
    for dataset in datasets:
        faults.merge(dataset.faults)
        notes.merge(dataset.notes)
    columns = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in ("heights", "widths", "boxes", "classes", "crowd")
    }
    records = Records(
        image_ids=id_column([i for table in tables for i in table.image_ids.tolist()]),
        offsets=np.concatenate([[0], *(table.offsets[1:] + start for table, start in zip(tables, box_starts))]),
        **columns,
    )
    return dataclasses.replace(
        first,
        name="+".join(dataset.name for dataset in datasets),
        records=records,
        source=JoinedSource(
            tuple(dataset.source for dataset in datasets), np.cumsum([0, *map(len, datasets)])[:-1].astype(np.int64)
        ),
        annotation_files=tuple(file for dataset in datasets for file in dataset.annotation_files),
        annotated=all(dataset.annotated for dataset in datasets),
        faults=faults,
        notes=notes,
    )


def align_classes(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """The data set with its classes in the order of `class_names`, by name; its category ids stay its own.

    Raises:
      UserError: it has other classes; names those that are missing and those that are too many.
    """
    if difference := class_difference(class_names, dataset.class_names):
        raise UserError(
            f"{dataset.name}: its classes are not those that were trained: {difference}; list the same categories in "
            f"{', '.join(dataset.annotation_files) or 'its annotations'}, under whatever ids"
        )
    order = [dataset.class_names.index(name) for name in class_names]
    if order == list(range(len(order))):
        return dataset
    records = dataset.records
    return dataclasses.replace(
        dataset,
        records=dataclasses.replace(records, classes=np.argsort(order).astype(np.int32)[records.classes]),
        class_names=tuple(class_names),
        category_ids=tuple(dataset.category_ids[label] for label in order),
    )


def class_difference(wanted: Sequence[str], found: Sequence[str]) -> str:
    """Which names are in one list alone, in words; empty where both hold the same."""
    parts = []
    for word, names in (
        ("without", [name for name in wanted if name not in found]),
        ("with", [name for name in found if name not in wanted]),
    ):
        if names:
            more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
            parts.append(f"{word} {', '.join(repr(name) for name in names[:EXAMPLES])}{more}")
    return ", ".join(parts)
