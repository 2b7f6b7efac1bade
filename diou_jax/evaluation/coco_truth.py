"""The ground truth of annotation files, as COCOeval takes it."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

from diou_jax.data import annotations
from diou_jax.data.dataset import Faults
from diou_jax.errors import UserError
from diou_jax.evaluation import true_masks


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The content of annotation files: stated sizes of images by key, names by category id, objects for COCOeval."""

    images: dict[int | str, tuple[int | None, int | None]]
    categories: dict[int, str]
    objects: list[dict]


def read_ground_truth(annotation_files: Sequence[str | os.PathLike], *, segmentations: bool) -> GroundTruth:
    """Reads annotation files, with or without segmentations.

    Raises:
      UserError: if a file is none, or two files share an image or name a category differently.
    """
    listed_in: dict[int | str, str | os.PathLike] = {}
    images: dict[int | str, tuple[int | None, int | None]] = {}
    categories: dict[int, str] = {}
    objects: list[dict] = []
    for file in annotation_files:
        read = annotations.read(file, segmentations=segmentations)
        for key, image in read.images.items():
            if key in listed_in:
                raise UserError(f"image {key!r} is in {listed_in[key]} and in {file}; evaluate one at a time")
            listed_in[key] = file
            images[key] = annotations.integer(image.get("height")), annotations.integer(image.get("width"))
        for category, name in read.categories.items():
            if categories.setdefault(category, name) != name:
                raise UserError(
                    f"{file}: category {category} is {name!r}, elsewhere it is {categories[category]!r}; "
                    "each category id must have one name"
                )
        columns = read.boxes
        names = "file_id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"
        objects += [
            dict(zip(names, row, strict=True))
            for row in zip(
                columns.ids,
                columns.images,
                columns.categories.tolist(),
                columns.xywh.tolist(),
                columns.areas.tolist(),
                columns.crowd.astype(int).tolist(),
                columns.segmentations or itertools.repeat(None, len(columns.ids)),
                strict=True,
            )
        ]
    return GroundTruth(images, categories, objects)


def with_masks(entries: Iterable[Mapping], sizes: Mapping, annotation_files: Sequence[str | os.PathLike]) -> list[dict]:
    """The objects with their masks, in images with known `sizes`; those without a usable one as regions to ignore."""
    faults, found = Faults(), []
    for entry in entries:
        height, width = sizes[entry["image_id"]]
        if not (height and width and height > 0 and width > 0):
            raise UserError(f"image {entry['image_id']!r}: its height and width are needed to evaluate masks")
        try:
            mask = true_masks.of_segmentation(entry["segmentation"], height=height, width=width)
            found.append({**entry, "segmentation": mask})
        except true_masks.UnusableMaskError as fault:
            where = f"annotation {entry['file_id']!r} of image {entry['image_id']!r}: {fault}"
            faults.add("objects without a usable mask, regions to ignore in the evaluation of masks", where)
            mask = true_masks.of_box(entry["bbox"], height=height, width=width)
            found.append({**entry, "segmentation": mask, "iscrowd": 1})
    faults.report(", ".join(map(str, annotation_files)))
    return found
