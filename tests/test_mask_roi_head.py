"""The mask head: its loss against the original's, and its place in the detector."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import find_golden
from views import at_scale

from diou_jax.detection.mask_targets import MaskTargets
from diou_jax.options import build
from diou_jax.structures import Polygons, blank_batch


@pytest.fixture(scope="module")
def stored():
    with np.load(find_golden("mask_targets_paste_loss.npz", "golden2")) as file:
        return dict(file)


@pytest.fixture(scope="module")
def detector(tiny_mask_config):
    return build.detector(tiny_mask_config(), 4)


@pytest.fixture(scope="module")
def variables(detector):
    return detector.network.init_variables(jax.random.key(0))


@pytest.mark.parametrize("case", ["K5", "agnostic"])
def test_loss_and_its_gradient_are_the_originals(stored, detector, case):
    logits, blob = stored[f"loss/{case}/mask_pred"], stored[f"loss/{case}/masks_int8"]
    count, classes = logits.shape[:2]
    blob = blob.reshape(count, classes, 28, 28)
    known = (blob >= 0).all((2, 3))
    label = known.argmax(1)
    targets = MaskTargets(blob[np.arange(count), label][None] > 0, known.any(1)[None])

    def loss(logits):
        own = jnp.take_along_axis(logits, label[:, None, None, None], 1)[:, 0]
        return detector.heads[1].compare(own[None], targets)["loss_mask"].value

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, stored[f"loss/{case}/loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, stored[f"loss/{case}/grad"], rtol=1e-4, atol=1e-9)


def test_loss_without_any_target_is_zero_and_so_is_its_gradient(stored, detector):
    """The original's is NaN."""
    assert np.isnan(stored["loss/all_ignore_nan/loss"])
    targets = MaskTargets(jnp.zeros((1, 2, 28, 28), bool), jnp.zeros((1, 2), bool))

    def loss(logits):
        return detector.heads[1].compare(logits, targets)["loss_mask"].value

    value, gradient = jax.value_and_grad(loss)(jnp.full((1, 2, 28, 28), 3.0))
    assert value == 0 and not gradient.any()


def with_objects(batch, outlines=True):
    """The batch with a square object of class 1 in each image, outlined or not."""
    count = len(batch.image)
    box = np.tile(np.array([[[8, 8, 40, 40]]], np.float32), (count, 1, 1))
    corners = np.array([[8, 8], [41, 8], [41, 41], [8, 41]], np.float32)
    part = np.zeros((count, 1, 4), np.int32) if outlines else np.full((count, 1, 4), -1, np.int32)
    gt = batch.gt.replace(
        boxes=box,
        classes=np.ones((count, 1), np.int32),
        valid=np.ones((count, 1), bool),
        masks=Polygons(np.tile(corners, (count, 1, 1, 1)), part),
    )
    return batch.replace(gt=gt)


@pytest.fixture(scope="module")
def gradient(detector):
    """The function from variables and a batch to the losses by name and the gradient of the total."""

    def total(params, rest, batch):
        keys = jax.random.split(jax.random.key(1), len(batch.image))
        return detector.losses({"params": params, **rest}, batch, keys)

    step = jax.jit(jax.grad(total, has_aux=True))

    def run(variables, batch):
        rest = {name: values for name, values in variables.items() if name != "params"}
        slope, losses = step(variables["params"], rest, jax.tree.map(jnp.asarray, batch))
        return losses, slope

    return run


@pytest.mark.slow
def test_the_mask_loss_reaches_head_and_backbone(detector, variables, gradient):
    losses, slope = gradient(variables, with_objects(blank_batch(2, 64, 64)))
    assert "loss_mask" in detector.loss_names and losses["loss_mask"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope["mask_head"]["logits"]))


@pytest.mark.slow
def test_objects_without_an_outline_train_their_box_and_no_mask(variables, gradient):
    losses, slope = gradient(variables, with_objects(blank_batch(2, 64, 64), outlines=False))
    assert losses["loss_mask"] == 0 and losses["loss_bbox"] > 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(slope["mask_head"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(slope["box_head"]))


def noise(side, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (1, side, side, 3), np.uint8)


def identity_taps(batch, side):
    index = np.tile(np.arange(side, dtype=np.int32), (1, 2, 1))
    return batch.replace(rows=batch.rows.replace(index=index), columns=batch.columns.replace(index=index))


@pytest.fixture(scope="module")
def detect(detector):
    """Detections at any score, so that random weights find something."""
    return jax.jit(lambda variables, batch: detector.detect(variables, batch, detector.thresholds._replace(score=0.0)))


@pytest.mark.slow
def test_masks_are_probabilities_of_detections_and_zero_elsewhere(detector, variables, detect):
    batch = identity_taps(blank_batch(1, 64, 64), 64).replace(image=noise(64))
    found = detect(variables, batch)
    assert found.masks.shape == (*found.scores.shape, 14, 14) and found.masks.dtype == jnp.float32
    assert found.valid.any()
    assert ((found.masks > 0) & (found.masks < 1)).all((2, 3))[found.valid].all()
    assert not found.masks[~found.valid].any()
    boxes_only = dataclasses.replace(detector, heads=detector.heads[:1])
    np.testing.assert_array_equal(
        found.boxes, jax.jit(boxes_only.detect)(variables, batch, detector.thresholds._replace(score=0.0)).boxes
    )


@pytest.mark.slow
def test_a_mirrored_image_gives_masks_of_the_image_itself(variables, detect):
    """The network sees the mirrored pixels; boxes and masks come back in the image's own frame."""
    plain = identity_taps(blank_batch(1, 64, 64), 64)
    seen = detect(variables, plain.replace(image=noise(64)))
    mirrored = plain.replace(image=noise(64)[:, :, ::-1], placement=at_scale([1.0]).replace(mirrored=np.array([True])))
    taps = mirrored.columns.replace(index=mirrored.columns.index[..., ::-1])
    back = detect(variables, mirrored.replace(columns=taps))
    np.testing.assert_array_equal(seen.scores, back.scores)
    np.testing.assert_allclose(back.boxes[..., 0][back.valid], (63 - seen.boxes[..., 2])[seen.valid], atol=1e-4)
    np.testing.assert_array_equal(back.masks, seen.masks[..., ::-1])


@pytest.mark.slow
def test_masks_do_not_depend_on_the_padding(variables, detect):
    small = identity_taps(blank_batch(1, 64, 64), 64).replace(image=noise(64))
    wide = identity_taps(blank_batch(1, 128, 128), 128)
    image = np.zeros((1, 128, 128, 3), np.uint8)
    image[:, :64, :64] = noise(64)
    wide = wide.replace(
        image=image, image_size=small.image_size, padded_size=small.padded_size, original_size=small.original_size
    )
    weight = np.zeros((1, 128), np.float32)
    inside = np.minimum(np.arange(128), 63)[None, None].repeat(2, 1).astype(np.int32)
    wide = wide.replace(
        rows=wide.rows.replace(index=inside, weight=weight), columns=wide.columns.replace(index=inside, weight=weight)
    )
    a, b = detect(variables, small), detect(variables, wide)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
    np.testing.assert_allclose(a.masks, b.masks, atol=1e-5)
