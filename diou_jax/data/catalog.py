"""The names of data sets in the original's options, and the places of their files."""

import os
import pathlib
import re
from collections.abc import Sequence

from diou_jax.data import coco
from diou_jax.data.dataset import Dataset, join
from diou_jax.data.division import divide
from diou_jax.data.layouts import Layout
from diou_jax.errors import UserError

# Name: name of the annotation file, folder of images. minival and valminusminival divide val2014 in two. The files of
# test sets hold no annotations; COCO's server scores results on them.
COCO = {
    "coco_2017_train": ("instances_train2017", "train2017"),
    "coco_2017_val": ("instances_val2017", "val2017"),
    "coco_2017_test": ("image_info_test2017", "test2017"),
    "coco_2017_test-dev": ("image_info_test-dev2017", "test2017"),
    "coco_2015_test": ("image_info_test2015", "test2015"),
    "coco_2015_test-dev": ("image_info_test-dev2015", "test2015"),
    "coco_2014_train": ("instances_train2014", "train2014"),
    "coco_2014_val": ("instances_val2014", "val2014"),
    "coco_2014_minival": ("instances_minival2014", "val2014"),
    "coco_2014_valminusminival": ("instances_valminusminival2014", "val2014"),
    "coco_2014_test": ("image_info_test2014", "test2014"),
}


def paths(name: str, root: str | os.PathLike) -> tuple[str, str]:
    """The annotation file and the folder of images of a data set.

    Args:
      name: a key of `COCO`, or the split of any COCO-format folder.
      root: the folder with ``annotations/instances_<split>.json`` and ``images/<split>`` (or ``<split>``).

    Raises:
      UserError: if `name` has other characters than those of a plain name.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"data set {name!r}: a name of letters, digits, '_', '-' and '.', such as coco_2017_train")
    file, folder = COCO.get(name, (f"instances_{name}", name))
    candidates = [os.path.join(root, "images", folder), os.path.join(root, folder)]
    images = next((path for path in candidates if os.path.isdir(path)), candidates[0])
    return os.path.join(root, "annotations", f"{file}.json"), images


def load(
    names: Sequence[str],
    root: str | os.PathLike,
    *,
    min_area: float = -1.0,
    masks: bool = False,
    layout: Layout | None = None,
    val_share: float = 0.2,
    split_seed: int = 0,
) -> Dataset:
    """Loads the named data sets below `root` and joins them.

    Args:
      names: one or more names, see `paths`; with a `layout`, names of its splits.
      root: the folder of the data sets.
      min_area: TRAIN.GT_MIN_AREA.
      masks: whether to read the objects' outlines, too.
      layout: the files found in a folder of own data.
      val_share: share of validation images where a layout has one json for all images.
      split_seed: seed of the choice of validation images.

    Raises:
      UserError: if files are missing (the message says how to get them) or damaged, or categories differ.
    """
    if isinstance(names, str) or not names:
        raise UserError(f"datasets = {names!r}: a tuple of one or more names, such as ('coco_2017_train',)")
    datasets = []
    for name in names:
        if layout is not None:
            datasets.append(_load_part(name, layout, val_share, split_seed, min_area=min_area, masks=masks))
            continue
        annotation_file, images = paths(name, root)
        for path in (annotation_file, images):
            if not os.path.exists(path):
                raise UserError(_missing(name, path, root))
        datasets.append(coco.load(annotation_file, images, name=name, min_area=min_area, masks=masks))
    return join(datasets)


def _load_part(name, layout, val_share, split_seed, **options):
    if name not in layout.parts:
        raise UserError(f"data set {name!r}: there are {', '.join(sorted(layout.parts))}")
    part = layout.parts[name]
    dataset = coco.load(part.annotations, part.images, name=name, **options)
    if not part.share:
        return dataset
    return divide(dataset, share=val_share, seed=split_seed)[("train", "val").index(part.share)]


def _missing(name, path, root):
    """The message for a missing file of data set `name`; it says how to get the file."""
    if name in COCO:
        file, images = COCO[name]
        archive = file if file.startswith("image_info_test") else f"annotations_trainval{file[-4:]}"
        archive = archive.replace("test-dev", "test")
        mend = (
            f"download {images}.zip and {archive}.zip from https://cocodataset.org/#download and "
            f"unpack them so that {root}/annotations/{file}.json and {root}/images/{images} exist"
        )
        if "minival" in file:
            mend += " (from Detectron's coco_annotations_minival.tgz)"
    else:
        mend = f"{root} must hold annotations/instances_{name}.json and images/{name}"
        folder = pathlib.Path(root, "annotations")
        files = sorted(path.name for path in folder.glob("instances_*.json")) if os.path.isdir(folder) else []
        if files:
            mend += f"; it has annotations of {', '.join(file[len('instances_') : -len('.json')] for file in files)}"
    return f"{path} does not exist: {mend}; set data.root, or try --config configs/shapes.py, which needs no data"
