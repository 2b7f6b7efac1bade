"""A data set of any origin: a table of ground truth and a source of image files.

`diou_jax.data.coco` and `tfds` make a `Dataset`, and schedule, loader and evaluation use nothing else. It consists of
plain arrays, so that a worker process gets it by one copy of these, without a Python object per box.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from absl import logging

from diou_jax.data.id_column import id_column
from diou_jax.data.outlines import Outlines, concatenate, gather
from diou_jax.data.proposals import ProposalTable
from diou_jax.errors import UserError

BACKGROUND = "__background__"


class BadImageError(UserError):
    """An image file that is missing, cannot be decoded or contradicts the annotations.

    Attributes:
      kind: the kind of fault, a plural noun phrase by which such files are counted.
    """

    def __init__(self, message: str, kind: str = "image files that cannot be read"):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Records:
    """The ground truth of N images, M boxes in all, as columns; image i has the rows offsets[i] to offsets[i + 1] - 1.

    Attributes:
      image_ids: (N,) the ids of the annotation file, int64, or object where an id is a string or exceeds 64 bits.
      heights: (N,) int32, heights of the image files.
      widths: (N,) int32, widths of the image files.
      offsets: (N + 1,) int64.
      boxes: (M, 4) float32, x1, y1, x2, y2 in inclusive pixels of the image file.
      classes: (M,) int32, 1 to K - 1.
      crowd: (M,) bool, True for a region of many objects.
      outlines: the outlines of the M objects, or None where masks are not wanted; crowds have none.
    """

    image_ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    outlines: Outlines | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (n, 4), classes (n,) and crowd flags (n,) of one image; views, not copies."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return self.boxes[rows], self.classes[rows], self.crowd[rows]

    def outlines_of(self, index: int) -> Outlines | None:
        """The outlines of the objects of one image; views, not copies."""
        if self.outlines is None:
            return None
        return self.outlines.slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def take(self, rows: np.ndarray) -> "Records":
        """The images `rows`, (n,) int, in that order."""
        objects, offsets = gather(self.offsets, rows)
        return Records(
            image_ids=self.image_ids[rows],
            heights=self.heights[rows],
            widths=self.widths[rows],
            offsets=offsets,
            boxes=self.boxes[objects],
            classes=self.classes[objects],
            crowd=self.crowd[objects],
            outlines=None if self.outlines is None else self.outlines.take(objects),
        )


class Source(Protocol):
    """A source of image files; it can be pickled, since every worker process gets a copy."""

    def read(self, index: int) -> bytes:
        """The encoded bytes of image `index`; raises BadImageError, which names the file, if it cannot be read."""

    def name(self, index: int) -> str:
        """The name of the file in messages."""


# The largest number of examples that are kept of each kind of fault.
EXAMPLES = 10


@dataclasses.dataclass
class Faults:
    """The faults that were found in a data set.

    Attributes:
      counts: number of faults by kind.
      examples: the first cases of each kind, at most `EXAMPLES`.
    """

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, *examples: str, count: int | None = None) -> None:
        """Adds `count` faults of a `kind`, a plural noun phrase; by default as many as there are `examples`."""
        count = len(examples) if count is None else count
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            kept = self.examples.setdefault(kind, [])
            kept += examples[: EXAMPLES - len(kept)]

    def merge(self, other: "Faults") -> None:
        """Adds the faults of `other`."""
        for kind, count in other.counts.items():
            self.add(kind, *other.examples[kind], count=count)

    def report(self, name: str) -> None:
        """Logs one warning per kind of fault; `name` is the data set's."""
        for kind, count in self.counts.items():
            logging.warning("%s: %d %s, the first: %s", name, count, kind, self.examples[kind][0])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """N images with ground truth.

    Attributes:
      name: the data set's name in messages.
      records: the ground truth.
      source: the image files, in the order of the records.
      class_names: K names, `BACKGROUND` first, the others by ascending category id.
      category_ids: K category ids of the annotation file, by class; -1 for the background.
      annotation_files: COCO json files to evaluate against; several where data sets were joined, none if unknown.
      annotated: whether there is ground truth at all; COCO's test sets have none.
      faults: annotations and images that were dropped.
      notes: oddities that were mended without loss.
      proposals: proposals for the images, in the order of the records, or None if the RPN makes them.
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
    proposals: ProposalTable | None = None

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> bytes:
        """The encoded file of image `index`; raises BadImageError."""
        return self.source.read(index)

    def image_name(self, index: int) -> str:
        """The name of image `index` in messages."""
        return self.source.name(index)


def make_records(
    image_ids: Sequence[int | str],
    annotations: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    heights: Sequence[int],
    widths: Sequence[int],
    outlines: Outlines | None = None,
) -> Records:
    """Packs N images, each with boxes (n, 4), classes (n,) and crowd flags (n,), into a table.

    `outlines` are those of all objects in a row.
    """
    boxes, classes, crowd = zip(*annotations, strict=True) if len(annotations) else ((), (), ())
    # An empty array comes first, so that a data set without boxes has columns of the right shape, too.
    return Records(
        image_ids=id_column(image_ids),
        heights=np.asarray(heights, np.int32),
        widths=np.asarray(widths, np.int32),
        offsets=np.cumsum([0, *map(len, classes)], dtype=np.int64),
        boxes=np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float32),
        classes=np.concatenate([np.zeros(0), *classes]).astype(np.int32),
        crowd=np.concatenate([np.zeros(0), *crowd]).astype(bool),
        outlines=outlines,
    )


def clean_boxes(
    xywh: np.ndarray, height: np.ndarray | int, width: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Converts COCO boxes to inclusive corners, clips them to the image and drops flat ones, as the original does.

    Args:
      xywh: (n, 4) float64, COCO's x, y, width, height.
      height: height of each box's image in pixels, (n,) or a scalar.
      width: width of each box's image, likewise.

    Returns:
      Boxes (n, 4) float32; the mask of boxes to keep, (n,) bool, those with x2 > x1 and y2 > y1; and by kind of fault
      the mask of dropped boxes, (n,) bool.
    """
    xywh = np.asarray(xywh, np.float64).reshape(-1, 4)
    finite = np.all(np.isfinite(xywh), axis=1)
    x, y, w, h = np.where(finite[:, None], xywh, 0).T
    with np.errstate(over="ignore"):  # finite numbers whose sum overflows lie beyond any border
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
    """Several sources in a row; `starts` holds the first index of each."""

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
    """Joins data sets in the given order; raises UserError unless their classes agree."""
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
    outlines = [table.outlines for table in tables if table.outlines is not None]
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
        outlines=concatenate(outlines) if len(outlines) == len(tables) else None,
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
    """Reorders the classes of a data set to match `class_names`; its category ids move with them.

    Raises:
      UserError: if its classes differ; the message names missing and surplus ones.
    """
    if difference := class_difference(class_names, dataset.class_names):
        raise UserError(
            f"{dataset.name}: its classes are not those that were trained: {difference}; list the same categories in "
            f"{', '.join(dataset.annotation_files) or 'its annotations'}, with any ids"
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


def one_class(dataset: Dataset) -> Dataset:
    """The data set with the same objects, all of them of one class, "object"."""
    records = dataset.records
    return dataclasses.replace(
        dataset,
        records=dataclasses.replace(records, classes=np.ones_like(records.classes)),
        class_names=(BACKGROUND, "object"),
        category_ids=(-1, 1),
    )


def class_difference(wanted: Sequence[str], found: Sequence[str]) -> str:
    """The names that are in only one of two lists, in words; empty if both hold the same."""
    parts = []
    for word, names in (
        ("without", [name for name in wanted if name not in found]),
        ("with", [name for name in found if name not in wanted]),
    ):
        if names:
            more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
            parts.append(f"{word} {', '.join(repr(name) for name in names[:EXAMPLES])}{more}")
    return ", ".join(parts)
