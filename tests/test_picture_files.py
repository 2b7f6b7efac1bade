import io
import json
import os
import pathlib

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diou_jax.data.decoding import decode_upright
from diou_jax.evaluation import evaluate
from diou_jax.evaluation.found import Found
from diou_jax.files import draft_of
from diou_jax.reporting import picture_files
from diou_jax.reporting.run_log import RunLog


def photo(height=480, width=640):
    """Smooth colours with some noise."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.add(smooth, rng.integers(0, 8, (height, width, 3), np.uint8))


def opened(content):
    return Image.open(io.BytesIO(content))


def test_pictures_are_marked_small_and_right():
    content = picture_files.encode(photo())
    assert picture_files.is_drawn(opened(content))
    read = decode_upright(content, "picture")
    assert np.abs(read.astype(int) - photo()).mean() < 4
    assert len(content) * 4 < len(cv2.imencode(".png", photo())[1])
    for suffix in (".jpg", ".png", ".webp"):
        assert not picture_files.is_drawn(opened(cv2.imencode(suffix, photo())[1].tobytes()))


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (1, 3000), (100, 100)])
def test_large_pictures_are_reduced_where_it_is_asked_for(size):
    width, height = opened(picture_files.encode(photo(*size), longest_side=320)).size
    assert max(width, height) == min(320, max(size)) and min(width, height) >= 1
    assert opened(picture_files.encode(photo(*size))).size == size[::-1]


def test_pictures_are_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "ünïcødé 画像 \udcff.jpg"
    picture_files.write(path, photo())
    before = path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        picture_files.write(path, 255 - photo())
    assert path.read_bytes() == before


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=120)


@given(st.lists(st.lists(NAMES.filter(lambda n: n not in (".", "..")), min_size=1, max_size=3), min_size=2, max_size=4))
def test_every_path_has_its_own_name_that_a_file_can_have(paths):
    paths = {str(pathlib.PurePosixPath(*parts)) for parts in paths if len(os.fsencode(parts[-1])) <= 255}
    for name in (picture_files.flat, lambda path: picture_files.beside(pathlib.PurePosixPath(path)).as_posix()):
        assert len({name(path) for path in paths}) == len(paths)
    for path in paths:
        assert "/" not in picture_files.flat(path)
        for name in (picture_files.flat(path), picture_files.beside(pathlib.PurePosixPath(path)).name):
            assert len(os.fsencode(draft_of(pathlib.Path(name)).name)) <= 255 and name.endswith(".jpg")


def test_names_stay_readable():
    assert picture_files.beside(pathlib.PurePath("cam1/f.png")) == pathlib.PurePath("cam1/f.png.jpg")
    assert picture_files.flat("/data/images/val/f.png").startswith("val_f.png_")
    assert picture_files.flat("f.png").startswith("f.png_")


@pytest.mark.slow
def test_an_evaluation_keeps_the_pictures_of_all_images(tiny_config, tmp_path, monkeypatch):
    names = ["cam1/f.png", "cam2/f.png", "cam1/f.bmp", "ä 画/f.png", "f.png"]
    box = {"category_id": 1, "bbox": [2, 2, 30, 30], "area": 900, "iscrowd": 0}
    content = {
        "images": [{"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(names)],
        "annotations": [box | {"id": i, "image_id": i} for i in range(len(names))],
        "categories": [{"id": 1, "name": "Stück"}],
    }
    for name in names:
        path = tmp_path / "data" / "images" / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, photo(48, 64))[1].tobytes())
    (tmp_path / "data" / "annotations").mkdir()
    (tmp_path / "data" / "annotations" / "instances_val.json").write_text(json.dumps(content))
    config = tiny_config()
    config.data.root, config.log.images = str(tmp_path / "data"), len(names)
    found = Found(np.float32([[2, 2, 31, 31]]), np.float32([0.9]), np.int32([1]))
    monkeypatch.setattr(evaluate, "detect_all", lambda *_, **options: dict.fromkeys(range(len(names)), found))

    evaluator = evaluate.Evaluator(config, str(tmp_path / "run"), ("__background__", "Stück"))
    variables = evaluator.detector.network.init_variables(jax.random.key(0))
    with RunLog(tmp_path / "run") as log:
        evaluator(variables, 4, log)
    pictures = sorted((tmp_path / "run" / "pictures").iterdir())
    assert len(pictures) == len(names)
    assert sum(path.name.startswith("0000004_val_cam1_f.") for path in pictures) == 2
    assert sum(path.name.startswith("0000004_val_f.png") for path in pictures) == 1, "its folder is named val"
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and picture_files.is_drawn(picture)
