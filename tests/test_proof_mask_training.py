"""The proof of a training step with masks: on the original's weights, input and RoIs, the heads' losses and gradients.

The anchors that the RPN drew are not stored, so that its losses and the layers below it cannot be compared here;
test_proof_training does that. Golden files: train_mask_r50fpn and train_mask_r50fpn_gn, from the network's input.
"""

import jax
import jax.numpy as jnp
import numpy as np
import original_models
import pytest
from conftest import slow
from fast_compilation import as_a_run
from flax import traverse_util
from original import GRADIENT, LOSS, MAP, largest, relative
from test_mask_targets import ground_truth, outlines

from diou_jax.detection import loss
from diou_jax.detection.mask_targets import MaskTargets, mask_targets
from diou_jax.options import build
from diou_jax.structures import RoiSamples
from diou_jax.weights.original import original_tensors


@pytest.fixture(scope="module", params=[slow("mask_r50fpn"), slow("mask_r50fpn_gn")])
def model(request):
    return request.param


@pytest.fixture(scope="module")
def step(model):
    return original_models.load(f"train_{model}.npz")


@pytest.fixture(scope="module")
def detector(model):
    return build.detector(original_models.configs()[model], 81)


@pytest.fixture(scope="module")
def variables(model, detector):
    return original_models.variables(model, detector.network)


def samples(step):
    """The stored RoIs of both images, in pixels of the original images and of the network's input."""
    images = step["rois"][:, 0].astype(int)
    count = len(images) // 2
    np.testing.assert_array_equal(images, np.repeat([0, 1], count))
    rois = step["rois"][:, 1:].reshape(2, count, 4)
    labels = step["labels_int32"].reshape(2, count)
    original = (rois / step["im_info"][:, 2, None, None]).astype(np.float32)
    return RoiSamples(original, rois, labels, np.zeros_like(labels), np.ones(labels.shape, bool))


def targets(step, drawn):
    """The stored masks of the RoIs with an object, which come first in each image."""
    most = int((drawn.labels > 0).sum(1).max())
    masks, exists = np.zeros((2, most, 28, 28), bool), np.arange(most) < (drawn.labels > 0).sum(1)[:, None]
    masks[exists] = step["masks_class_block_int8"].reshape(-1, 28, 28) > 0
    np.testing.assert_array_equal(drawn.labels[:, :most][exists], step["masks_class"])
    return MaskTargets(masks, exists)


def test_masks_of_the_sampled_rois(step):
    """Bit for bit, although the stored RoIs are scaled and must be scaled back."""
    drawn = samples(step)
    wanted = targets(step, drawn)
    most = wanted.exists.shape[1]
    for image in (0, 1):
        masks = outlines(*(step[f"gt_poly_{name}_im{image}{end}"] for name, end in PARTS))
        crowd, classes = step[f"is_crowd_im{image}"], step[f"gt_classes_im{image}"]
        gt = ground_truth(masks, classes=classes[~crowd])
        one = jax.tree.map(lambda x, image=image: x[image : image + 1, :most], drawn)
        ours = as_a_run(mask_targets, static_argnames="resolution")(one, gt, resolution=28)
        np.testing.assert_array_equal(ours.exists[0], wanted.exists[image])
        np.testing.assert_array_equal(ours.masks[0], wanted.masks[image])


PARTS = ("coords", "_f64"), ("len", ""), ("instance", "")


@pytest.fixture(scope="module")
def trained(step, detector, variables):
    """Gradients of the heads' losses by parameter and by mask logit, the losses, and the outputs."""
    drawn = samples(step)
    wanted = targets(step, drawn)
    most = wanted.exists.shape[1]
    box, mask = detector.heads
    own = step["labels_int32"][:, None] * 4 + np.arange(4)
    deltas = np.take_along_axis(step["bbox_targets"], own, 1).reshape(2, -1, 4)

    def total(params, moved, frozen, images):
        weights = {"params": params, **frozen}
        pyramid = detector.network.apply(weights, images, method="pyramid")
        outputs = detector.runner(box, weights, pyramid, padded_size=None)(drawn.input_rois)
        run = detector.runner(mask, weights, pyramid, padded_size=None)
        logits = run(drawn.input_rois[:, :most], jnp.asarray(drawn.labels[:, :most])) + moved
        parts = box.compare(outputs, drawn, deltas) | mask.compare(logits, wanted)
        return loss.total(parts), (loss.values(parts), outputs, logits)

    frozen = {name: values for name, values in variables.items() if name != "params"}
    images = jnp.asarray(step["data"].transpose(0, 2, 3, 1))
    slope = as_a_run(jax.grad(total, argnums=(0, 1), has_aux=True))
    (params, moved), found = slope(variables["params"], jnp.zeros((2, most, 28, 28)), frozen, images)
    return params, moved, found, wanted.exists


def test_outputs(step, trained, record_property):
    _, moved, (_, (logits, deltas), masks), exists = trained
    labels = step["labels_int32"]
    own = np.take_along_axis(np.asarray(deltas).reshape(len(labels), -1, 4), labels[:, None, None], 1)[:, 0]
    deviations = {
        "cls_score": relative(logits.reshape(len(labels), -1), step["cls_score_train_logits"]),
        "bbox_pred": relative(own, step["bbox_pred_own_class"]),
        "mask_logits": relative(np.asarray(masks)[exists], step["mask_logits_own_class"]),
        "mask_gradient": relative(np.asarray(moved)[exists], step["grad_mask_logits_own_class"]),
    }
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(deviations.values()) < MAP


def test_losses(step, trained, detector, record_property):
    _, _, (ours, _, _), _ = trained
    theirs = {name: step[f"loss/{name}"] for name in ("loss_cls", "loss_bbox", "loss_mask")}
    # The original logs the box loss with its weight.
    ours = {**ours, "loss_bbox": detector.heads[0].box_weight * ours["loss_bbox"]}
    deviations = {name: largest(ours[name], value) / float(value) for name, value in theirs.items()}
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(deviations.values()) < LOSS, deviations


def test_gradients_of_the_heads(step, trained, variables, record_property):
    params, *_ = trained
    flat = traverse_util.flatten_dict({"params": params}, sep="/")
    tensors = {tensor.name: (path, tensor) for path, tensor in original_tensors(variables).items()}
    norms, sampled = {}, {}
    for name, norm in zip(step["grad_names"].tolist(), step["grad_norms"].tolist(), strict=True):
        if not name.startswith(("Box_", "Mask_")):
            continue
        path, tensor = tensors[name]
        ours = np.ascontiguousarray(tensor.to_original(np.asarray(flat[path]))).ravel()
        # fc1's norm was summed in float32 there, see test_proof_training.
        norms[name] = abs(np.linalg.norm(ours.astype(np.float64)) - norm) / norm
        sample = step[f"grad_sample/{name}"]
        picked = ours[np.arange(len(sample)) * max(len(ours) // 64, 1)]
        sampled[name] = largest(picked, sample) / float(np.abs(ours).max())
    assert len(norms) >= 18
    for kind, deviations in {"norm": norms, "samples": sampled}.items():
        worst = max(deviations, key=deviations.get)
        record_property(kind, f"{deviations[worst]:.3g} ({worst})")
    assert max(sampled.values()) < GRADIENT, sampled
    assert max(norms.values()) < 2 * GRADIENT, norms
