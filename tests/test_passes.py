"""The passes of augmented testing, and the reader that decodes an image once for all of them."""

import dataclasses

import cv2
import jax
import numpy as np
import pytest
from test_reader import SIZES, make_dataset

from diou_jax.configs import base, mask
from diou_jax.data import augmented_reader as module
from diou_jax.data.augmented_reader import augmented_reader
from diou_jax.data.dataset import BadImageError
from diou_jax.data.loader import batches
from diou_jax.data.passes import Pass, arrange
from diou_jax.data.reader import BatchRules
from diou_jax.data.taps import resample
from diou_jax.detection.preprocess import normalise
from diou_jax.errors import UserError
from diou_jax.options import build

USUAL = Pass(32, 64)
WIDE = Pass(32, 64, aspect_ratio=1.5)
PASSES = (USUAL, Pass(32, 64, mirrored=True), Pass(48, 96), WIDE)


def make_reader(dataset=None, *, passes=PASSES, batch_size=4, **rules):
    return augmented_reader(dataset or make_dataset(), passes, batch_size=batch_size, rules=BatchRules(**rules))


def every_option(group):
    group.update(
        enabled=True,
        h_flip=True,
        scales=(400, 600),
        max_size=1000,
        scale_h_flip=True,
        aspect_ratios=(0.5,),
        aspect_ratio_h_flip=True,
    )


def test_the_order_is_the_originals():
    """Boxes end with the usual pass, masks begin with it."""
    config = mask.get_config()
    assert build.passes(config) is None
    every_option(config.test.bbox_aug)
    config.test.mask_aug.update(enabled=True, h_flip=True, scales=(500,))
    base.check(config)
    passes = build.passes(config)
    usual = Pass(800, 1333)
    others = [(400, 1000, False), (400, 1000, True), (600, 1000, False), (600, 1000, True)]
    assert [passes.distinct[number] for number in passes.boxes] == [
        dataclasses.replace(usual, mirrored=True),
        *(Pass(*one) for one in others),
        Pass(800, 1333, False, 0.5),
        Pass(800, 1333, True, 0.5),
        usual,
    ]
    assert [passes.distinct[number] for number in passes.masks] == [
        usual,
        dataclasses.replace(usual, mirrored=True),
        Pass(500, 4000),
    ]
    assert passes.distinct[0] == usual and len(passes.distinct) == len(set(passes.distinct)) == 9


def test_a_pass_that_is_asked_for_twice_is_made_once():
    passes = arrange(USUAL, boxes=(USUAL, WIDE, WIDE, USUAL), masks=(USUAL, WIDE))
    assert passes.distinct == (USUAL, WIDE)
    assert (passes.boxes, passes.masks) == ((0, 1, 1, 0), (0, 1))


