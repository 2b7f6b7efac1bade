"""Makes a tensorflow-datasets ``coco/2017`` in array_record form from COCO folders, without TensorFlow.

python -m diou_jax.data.prepare_tfds --coco data/coco --output data/tfds
python main.py --config configs/ciou.py --config.data.source=tfds --config.data.root=data/tfds
"""

import os
import pathlib
import shutil
import sys
from collections.abc import Mapping

import numpy as np
from absl import app, flags

from diou_jax.data import annotations, catalog, decoding
from diou_jax.data.dataset import BadImageError
from diou_jax.errors import UserError
from diou_jax.files import regular_file
from diou_jax.reporting.run_log import print_line

try:
    from diou_jax.data.tfds import ANNOTATIONS, tfds
except UserError as error:
    if __name__ != "__main__":
        raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

MOST = 2**63 - 1  # ids and areas are stored as int64

COCO = flags.DEFINE_string("coco", "data/coco", "The folder with annotations/ and images/.")
OUTPUT = flags.DEFINE_string("output", None, "The folder in which coco/2017/<version> is made.")
SPLITS = flags.DEFINE_list(
    "splits", ["train=coco_2017_train", "validation=coco_2017_val"], "Pairs of a split and the data set for it."
)


class Coco(tfds.core.GeneratorBasedBuilder):
    """A builder with the features of the public data set, filled from local files."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017", version=VERSION)]  # noqa: RUF012
    pkg_dir_path = pathlib.Path(__file__).parent  # the folder in which tfds looks for a description

    def __init__(self, *, root: str, splits: dict[str, str], **options):
        """Prepares a builder of `splits`, each with the name of a data set below `root`."""
        self._sources = {split: catalog.paths(name, root) for split, name in splits.items()}
        categories = [annotations.read_categories(file) for file, _ in self._sources.values()]
        if any(other != categories[0] for other in categories):
            raise UserError(f"the annotation files of {', '.join(splits.values())} differ in their categories")
        self._labels = {number: label for label, number in enumerate(categories[0])}
        self._names = list(categories[0].values())
        super().__init__(config="2017", **options)

    def _info(self):
        features = tfds.features
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(
                {
                    "image": features.Image(encoding_format="jpeg"),
                    "image/filename": features.Text(),
                    "image/id": np.int64,
                    "objects": features.Sequence(
                        {
                            "id": np.int64,
                            "area": np.int64,
                            "bbox": features.BBoxFeature(),
                            "label": features.ClassLabel(names=self._names),
                            "is_crowd": np.bool_,
                        }
                    ),
                }
            ),
            description="COCO 2017, prepared from local files.",
            homepage="https://cocodataset.org",
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(*paths) for split, paths in self._sources.items()}

    def _generate_examples(self, annotation_file, images):
        content = annotations.read(annotation_file)
        annotations.refuse_names(content.images.values(), annotation_file)
        rows: dict[int | str, list[int]] = {}
        for row in np.flatnonzero(~content.boxes.ignored).tolist():
            rows.setdefault(content.boxes.images[row], []).append(row)
        for key in sorted(content.images, key=annotations.id_rank):
            image = content.images[key]
            if not (isinstance(key, int) and abs(key) <= MOST):
                raise UserError(
                    f"{annotation_file}: image {image['id']!r:.99} has an id that is no integer of 64 bits, which is "
                    "all that coco/2017 can hold; use data.source=coco"
                )
            path = os.path.join(images, image["file_name"])
            data, height, width = _file(path, image)
            objects = [self._object(content, row, height, width) for row in rows.get(key, ())]
            yield (
                key,
                {
                    "image": data,
                    "image/filename": image["file_name"],
                    "image/id": key,
                    "objects": [entry for entry in objects if entry],
                },
            )
        content.faults.report(annotation_file)

    def _object(self, content, row, height, width):
        """The entry of an annotation; None if it has no area inside the image, which the format cannot express."""
        found = content.boxes
        x, y, w, h = found.xywh[row].tolist()
        y1, x1, y2, x2 = np.clip([y / height, x / width, (y + h) / height, (x + w) / width], 0, 1).tolist()
        if not (x1 < x2 and y1 < y2 and found.areas[row] > 0):
            content.faults.add(
                "boxes without area in their image", f"annotation {found.ids[row]!r} of image {found.images[row]!r}"
            )
            return None
        number = annotations.id_key(found.ids[row])
        return {
            # Negative numbers stand for ids that the file lacks; nothing here reads them.
            "id": number if isinstance(number, int) and abs(number) <= MOST else -1 - row,
            "area": min(int(found.areas[row]), MOST),
            "bbox": tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
            "label": self._labels[found.categories[row]],
            "is_crowd": bool(found.crowd[row]),
        }


def _file(path: str, image: Mapping) -> tuple[bytes, int, int]:
    """The bytes of an image file, its height and its width; raises UserError if the format cannot hold it."""
    try:
        data = regular_file(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not data.startswith(b"\xff\xd8"):
        raise UserError(f"{path} is no JPEG file, which is all that coco/2017 can hold; use data.source=coco")
    height, width = annotations.integer(image.get("height")), annotations.integer(image.get("width"))
    if not (height and width):
        height, width = decoding.upright_size(data, path)
    try:
        found = decoding.open_header(data, path).size
    except BadImageError:
        return data, height, width  # it is refused by name when the records are read
    # Boxes are stored as shares of the image, and read as shares of the file's pixels.
    if found != (width, height):
        raise UserError(
            f"{path} has {found[0]}x{found[1]} pixels, but its annotations are for {width}x{height}, which coco/2017 "
            "cannot hold; save it upright and in that size, or use data.source=coco"
        )
    return data, height, width


def prepare(root: str, output: str, splits: dict[str, str]) -> str:
    """Prepares `splits`, each with the name of a data set below `root`, in `output`; returns the folder of the records.

    Raises:
      UserError: if a file is missing or cannot be stored in this format.
    """
    builder = Coco(root=root, splits=splits, data_dir=output, file_format="array_record")
    if os.path.exists(builder.data_dir):
        raise UserError(f"{builder.data_dir} exists already; delete it, or name another folder with --output")
    builder.download_and_prepare()
    for split, name in splits.items():
        file, _ = catalog.paths(name, root)
        shutil.copyfile(file, os.path.join(builder.data_dir, ANNOTATIONS.format(split=split)))
    return str(builder.data_dir)


def main(argv):
    """The command."""
    del argv
    try:
        if OUTPUT.value is None:
            raise UserError("--output FOLDER is needed")
        if faulty := [pair for pair in SPLITS.value if not all(pair.partition("="))]:
            raise UserError(f"--splits: {faulty[0]!r} must be SPLIT=DATA_SET, such as train=coco_2017_train")
        splits = dict(pair.split("=", 1) for pair in SPLITS.value)
        print_line(prepare(COCO.value, OUTPUT.value, splits))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
