"""Makes a tensorflow-datasets ``coco/2017`` in array_record form from COCO folders, without TensorFlow.

python -m diou_jax.data.prepare_tfds --coco data/coco --output data/tfds
python main.py --config configs/ciou.py --config.data.source=tfds --config.data.root=data/tfds
"""

import os
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
from absl import app, flags

from diou_jax.data import annotations, catalog
from diou_jax.errors import UserError
from diou_jax.files import regular_file

try:
    from diou_jax.data.tfds import ANNOTATIONS, tfds
except UserError as error:
    if __name__ != "__main__":
        raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

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
        categories = [
            [(entry["id"], entry["name"]) for entry in _by_id(annotations.read_json(file)["categories"])]
            for file, _ in self._sources.values()
        ]
        if any(other != categories[0] for other in categories):
            raise UserError(f"the annotation files of {', '.join(splits.values())} differ in their categories")
        self._labels = {number: label for label, (number, _) in enumerate(categories[0])}
        self._names = [name for _, name in categories[0]]
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
        content = annotations.read_json(annotation_file)
        annotations.refuse_names(content["images"], annotation_file)
        by_image: dict[Any, list[dict]] = {}
        for annotation in content.get("annotations") or ():
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        for image in _by_id(content["images"]):
            path = os.path.join(images, image["file_name"])
            try:
                data = regular_file(path).read_bytes()
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from None
            if not data.startswith(b"\xff\xd8"):
                raise UserError(f"{path} is no JPEG file, which is all that coco/2017 can hold; use data.source=coco")
            objects = [self._object(entry, image) for entry in by_image.get(image["id"], [])]
            yield (
                image["id"],
                {
                    "image": data,
                    "image/filename": image["file_name"],
                    "image/id": image["id"],
                    "objects": [entry for entry in objects if entry],
                },
            )

    def _object(self, annotation, image):
        """The entry of an annotation; None if its box lies outside the image, which the format cannot express."""
        x, y, width, height = annotation["bbox"]
        corners = np.array(
            [y / image["height"], x / image["width"], (y + height) / image["height"], (x + width) / image["width"]]
        )
        y1, x1, y2, x2 = np.clip(corners, 0, 1).tolist()
        if not (np.isfinite(corners).all() and x1 < x2 and y1 < y2):
            return None
        return {
            "id": annotation["id"],
            "area": int(annotation.get("area", width * height)),
            "bbox": tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
            "label": self._labels[annotation["category_id"]],
            "is_crowd": bool(annotation.get("iscrowd", 0)),
        }


def _by_id(entries):
    return sorted(entries, key=lambda entry: entry["id"])


def prepare(root: str, output: str, splits: dict[str, str]) -> str:
    """Prepares `splits`, each with the name of a data set below `root`, in `output`; returns the folder of the records.

    Raises:
      UserError: if a file is missing or cannot be stored in this format.
    """
    builder = Coco(root=root, splits=splits, data_dir=output, file_format="array_record")
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
        splits = dict(pair.split("=", 1) for pair in SPLITS.value)
        print(prepare(COCO.value, OUTPUT.value, splits))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