def test_without_masks_no_pass_is_for_masks():
    config = base.get_config()
    config.test.bbox_aug.enabled = True
    assert build.passes(config) == arrange(Pass(800, 1333), boxes=(Pass(800, 1333),), masks=())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test.mask_aug.enabled": True}, "test.mask_aug.enabled=True: only a detector with model.mask_on=True"),
        ({"test.bbox_aug.enabled": True, "model.rpn_only": True}, "test.bbox_aug.enabled=True: a pass needs an RPN"),
        ({"test.bbox_aug.enabled": True, "model.faster_rcnn": False}, "test.bbox_aug.enabled=True: a pass needs"),
        ({"test.bbox_aug.aspect_ratios": (0.0,)}, "test.bbox_aug.aspect_ratios="),
        ({"test.bbox_aug.scales": (0,)}, "test.bbox_aug.scales="),
        ({"test.mask_aug.heur": "MEAN"}, "test.mask_aug.heur='MEAN'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    config = base.get_config()
    for name, value in options.items():
        group = config
        for key in name.split(".")[:-1]:
            group = group[key]
        group[name.rsplit(".", 1)[1]] = value
    with pytest.raises(UserError) as caught:
        base.check(config)
    assert words in str(caught.value)


@pytest.mark.parametrize(("width", "ratio", "wanted"), [(5, 0.5, 2), (7, 0.5, 4), (1, 0.1, 1), (353, 1.003, 354)])
def test_half_pixels_become_even(width, ratio, wanted):
    one = Pass(32, 64, aspect_ratio=ratio)
    assert one.resized_size((9, width)) == (9, wanted)
    assert one.resize(np.zeros((9, width, 3), np.uint8)).shape == (9, wanted, 3)


def test_every_pass_shows_the_network_its_view_of_the_image():
    """OpenCV's."""
    dataset = make_dataset()
    reader = make_reader(dataset)
    seen = set()
    shown = jax.jit(lambda view: normalise(view, (0.0, 0.0, 0.0)))
    for step in range(reader.steps):
        batch, skipped = reader(step)
        assert not skipped
        for one, view in zip(PASSES, batch.views, strict=True):
            np.testing.assert_array_equal(view.index, batch.index)
            np.testing.assert_array_equal(view.present, batch.present)
            np.testing.assert_array_equal(view.aspect_ratio, np.float32(one.aspect_ratio))
            inputs = np.asarray(shown(view))
            for slot in np.flatnonzero(batch.present):
                index = int(batch.index[slot])
                seen.add(index)
                pixels = dataset.source.pixels(index)
                if one.aspect_ratio != 1:
                    pixels = cv2.resize(pixels, (round(one.aspect_ratio * pixels.shape[1]), pixels.shape[0]))
                if one.mirrored:
                    pixels = pixels[:, ::-1]
                scale = min(one.scale / min(pixels.shape[:2]), one.max_size / max(pixels.shape[:2]))
                wanted = cv2.resize(pixels.astype(np.float32), None, fx=scale, fy=scale)
                height, width = view.image_size[slot]
                assert wanted.shape == (height, width, 3)
                np.testing.assert_allclose(inputs[slot, :height, :width], wanted, atol=1e-3)
                assert not inputs[slot, height:].any() and not inputs[slot, :, width:].any()
    assert seen == set(range(len(SIZES)))


def test_an_image_is_decoded_once_for_all_passes(monkeypatch):
    decoded = []

    def count(content, name, **size):
        decoded.append(name)
        return decode(content, name, **size)

    decode = module.decode
    monkeypatch.setattr(module, "decode", count)
    reader = make_reader()
    for step in range(reader.steps):
        reader(step)
    assert sorted(decoded) == [f"picture{index}.png" for index in range(len(SIZES))]


def test_every_image_comes_once_and_blanks_have_the_shapes_of_all_batches():
    reader = make_reader(batch_size=2)
    shapes, images = set(), []
    for batch, _ in map(reader, range(reader.steps)):
        images += batch.index[batch.present].tolist()
        shapes.add(tuple(view.image.shape + view.rows.index.shape for view in batch.views))
    assert sorted(images) == list(range(len(SIZES)))
    blanks = reader.blanks(0, reader.steps)
    assert {tuple(v.image.shape + v.rows.index.shape for v in batch.views) for batch in blanks} == shapes
    assert len(blanks) == len(shapes) == len(reader.groups)


def test_bad_images_are_absent_in_all_passes_or_end_the_run():
    dataset = make_dataset(bad=(1, 5))
    reader = make_reader(dataset, on_bad_image="skip")
    present, messages = [], []
    for batch, skipped in map(reader, range(reader.steps)):
        messages += skipped
        present += batch.index[batch.present].tolist()
        for view in batch.views:
            np.testing.assert_array_equal(view.present, batch.present)
    assert sorted(present) == [0, 2, 3, 4, 6]
    assert len(messages) == 2 and all("not an image that can be decoded" in message for message in messages)
    reader = make_reader(dataset)
    with pytest.raises(BadImageError, match="picture1"):
        [reader(step) for step in range(reader.steps)]


def test_threads_load_the_same_batches():
    reader = make_reader()
    loaded = list(batches(reader, 0, reader.steps, threads=2))
    for step, batch in enumerate(loaded):
        for ours, theirs in zip(batch.views, reader(step)[0].views, strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)


def test_given_shapes_are_those_of_the_usual_pass():
    reader = make_reader(shapes=((64, 64),))
    assert {buckets[0].shape for buckets in reader.groups} == {(64, 64)}
    assert max(bucket.width for buckets in reader.groups for bucket in buckets[2:]) > 64
    with pytest.raises(UserError, match=r"data\.buckets: none holds an image"):
        make_reader(shapes=((32, 32),))


def test_an_image_too_large_for_its_canvas_is_resized_here():
    dataset = make_dataset(sizes=((300, 400), (30, 40)))
    reader = make_reader(dataset, batch_size=1)
    (view,) = (batch.views[2] for batch, _ in map(reader, range(reader.steps)) if batch.index[0] == 0)
    one, pixels = PASSES[2], dataset.source.pixels(0)
    assert view.image.shape[1] < 300
    np.testing.assert_array_equal(view.image[0, :48, :64], resample(pixels, one.view((300, 400))))
    np.testing.assert_array_equal(view.image_size, [[48, 64]])
    np.testing.assert_array_equal(view.original_size, [[300, 400]])
