import json
import pathlib
import pickle

import cv2
import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from diou_jax.configs import base
from diou_jax.data import catalog, prepare_tfds, tfds
from diou_jax.data.augmentation import Mirror, ScaleChoice
from diou_jax.data.dataset import BadImageError
from diou_jax.data.make_reader import EpochRules, train_reader
from diou_jax.data.reader import BatchRules
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


@pytest.fixture
def prepared(tmp_path):
    """``prepared(**content)`` prepares one image of 64 by 48 pixels, whose json has this content, and loads it."""

    def prepare_and_load(image=(), annotation=(), categories=({"id": 1, "name": "a"},), turned=0):
        folder, output = tmp_path / "images" / "few", tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = turned
        Image.new("RGB", (64, 48), (9, 120, 200)).save(folder / "1.jpg", exif=exif)
        plain = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0}
        content = {
            "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 48} | dict(image)],
            "annotations": [plain, {key: v for key, v in (plain | dict(annotation)).items() if v is not ...}],
            "categories": list(categories),
        }
        (tmp_path / "annotations" / "instances_few.json").write_text(json.dumps(content))
        prepare_tfds.prepare(str(tmp_path), str(output), {"few": "few"})
        return tfds.load(("few",), output)

    return prepare_and_load


@pytest.mark.parametrize(
    "change",
    [
        {"iscrowd": "0"},
        {"iscrowd": "false"},
        {"iscrowd": None},
        {"image_id": "1"},
        {"image_id": 1.0},
        {"category_id": "1"},
        {"area": None},
        {"area": ...},
        {"area": 1e300},
        {"id": ...},
        {"id": "x"},
        {"bbox": ["1", "2", "30", "20"]},
    ],
)
def test_values_that_say_the_same_are_prepared_the_same(prepared, change):
    records = prepared(annotation=change).records
    assert records.boxes.tolist() == [[1, 2, 30, 21]] * 2
    assert records.crowd.tolist() == [False, False] and records.classes.tolist() == [1, 1]


@pytest.mark.parametrize(
    "change, kind",
    [
        ({"bbox": None}, "annotations without a box of four numbers"),
        ({"bbox": ...}, "annotations without a box of four numbers"),
        ({"category_id": 9}, "annotations of unknown categories"),
        ({"image_id": 9}, "annotations of unknown images"),
        ({"iscrowd": "perhaps"}, "annotations whose 'iscrowd' is neither 0 nor 1"),
        ({"area": 0}, "boxes without area in their image"),
        ({"bbox": [70, 2, 30, 20]}, "boxes without area in their image"),
        ({"ignore": 1}, ""),
    ],
)
def test_faulty_annotations_are_left_out_and_named(prepared, caplog, change, kind):
    with caplog.at_level("WARNING"):
        assert len(prepared(annotation=change).records.boxes) == 1
    said = [record.getMessage() for record in caplog.records if "instances_few.json: 1 " in record.getMessage()]
    assert len(said) == bool(kind) and all(kind in line for line in said)


def test_images_have_integer_ids_and_the_size_of_their_files(prepared):
    assert prepared(image={"id": "1"}).records.image_ids.tolist() == [1]
    assert prepared(image={"height": None}).records.heights.tolist() == [48]
    with pytest.raises(UserError, match=r"instances_few\.json: image 'x' has an id that is no integer of 64 bits"):
        prepared(image={"id": "x"})
    with pytest.raises(UserError, match=r"1\.jpg has 64x48 pixels, but its annotations are for 48x64"):
        prepared(image={"height": 64, "width": 48}, turned=6)


def test_categories_of_one_name_are_prepared_apart(prepared):
    twins = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]
    data = prepared(annotation={"category_id": 2}, categories=twins)
    assert data.class_names[1:] == ("a (1)", "a (2)") and data.category_ids == (-1, 1, 2)
    assert data.records.classes.tolist() == [1, 2]


def test_what_is_prepared_is_not_prepared_again(folders):
    root, _, output = folders
    with pytest.raises(UserError, match=r"1\.1\.0 exists already; delete it, or name another folder with --output"):
        prepare_tfds.prepare(str(root), str(output), SPLITS)


@pytest.mark.parametrize("pair", ["train", "train=", "=coco_2017_train"])
def test_a_split_without_a_data_set_is_named(tmp_path, capsys, pair):
    with flagsaver.flagsaver(output=str(tmp_path), splits=[pair]), pytest.raises(SystemExit) as end:
        prepare_tfds.main([])
    assert end.value.code == 2
    assert (
        capsys.readouterr().err == f"error: --splits: {pair!r} must be SPLIT=DATA_SET, such as train=coco_2017_train\n"
    )


def test_masks_are_refused_with_the_mend():
    config = base.get_config()
    config.data.source, config.model.mask_on = "tfds", True
    with pytest.raises(
        UserError, match=r"data\.source=tfds has no masks: set data\.source=coco, or model\.mask_on=False"
    ):
        build.dataset(config, ("coco_2017_train",))
