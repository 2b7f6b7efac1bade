"""The page with pictures of the training's input."""

import dataclasses
import re

import cv2
import numpy as np
import pytest
from test_augmentation import Boxes, RandomCrop
from test_reader import RULES, make_dataset, make_train_reader

from diou_jax.command import input_pictures
from diou_jax.command.check_data import check_data
from diou_jax.command.input_pictures import write_pictures
from diou_jax.data.outlines import from_parts
from diou_jax.errors import UserError
from diou_jax.masks import decode
from diou_jax.reporting import visualize

NAMES = ("background", "a & b", "<b>", "c")


@pytest.fixture(scope="module")
def reader():
    """Crops of 40 x 44 pixels of images with one white box each, whose outline is the box."""
    boxes = np.array([[20 + 8 * i, 10 + 3 * i, 40 + 8 * i, 30 + 3 * i] for i in range(6)], np.float32)
    rings = [np.array([[x1, y1], [x2 + 1, y1], [x2 + 1, y2 + 1], [x1, y2 + 1]]) for x1, y1, x2, y2 in boxes]
    dataset = make_dataset(sizes=((64, 96),) * 6, counts=[1] * 6)
    records = dataclasses.replace(dataset.records, boxes=boxes, outlines=from_parts([[ring] for ring in rings]))
    dataset = dataclasses.replace(dataset, records=records, source=Boxes(boxes))
    rules = dataclasses.replace(RULES, max_vertices=8)
    return make_train_reader(dataset, scales=(48,), more=(RandomCrop((40, 44)),), batch_size=3, rules=rules)


def test_the_page_shows_the_input_with_its_boxes(reader, tmp_path):
    page = write_pictures(reader, tmp_path / "page", class_names=NAMES, means=(10.0, 20.0, 30.0), count=5)
    text = page.read_text()
    assert re.findall(r'src="([^"]*)"', text) == [f"00{number}.jpg" for number in range(5)]
    assert sorted(file.name for file in page.parent.iterdir()) == [*(f"00{i}.jpg" for i in range(5)), "index.html"]
    assert "RandomCrop(shape=(40, 44))" in text and "box 5: 96x64 times 0.67, 44x40 shown, mirrored, objects: 1" in text
    width = reader.buckets[0].width
    (batch, _), (second, _) = reader(0), reader(1)
    for number, (one, row) in enumerate([(batch, 0), (batch, 1), (batch, 2), (second, 0), (second, 1)]):
        picture = cv2.imread(str(page.parent / f"00{number}.jpg")).astype(int)
        factor = picture.shape[1] / width
        corner = picture[-5, -5]  # padding has the colour of the means
        np.testing.assert_allclose(corner, [10, 20, 30], atol=3)
        if not one.gt.valid[row, 0]:
            continue
        x1, y1, x2, y2 = one.gt.boxes[row, 0] * one.placement.scale[row, 0] + np.tile(
            one.placement.offset[row, ::-1], 2
        )
        middle = picture[int((y1 + y2) / 2 * factor), int((x1 + x2) / 2 * factor)]
        colour = np.array(visualize.class_color(1))
        np.testing.assert_allclose(middle, 255 + (colour - 255) * visualize.OPACITY, atol=12)


def test_masks_end_with_the_image(reader):
    for step in range(reader.steps):
        batch, _ = reader(step)
        for row in range(3):
            masks = input_pictures._masks(batch, row, (64, 64))
            assert len(masks) == batch.gt.valid[row].sum()
            for rle in masks:
                mask = decode([rle], height=64, width=64)[0]
                assert not mask[40:].any() and not mask[:, 44:].any() and mask.any()
                ys, xs = np.nonzero(mask)
                scale, (top, left) = batch.placement.scale[row, 0], batch.placement.offset[row]
                x1, y1, x2, y2 = (batch.gt.boxes[row, 0] + [0, 0, 1, 1]) * scale + [left, top, left, top]
                found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=1.5)


def test_the_command_writes_the_page_behind_its_report(tiny_config, tmp_path, capsys):
    config = tiny_config()
    config.train.jitter, config.train.jitter_size, config.train.photometric = (0.5, 2.0), 64, 0.5
    assert check_data(config, pictures=str(tmp_path / "seen"))
    assert f"pictures of the training's input: {tmp_path / 'seen' / 'index.html'}" in capsys.readouterr().out
    assert len(list((tmp_path / "seen").glob("*.jpg"))) == 32
    assert "ScaleJitter(low=0.5, high=2.0, side=64)" in (tmp_path / "seen" / "index.html").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--pictures .*file cannot be written"):
        check_data(config, pictures=str(tmp_path / "file"))
