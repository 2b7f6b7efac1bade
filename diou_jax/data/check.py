"""Checks a data set before a long training: reports every fault of its files and annotations by name.

A problem is a fault for which training would drop, refuse or replace something, or see nearly nothing. A note is an
oddity that is converted without loss of ground truth or may be intended.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from PIL import Image

from diou_jax.data import decoding
from diou_jax.data.dataset import BadImageError, Dataset, Faults, class_difference
from diou_jax.errors import UserError
from diou_jax.reporting.progress import images_progress

# The kind of problem of a data set that cannot be loaded.
REFUSED = "data sets that are refused"

# Images are handed to the threads in pieces of this size, so that an interrupt waits for one piece only.
CHUNK = 512

# Suffixes of file names by format.
SUFFIXES = {
    "AVIF": (".avif",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}

EIGHT_BITS = ("BMP", "GIF", "JPEG", "MPO", "WEBP")

# If a channel has more than 8 bits, the highest 8 are read. An image becomes nearly black if its largest value is below
# this share of the range: cameras of 10 or 12 bits leave the highest of 16 bits empty.
DARK = 1 / 8


@dataclasses.dataclass(frozen=True)
class DatasetSection:
    """The findings in one data set.

    Attributes:
      name: name of the data set.
      images: number of images that it lists.
      boxes: number of boxes that count in training or evaluation.
      problems: faults for which something is dropped, refused or replaced.
      notes: oddities that are converted or may be intended.
    """

    name: str
    images: int = 0
    boxes: int = 0
    problems: Faults = dataclasses.field(default_factory=Faults)
    notes: Faults = dataclasses.field(default_factory=Faults)


@dataclasses.dataclass(frozen=True)
class DataReport:
    """The sections of all data sets."""

    sections: tuple[DatasetSection, ...]

    @property
    def total(self) -> int:
        """Number of problems over all data sets and kinds."""
        return sum(sum(section.problems.counts.values()) for section in self.sections)

    @property
    def clean(self) -> bool:
        """Whether there is no problem; notes do not count."""
        return self.total == 0

    def text(self) -> str:
        """The report for people: each kind with its count and first cases, then the total."""
        lines = []
        for section in self.sections:
            lines.append(f"{section.name}: {section.images} images, {section.boxes} boxes that count")
            for title, faults in (("problem", section.problems), ("note", section.notes)):
                for kind, count in sorted(faults.counts.items(), key=lambda item: -item[1]):
                    examples = faults.examples[kind]
                    lines.append(f"  {title}: {count} {kind}")
                    lines += [f"    {example}" for example in examples]
                    if count > len(examples):
                        lines.append(f"    and {count - len(examples)} more")
        images = sum(section.images for section in self.sections)
        notes = sum(sum(section.notes.counts.values()) for section in self.sections)
        lines.append(f"total: {self.total} problems, {notes} notes, {images} images")
        return "\n".join(lines)


def check_datasets(
    datasets: Mapping[str, Callable[[], Dataset]],
    *,
    evaluated: Collection[str] = (),
    max_boxes: int = 128,
    max_vertices: int = 0,
    threads: int | None = None,
) -> DataReport:
    """Reads and decodes every image as training does, and collects all faults instead of stopping at the first.

    Args:
      datasets: a function that loads the data set, by name in the report. If it raises UserError, that is a problem.
      evaluated: the names of those that only an evaluation reads. It uses every box and no outline, so that the
        limits of training do not concern them.
      max_boxes: G, boxes per image that training keeps.
      max_vertices: P, vertices per outline that training keeps; 0: see `Outlines.limit`.
      threads: number of decoding threads; by default one per core.
    """
    sections, first = [], None
    for name, load in datasets.items():
        section = DatasetSection(name)
        sections.append(section)
        try:
            dataset = load()
        except UserError as error:
            section.problems.add(REFUSED, str(error))
            continue
        first = first or dataset
        sections[-1] = check_dataset(
            dataset,
            name=name,
            trained=name not in evaluated,
            max_boxes=max_boxes,
            max_vertices=max_vertices,
            threads=threads,
        )
        if difference := class_difference(first.class_names, dataset.class_names):
            sections[-1].problems.add(
                "data sets whose categories are not those of the first", f"{difference}, beside {first.name}"
            )
        elif (dataset.class_names, dataset.category_ids) != (first.class_names, first.category_ids):
            sections[-1].notes.add(
                "data sets that number the categories in their own way, and are matched by name",
                f"{dataset.name}, beside {first.name}",
            )
    return DataReport(tuple(sections))


def check_dataset(
    dataset: Dataset,
    *,
    name: str = "",
    trained: bool = True,
    max_boxes: int = 128,
    max_vertices: int = 0,
    threads: int | None = None,
) -> DatasetSection:
    """The section of one data set, which is trained on or only evaluated; other arguments as in `check_datasets`."""
    section = DatasetSection(name or dataset.name, len(dataset), len(dataset.records.boxes))
    section.problems.merge(dataset.faults)
    section.notes.merge(dataset.notes)
    _check_files(dataset, section)
    if dataset.annotated:
        _check_masks(dataset, section)
        _check_emptiness(dataset, trained, section)
    if trained:
        _check_limits(dataset, max_boxes, max_vertices, section)
    progress = images_progress(len(dataset), title=section.name)
    with progress, ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for start in range(0, len(dataset), CHUNK):
            indices = range(start, min(start + CHUNK, len(dataset)))
            for problem, notes in pool.map(lambda index: check_image(dataset, index), indices):
                if problem is not None:
                    section.problems.add(problem.kind, str(problem))
                for kind, example in notes:
                    section.notes.add(kind, example)
                progress.update()
    return section


def check_image(dataset: Dataset, index: int) -> tuple[BadImageError | None, list[tuple[str, str]]]:
    """The error that spoils an image for training, or None; and the notes on it, as (kind, name of the image)."""
    name = dataset.image_name(index)
    height, width = int(dataset.records.heights[index]), int(dataset.records.widths[index])
    try:
        content = dataset.read(index)
        decoding.decode(content, name, height=height, width=width)
        header = decoding.open_header(content, name)
        stored = _stored(header, content)
        notes = [(kind, name) for kind in _conversions(header, stored, name, (width, height))]
        return _darkness(stored, name), notes
    except BadImageError as error:
        return error, []
    except Exception as error:
        error.add_note(f"while reading {name}")
        raise


def _stored(header: Image.Image, content: bytes) -> np.ndarray | None:
    """The pixels as the file has them if its channels have more than 8 bits; None if they have 8."""
    if header.format in EIGHT_BITS:
        return None
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return None if stored is None or stored.dtype == np.uint8 else stored


def _darkness(stored: np.ndarray | None, name: str) -> BadImageError | None:
    """The problem of an image that becomes nearly black, because its values fill a small part of their range."""
    if stored is None or not np.issubdtype(stored.dtype, np.integer):
        return None
    largest, limit = int(stored.reshape(*stored.shape[:2], -1)[..., :3].max()), int(np.iinfo(stored.dtype).max)
    if not 0 < largest < DARK * limit:
        return None
    return BadImageError(
        f"{name}: its largest value is {largest} of {limit}; scale its values to the whole range, or to 8 bits",
        "images of more than 8 bits a channel that use a small part of the range, and become nearly black",
    )


def _conversions(header: Image.Image, stored: np.ndarray | None, name: str, stated: tuple[int, int]) -> Iterator[str]:
    """The conversions of an image that is not upright, in colour and of 8 bits; each as a kind of note."""
    suffix = os.path.splitext(name)[1].lower()
    assert header.format is not None  # it was read from a file
    if suffix and suffix not in SUFFIXES[header.format]:
        yield f"image files that are {header.format} inside and named otherwise, and are read all the same"
    bands = header.getbands()
    if bands[0] in ("1", "I", "F", "L") or header.mode.startswith("I;"):
        yield "grey images, whose three channels become equal"
    if "K" in bands:
        yield "CMYK images, converted to colours of a screen"
    if "A" in bands or "a" in bands or "transparency" in header.info:
        yield "images with transparency, which is ignored"
    if stored is not None:
        yield "images of more than 8 bits a channel, reduced to these"
    orientation = decoding.orientation(header)
    if orientation != 1:
        as_stored = orientation >= 5 and header.size[::-1] != stated
        yield (
            "images whose metadata would turn or mirror them, taken as stored, the way their annotated size has it"
            if as_stored
            else "images turned as their metadata say, the way their annotated size has it"
        )


def _check_files(dataset: Dataset, section: DatasetSection) -> None:
    """Adds images that share a file to the notes."""
    seen = set()
    for index in range(len(dataset)):
        file = dataset.image_name(index)
        if file in seen:
            section.notes.add("images that share their file with an earlier one", file)
        seen.add(file)


def _check_masks(dataset: Dataset, section: DatasetSection) -> None:
    """Adds a set without masks to the problems if masks are wanted."""
    outlines = dataset.records.outlines
    if outlines is not None and not outlines.sizes.any():
        section.problems.add("data sets without a mask", dataset.name)


def _check_emptiness(dataset: Dataset, trained: bool, section: DatasetSection) -> None:
    """Adds images without an object to the notes."""
    counts, image = _boxes_by_image(dataset)
    objects = np.bincount(image[~dataset.records.crowd], minlength=len(dataset))
    for index in np.flatnonzero(objects == 0).tolist():
        kind = "images with nothing but crowds" if counts[index] else "images without a box"
        if trained:
            section.notes.add(f"{kind}, not trained on unless train.drop_empty=False", dataset.image_name(index))
        elif not counts[index]:
            section.notes.add(f"{kind}, where every detection is wrong", dataset.image_name(index))


def _check_limits(dataset: Dataset, max_boxes: int, max_vertices: int, section: DatasetSection) -> None:
    """Adds boxes beyond the `max_boxes` of an image to the problems, outlines beyond `max_vertices` to the notes."""
    counts, image = _boxes_by_image(dataset)
    for index in np.flatnonzero(counts > max_boxes).tolist():
        section.problems.add(
            f"boxes beyond the data.max_boxes={max_boxes} largest of their image",
            f"{dataset.image_name(index)}: {counts[index]} boxes",
            count=int(counts[index] - max_boxes),
        )
    outlines = dataset.records.outlines
    if outlines is None:
        return
    sizes, limit = outlines.sizes, outlines.limit(max_vertices)
    for row in np.flatnonzero(sizes > limit).tolist():
        section.notes.add(
            f"outlines simplified to the {limit} vertices of data.max_vertices",
            f"{dataset.image_name(image[row])}: {sizes[row]} vertices",
        )


def _boxes_by_image(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The number of boxes of each image, crowds included, and the image of each box."""
    counts = np.diff(dataset.records.offsets)
    return counts, np.repeat(np.arange(len(dataset)), counts)
