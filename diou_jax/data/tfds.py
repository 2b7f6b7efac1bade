"""A prepared tensorflow-datasets ``coco/2017``, read without TensorFlow.

Images come out of the array_record files as JPEG bytes and are decoded like those of a folder. Boxes and image sizes
are collected in one pass over the records and cached beside them.
"""

import dataclasses
import functools
import io
import os
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
from absl import logging

from diou_jax.data.annotations import read_categories
from diou_jax.data.dataset import BACKGROUND, BadImageError, Dataset, Faults, clean_boxes, join, make_records
from diou_jax.data.decoding import open_header
from diou_jax.errors import UserError

try:
    import array_record  # noqa: F401, tensorflow-datasets imports it at the first record
    import tensorflow_datasets as tfds
except ImportError as error:
    raise UserError(f"data.source=tfds needs {error.name}: pip install -e '.[tfds]'") from None

SPLITS = {"coco_2017_train": "train", "coco_2017_val": "validation"}
ANNOTATIONS = "instances_{split}.json"  # written beside the records by prepare_tfds


@dataclasses.dataclass(frozen=True)
class ArrayRecordSource:
    """The images of a split; `order` maps an image to its record. Each process opens the files at their first use."""

    directory: str
    split: str
    order: np.ndarray
    image_ids: np.ndarray

    def read(self, index: int) -> bytes:
        """As `dataset.Source.read`."""
        try:
            return bytes(_open(self.directory, self.split)[int(self.order[index])]["image"])
        except (OSError, RuntimeError, ValueError) as error:
            raise BadImageError(f"{self.name(index)}: cannot be read ({error})") from error

    def name(self, index: int) -> str:
        """As `dataset.Source.name`."""
        return f"{self.directory}/{self.split}: image {self.image_ids[index]}"


@functools.cache
def _open(directory: str, split: str):
    builder = tfds.builder_from_directory(directory)
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def load(names: Sequence[str], root: str | os.PathLike, *, min_area: float = -1.0, annotations: str = "") -> Dataset:
    """Loads the named splits of a prepared data set and joins them; images are ordered by id, as in `coco.load`.

    Args:
      names: keys of `SPLITS`, or names of splits.
      root: the folder with dataset_info.json, or the one above coco/2017/<version>.
      min_area: TRAIN.GT_MIN_AREA.
      annotations: a COCO json to evaluate against; by default the one that prepare_tfds wrote.

    Raises:
      UserError: if nothing is prepared there, or it has another file format.
    """
    directory = find_directory(root)
    return join([_load_split(directory, name, min_area, annotations) for name in names])


def find_directory(root: str | os.PathLike) -> str:
    """The folder of the newest prepared version at or below `root`."""
    root = pathlib.Path(os.path.expanduser(root))
    versions = sorted(root.glob("coco/2017/*/dataset_info.json")) if os.path.isdir(root) else []
    found = [path.parent for path in (root / "dataset_info.json", *versions) if os.path.exists(path)]
    if not found:
        raise UserError(
            f"{root} holds no prepared coco/2017 (a dataset_info.json is missing); make one from COCO folders with "
            "python -m diou_jax.data.prepare_tfds --coco data/coco --output FOLDER, or set data.source=coco"
        )
    return str(found[-1])


def _load_split(directory, name, min_area, annotations):
    split = SPLITS.get(name, name)
    builder = tfds.builder_from_directory(directory)
    if split not in builder.info.splits:
        raise UserError(f"{directory} has no split {split!r}; there are {', '.join(builder.info.splits)}")
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{directory} is in {builder.info.file_format.value} form, which only TensorFlow reads; prepare it with "
            "file_format='array_record'"
        )
    table = _table(directory, split)
    order = np.argsort(table["image_id"], kind="stable")
    file = annotations or os.path.join(directory, ANNOTATIONS.format(split=split))
    names = builder.info.features["objects"]["label"].names
    if os.path.exists(file):
        categories = read_categories(file)
        if list(categories.values()) != list(names):
            raise UserError(
                f"{file}: its categories are not those of {directory}; set data.val_annotations to its json"
            )
        category_ids = list(categories)
    elif annotations:
        raise UserError(f"data.val_annotations: {annotations} does not exist")
    else:
        category_ids = list(range(1, len(names) + 1))

    faults, rows = Faults(), []
    starts = np.concatenate([[0], np.cumsum(table["count"])])
    for record in order:
        part = slice(starts[record], starts[record + 1])
        rows.append(_ground_truth(table, part, int(table["height"][record]), int(table["width"][record]), min_area))
        for kind, where in rows[-1][1].items():
            faults.add(kind, f"image {table['image_id'][record]}", count=int(where.sum()))
    faults.report(name)
    image_ids = table["image_id"][order]
    return Dataset(
        name=name,
        records=make_records(
            image_ids.tolist(),
            [truth for truth, _ in rows],
            heights=table["height"][order],
            widths=table["width"][order],
        ),
        source=ArrayRecordSource(directory, split, order, image_ids),
        class_names=(BACKGROUND, *names),
        category_ids=(-1, *category_ids),
        annotation_files=(file,) if os.path.exists(file) else (),
        faults=faults,
    )


def _ground_truth(table, part, height, width, min_area):
    """Boxes, classes and crowd flags of one image, and masks of dropped boxes by kind of fault."""
    y1, x1, y2, x2 = table["bbox"][part].astype(np.float64).T
    xywh = np.stack([x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height], 1)
    boxes, keep, faults = clean_boxes(xywh, height, width)
    keep &= table["area"][part] >= min_area
    truth = boxes[keep], table["label"][part][keep] + 1, table["is_crowd"][part][keep]
    return truth, faults


def _table(directory, split):
    """The columns of a split, from the cache or the records: some per record, the others per object of all records."""
    source = _open(directory, split)
    cache = pathlib.Path(directory) / f"table-{split}-{len(source)}.npz"
    try:
        # The file is read into memory first, since numpy leaves a damaged file open.
        with np.load(io.BytesIO(cache.read_bytes())) as file:
            return dict(file)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        logging.warning("%s is damaged (%s) and is made anew", cache, error)
    table = _scan(source, f"{directory}/{split}")
    try:
        draft = cache.with_suffix(f".{os.getpid()}.npz")
        np.savez(draft, **table)
        os.replace(draft, cache)
    except OSError as error:
        logging.warning("%s cannot be written (%s): every start will read all of %s", cache, error, directory)
    return table


def _scan(source, split):
    columns: dict[str, list[int]] = {name: [] for name in ("image_id", "height", "width", "count")}
    objects = {"bbox": [np.zeros((0, 4), np.float32)], "area": [], "label": [], "is_crowd": []}
    for record in source:
        width, height = open_header(record["image"], f"{split}: image {record['image/id']}").size
        count = len(record["objects"]["label"])
        for name, value in (("image_id", record["image/id"]), ("height", height), ("width", width), ("count", count)):
            columns[name].append(value)
        # Without objects these are empty lists, which need the right shape.
        objects["bbox"].append(np.reshape(record["objects"]["bbox"], (-1, 4)))
        for name in ("area", "label", "is_crowd"):
            objects[name].append(np.reshape(record["objects"][name], -1))
    table = {name: np.asarray(values, np.int64) for name, values in columns.items()}
    dtypes = {"bbox": np.float32, "area": np.float64, "label": np.int32, "is_crowd": bool}
    return table | {name: np.concatenate(objects[name]).astype(dtype) for name, dtype in dtypes.items()}
