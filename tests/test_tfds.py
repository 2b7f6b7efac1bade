import json
import pathlib
import pickle

import cv2
import jax
import numpy as np
import pytest

from diou_jax.configs import base
from diou_jax.data import catalog, prepare_tfds, tfds
from diou_jax.data.augmentation import Mirror, ScaleChoice
from diou_jax.data.dataset import BadImageError
from diou_jax.data.reader import BatchRules, EpochRules, train_reader
from diou_jax.errors import UserError
from diou_jax.options import build

SPLITS = {"train": "coco_2017_train", "validation": "coco_2017_val"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A COCO folder with the awkward cases, and the data set that the command makes of it."""
    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    categories = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "brush"}]
    for split, images in (("train2017", 7), ("val2017", 3)):
        (root / "images" / split).mkdir(parents=True)
        content = {"images": [], "annotations": [], "categories": categories}
        for number in range(images):
            height, width = (int(side) for side in rng.integers(20, 60, 2))
            name = f"{number}.jpg"
            cv2.imwrite(str(root / "images" / split / name), rng.integers(0, 255, (height, width, 3), np.uint8))
            # Ids fall while positions rise, and exceed a hash of 32 bits.
            image = {"id": 2**33 - number, "file_name": name, "height": height, "width": width}
            content["images"].append(image)
            for _ in range(number % 4):
                x, y = rng.uniform(0, width - 8), rng.uniform(0, height - 8)
                box = [float(v) for v in (x, y, rng.uniform(4, width - x), rng.uniform(4, height - y))]
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": image["id"],
                        "category_id": int(rng.choice([3, 18, 90])),
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": int(rng.random() < 0.3),
                    }
                )
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    output = tmp_path_factory.mktemp("tfds")
    return root, prepare_tfds.prepare(str(root), str(output), SPLITS), output


@pytest.mark.parametrize("name", SPLITS.values())
def test_both_paths_give_the_same_batches(folders, name):
    root, _, output = folders
    ours, theirs = tfds.load((name,), output), catalog.load((name,), root)
    assert (ours.class_names, ours.category_ids) == (theirs.class_names, theirs.category_ids)
    assert ours.records.image_ids.tolist() == theirs.records.image_ids.tolist()
    augmentations = Mirror(), ScaleChoice((32, 48), 96)
    options = {"batch_size": 2, "seed": 1, "epoch": EpochRules(drop_empty=False), "rules": BatchRules(max_boxes=5)}
    a, b = (train_reader(data, augmentations, **options) for data in (ours, theirs))
    assert a.steps == b.steps
    for step in range(a.steps):
        (x, _), (y, _) = a(step), b(step)
        for field in ("image", "rows", "columns", "image_size", "index", "placement"):
            jax.tree.map(np.testing.assert_array_equal, getattr(x, field), getattr(y, field))
        for field in ("classes", "crowd", "valid"):
            np.testing.assert_array_equal(getattr(x.gt, field), getattr(y.gt, field), err_msg=field)
        np.testing.assert_allclose(x.gt.boxes, y.gt.boxes, atol=1e-4)


def test_evaluation_uses_the_json_that_was_copied(folders):
    root, directory, _ = folders
    (file,) = tfds.load(("coco_2017_val",), directory).annotation_files
    original = root / "annotations" / "instances_val2017.json"
    assert json.loads(pathlib.Path(file).read_text()) == json.loads(original.read_text())
    (other,) = tfds.load(("coco_2017_val",), directory, annotations=str(original)).annotation_files
    assert other == str(original)


def test_a_damaged_cache_is_made_anew(folders):
    _, directory, output = folders
    (cache,) = (path for path in output.rglob("table-train-*.npz"))
    wanted = tfds.load(("train",), directory).records
    cache.write_bytes(cache.read_bytes()[:100])
    actual = tfds.load(("train",), directory).records
    np.testing.assert_array_equal(actual.boxes, wanted.boxes)
    assert cache.stat().st_size > 100


def test_the_source_survives_pickling(folders):
    data = tfds.load(("train",), folders[1])
    assert pickle.loads(pickle.dumps(data.source)).read(0) == data.read(0)
    broken = tfds.ArrayRecordSource(data.source.directory, "train", data.source.order + 10**6, data.source.image_ids)
    with pytest.raises((BadImageError, IndexError)):
        broken.read(0)


def test_mistakes(folders, tmp_path):
    directory = folders[1]
    with pytest.raises(UserError, match="holds no prepared coco/2017"):
        tfds.load(("train",), tmp_path)
    with pytest.raises(UserError, match="no split 'test'; there are train, validation"):
        tfds.load(("test",), directory)
    with pytest.raises(UserError, match=r"nothing\.json does not exist"):
        tfds.load(("train",), directory, annotations=str(tmp_path / "nothing.json"))
    png = tmp_path / "images" / "train2017"
    png.mkdir(parents=True)
    cv2.imwrite(str(png / "0.png"), np.zeros((8, 8, 3), np.uint8))
    (png / "0.png").rename(png / "0.jpg")
    (tmp_path / "annotations").mkdir()
    image = {"id": 1, "file_name": "0.jpg", "height": 8, "width": 8}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no JPEG file"):
        prepare_tfds.prepare(str(tmp_path), str(tmp_path / "out"), {"train": "coco_2017_train"})


def test_masks_are_refused_with_the_mend():
    config = base.get_config()
    config.data.source, config.model.mask_on = "tfds", True
    with pytest.raises(
        UserError, match=r"data\.source=tfds has no masks: set data\.source=coco, or model\.mask_on=False"
    ):
        build.dataset(config, ("coco_2017_train",))
