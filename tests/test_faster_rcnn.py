"""The detector as a whole.

Golden files: model_r50fpn from the image on, model_train_outputs from the stored targets on.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import original
import pytest
import views
from lowering import lower_for_cuda

from diou_jax.configs import base
from diou_jax.data import catalog, make_reader, packing
from diou_jax.data.augmentation import ScaleChoice
from diou_jax.data.buckets import Bucket
from diou_jax.data.reader import BatchRules
from diou_jax.detection.loss import values
from diou_jax.options import build
from diou_jax.structures import RoiSamples, blank_batch
from diou_jax.weights.original import import_original


@pytest.fixture(scope="module")
def original_variables():
    """The weights that the golden files were made with."""
    return import_original(original.weights(), build.network(base.get_config(), 81).variable_shapes())


def image_batch(image, *, target, max_size, bucket):
    """One image as the loader would hand it over."""
    bucket = Bucket(*bucket, *image.shape[:2])
    view = views.resized(image, target=target, max_size=max_size)
    batch = packing.pack([packing.example(image, view, bucket)], bucket)
    return jax.tree.map(jnp.asarray, batch)


def rows(found):
    """Detections as rows of class, box, score, in an order that does not depend on rounding."""
    valid = np.asarray(found.valid[0])
    table = np.column_stack([found.classes[0], found.boxes[0], found.scores[0]])[valid]
    return table[np.lexsort((*np.round(table[:, 1:5].T), table[:, 0]))]


def matched(ours, theirs, *, score, box):
    """Asserts that two sets of detections are the same: each row has its partner."""
    assert len(ours) == len(theirs)
    np.testing.assert_array_equal(np.sort(ours[:, 0]), np.sort(theirs[:, 0]))
    free = np.ones(len(theirs), bool)
    for row in ours:
        distance = np.abs(theirs[:, 1:5] - row[1:5]).max(1) + 1e3 * (~free | (theirs[:, 0] != row[0]))
        partner = distance.argmin()
        assert distance[partner] < box, row
        assert abs(theirs[partner, 5] - row[5]) < score, row
        free[partner] = False


def test_on_a_gpu_the_gradient_of_the_losses_calls_every_kernel(tiny_config):
    config = tiny_config()
    config.fpn.dim = 128
    detector = build.detector(config, 4)
    variables = detector.network.variable_shapes()
    inputs = jax.eval_shape(lambda: (blank_batch(1, 64, 64), jax.random.split(jax.random.key(0), 1)))
    program = lower_for_cuda(jax.grad(lambda *given: detector.losses(*given)[0], allow_int=True), variables, *inputs)
    # Matching and suppression are two kernels each, RoIAlign is one, and one in the backward pass.
    assert program.count("custom_call @mosaic_gpu") == 6


@pytest.mark.slow
def test_the_originals_weights_find_the_originals_detections(golden_set, original_variables):
    """In one program; test_proof_detection.py has its parts, and the other kinds of suppression."""
    data = original.load("model_r50fpn.npz", golden_set)
    config = base.get_config()
    config.test.diou_nms.enabled, config.test.diou_nms.beta1 = True, 0.9
    detector = build.detector(config, 81)
    padded = data["data"].shape[2:]
    batch = image_batch(data["image_u8_bgr"], **original.resizing(data), bucket=padded)
    assert tuple(np.asarray(batch.padded_size[0])) == padded
    found = jax.jit(detector.detect)(original_variables, batch)
    matched(rows(found), data["dets_diou_b0.9"], score=1e-4, box=0.02)


@pytest.mark.slow
def test_padding_is_invisible(golden_set, original_variables):
    """The same image in its own multiple of 32 and in a larger bucket."""
    data = original.load("model_r50fpn.npz", golden_set)
    config = base.get_config()
    config.test.rpn_pre_nms_top_n = config.test.rpn_post_nms_top_n = 300
    detector = build.detector(config, 81)
    pixels = data["image_u8_bgr"]
    image = functools.partial(image_batch, pixels, target=160, max_size=256)
    own = [-(-round(side * 160 / min(pixels.shape[:2])) // 32) * 32 for side in pixels.shape[:2]]
    larger = own[0] + 64, own[1] + 160
    tight, loose = (rows(jax.jit(detector.detect)(original_variables, image(bucket=b))) for b in (own, larger))
    assert len(tight) > 20
    matched(loose, tight, score=1e-4, box=0.01)

    leaky = dataclasses.replace(detector, mask_padding=False)
    with pytest.raises(AssertionError):
        matched(rows(jax.jit(leaky.detect)(original_variables, image(bucket=larger))), tight, score=1e-4, box=0.01)


@pytest.mark.parametrize("loss", ["smooth_l1", "iou", "giou", "diou", "ciou"])
def test_head_losses_and_their_gradients_equal_the_original(golden, loss):
    data = golden("model_train_outputs.npz")
    labels = data["labels_int32"]
    count, classes = data["cls_score_train_logits"].shape
    columns = 4 * labels[:, None] + np.arange(4)
    none = jnp.zeros((1, count, 4))
    valid, labels = jnp.ones((1, count), bool), jnp.asarray(labels)[None]
    samples = RoiSamples(none, none, labels, gt_index=jnp.zeros_like(labels), valid=valid)
    targets = jnp.asarray(np.take_along_axis(data["bbox_targets"], columns, 1))[None]
    head = dataclasses.replace(build.heads(base.get_config(), classes)[0], box_loss=loss)

    def losses(logits, deltas):
        outputs = logits[None], deltas.reshape(1, count, classes, 4)
        result = values(head.compare(outputs, samples, targets))
        return result["loss_cls"] + result["loss_bbox"], result

    inputs = data["cls_score_train_logits"], data["bbox_pred"]
    gradients, result = jax.jit(jax.grad(losses, (0, 1), has_aux=True))(*inputs)
    np.testing.assert_allclose(result["loss_cls"], data["loss/loss_cls"], rtol=1e-5)
    np.testing.assert_allclose(result["loss_bbox"], data[f"head/loss_bbox_{loss}"], rtol=1e-5)
    for name in ("accuracy_cls", "bbox_sl1", "bbox_iou", "bbox_giou"):
        np.testing.assert_allclose(result[name], data[f"metric/{name}"], rtol=2e-5, err_msg=name)
    for ours, theirs in zip(gradients, (data["head/grad_cls_score"], data[f"head/grad_bbox_pred_{loss}"]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("rpn_loss", ["giou", "sl1"])
def test_losses_are_finite_without_any_box(tiny_config, rpn_loss):
    config = tiny_config()
    config.model.rpn_loss_type = rpn_loss
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    batch, _ = build.train_reader(config, data, build.rule(config).batch)(0)
    batch = jax.tree.map(jnp.asarray, batch.replace(gt=batch.gt.replace(valid=np.zeros_like(batch.gt.valid))))
    variables = detector.network.init_variables(jax.random.key(0))

    def total(params):
        keys = jax.random.split(jax.random.key(0), len(batch.index))
        return detector.losses(variables | {"params": params}, batch, keys)

    gradient, metrics = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, metrics)))
    assert metrics["loss_bbox"] == metrics["loss_rpn_bbox"] == 0
    assert metrics["loss_cls"] > 0 and metrics["loss_rpn_cls"] > 0


@pytest.mark.slow
def test_one_batch_of_photos_can_be_overfitted(tiny_config, real_data):
    config = tiny_config()
    config.resnets.use_gn = config.fpn.use_gn = True
    config.resnets.width_per_group, config.fpn.dim, config.fast_rcnn.mlp_head_dim = 8, 32, 64
    data = catalog.load(("train2017",), real_data("coco128"))
    augmentations, rules = [ScaleChoice((128,), 192)], BatchRules(max_boxes=64)
    photos = make_reader.train_reader(
        data, augmentations, batch_size=2, seed=3, epoch=make_reader.EpochRules(use_flipped=False), rules=rules
    )
    batch = jax.tree.map(jnp.asarray, photos(0)[0])
    detector = build.detector(config, len(data.class_names))
    params = detector.network.init_variables(jax.random.key(0))["params"]
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        keys = jax.random.split(jax.random.key(1), 2)
        loss = lambda params: detector.losses({"params": params}, batch, keys)  # noqa: E731
        gradient, metrics = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, metrics

    state, history = optimizer.init(params), []
    for _ in range(150):
        params, state, metrics = step(params, state)
        history.append(float(metrics["loss"]))
    # The head's box loss starts near zero, while nothing is an object, so the others must carry the drop.
    assert np.mean(history[-10:]) < 0.25 * np.mean(history[:3]), history[::15]
