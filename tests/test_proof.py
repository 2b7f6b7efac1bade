"""The proof: the original's weights, imported, give the original's numbers, in float32.

Every test records the largest deviation that it met; ``pytest -o junit_family=xunit1 --junitxml FILE`` keeps them.
Golden files: model_r50fpn, all from the photo's bytes; model_train, from the network's input, which for the first
photo equals what its bytes give (the second photo's bytes are not stored).
"""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import find_golden
from flax import traverse_util

from configs import base, ciou
from diou_jax import build, preprocess
from diou_jax.boxes import clip, decode, to_input, to_original
from diou_jax.data import packing
from diou_jax.data.buckets import Bucket
from diou_jax.detector.anchor_targets import AnchorTargets, anchor_targets
from diou_jax.detector.detections import detect
from diou_jax.detector.faster_rcnn import STRIDES
from diou_jax.detector.losses import head_losses
from diou_jax.detector.proposals import propose
from diou_jax.detector.roi_targets import SampledRois, sample_rois
from diou_jax.losses import BOX_LOSSES
from diou_jax.models.resnet import max_pool
from diou_jax.weights.original import import_original, original_tensors
from kernels.roi_align import roi_align, roi_levels

LEVELS = range(2, 7)
SCORE, BOX = 1e-4, 0.02  # BOX in pixels
LOSS, GRADIENT = 1e-5, 1e-3  # relative
MAP = 2e-5  # of the largest value


def load(name):
    with np.load(find_golden(name)) as file:
        return dict(file)


def largest(ours, theirs):
    """The largest difference of two arrays of one shape; ours must be finite."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max(initial=0.0))


def relative(ours, theirs):
    """The largest difference over the largest value."""
    return largest(ours, theirs) / float(np.abs(theirs).max())


def pair(ours, theirs, *, within):
    """Which row of `theirs` (M, D) is the partner of each of `ours` (M, D), every coordinate `within` so much.

    Neighbours in score may swap, so sets are compared; each row must find a partner of its own.
    """
    assert len(ours) == len(theirs)
    free, partner = np.ones(len(theirs), bool), np.zeros(len(ours), int)
    for row, box in enumerate(ours):
        distance = np.where(free, np.abs(theirs - box).max(1), np.inf)
        partner[row] = distance.argmin()
        assert distance[partner[row]] < within, (row, box)
        free[partner[row]] = False
    return partner


@pytest.fixture(scope="module")
def config():
    return base.get_config()


@pytest.fixture(scope="module")
def variables(config):
    """The weights that both files were made with."""
    spec = importlib.util.spec_from_file_location("make_weights", find_golden("make_weights.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return import_original(module.weights("public"), build.network(config, 81).variable_shapes())


@pytest.fixture(scope="module")
def photo():
    return load("model_r50fpn.npz")


@pytest.fixture(scope="module")
def step():
    return load("model_train.npz")


@pytest.fixture(scope="module")
def detector(config):
    return build.detector(config, 81)


@pytest.fixture(scope="module")
def batch(photo):
    """The photo's bytes as the loader would hand them over."""
    image, padded = photo["image_u8_bgr"], photo["data"].shape[2:]
    bucket = Bucket(*padded, *image.shape[:2])
    target = round(float(photo["im_scale_f64"][0]) * min(image.shape[:2]))
    example = packing.example(image, bucket, target=target, max_size=max(padded))
    return jax.tree.map(jnp.asarray, packing.pack([example], bucket))


@pytest.fixture(scope="module")
def maps(photo, detector, variables, batch):
    """From the photo's bytes to the RoIs, and the box head on ours and on the stored RoIs."""

    @jax.jit
    def forward(variables, batch, stored_rois):
        network, extent = detector.network, batch.extent
        images = preprocess.normalise(batch, detector.pixel_means)
        pyramid, state = network.apply(
            variables,
            images,
            extent,
            method="pyramid",
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name in ("conv1", "body"),
        )
        body = state["intermediates"]["body"]
        stem = max_pool(jax.nn.relu(body["conv1"]["__call__"][0]))
        logits, deltas = network.apply(variables, pyramid, method="propose")
        anchors, exists = detector.anchors(pyramid, extent)
        rules = dataclasses.asdict(detector.test_proposals)
        options = {"limit": extent, "scale": batch.scale, "per_image": True, **rules}
        levels = [
            propose([a], [b], [c], [d], **options) for a, b, c, d in zip(logits, deltas, anchors, exists, strict=True)
        ]
        proposals = propose(logits, deltas, anchors, exists, **options)
        pooled = roi_align(
            pyramid[:4], stored_rois, extent=extent, strides=STRIDES[:4], **dataclasses.asdict(detector.pooling_rules)
        )
        (stored_logits, stored_deltas), state = network.apply(
            variables,
            pooled,
            method="classify",
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "fc2",
        )
        own = detector.pool(pyramid, proposals.boxes, extent)
        own_logits, own_deltas = network.apply(variables, own, method="classify")
        return {
            "images": images,
            "stages": [stem, *body["__call__"][0]],
            "pyramid": pyramid,
            "logits": logits,
            "deltas": deltas,
            "levels": levels,
            "proposals": proposals,
            "own": (jax.nn.softmax(own_logits), own_deltas),
            "pooled": pooled[0, :64],
            "hidden": jax.nn.relu(state["intermediates"]["box_head"]["fc2"]["__call__"][0]),
            "stored": (jax.nn.softmax(stored_logits), stored_deltas),
        }

    return forward(variables, batch, photo["rois"][None, :, 1:])


def test_the_networks_input(photo, step, maps, record_property):
    deviation = largest(maps["images"], photo["data"].transpose(0, 2, 3, 1))
    record_property("grey_levels", deviation)
    assert deviation < 1e-4
    np.testing.assert_array_equal(step["data"][0], photo["data"][0])


@pytest.mark.parametrize("number", range(1, 6))
def test_stages(photo, maps, record_property, number):
    theirs = photo[f"c{number}_chstride16"].transpose(0, 2, 3, 1)
    deviation = relative(maps["stages"][number - 1][..., ::16], theirs)
    record_property("relative", deviation)
    assert deviation < MAP


@pytest.mark.parametrize(("level", "channel_stride"), [(2, 8), (3, 4), (4, 1), (5, 1), (6, 1)])
def test_pyramid(photo, maps, record_property, level, channel_stride):
    theirs = photo[f"fpn_p{level}_chstride{channel_stride}"].transpose(0, 2, 3, 1)
    deviation = relative(maps["pyramid"][level - 2][..., ::channel_stride], theirs)
    record_property("relative", deviation)
    assert deviation < MAP


@pytest.mark.parametrize("level", LEVELS)
def test_rpn_outputs(photo, maps, record_property, level):
    """Anchors are the original's channels; flat, they follow the cells."""
    logits = photo[f"rpn_cls_logits_fpn{level}"].transpose(0, 2, 3, 1).reshape(1, -1)
    deltas = photo[f"rpn_bbox_pred_fpn{level}"].transpose(0, 2, 3, 1).reshape(1, -1, 4)
    deviations = relative(maps["logits"][level - 2], logits), relative(maps["deltas"][level - 2], deltas)
    probability = largest(jax.nn.sigmoid(maps["logits"][level - 2]), jax.nn.sigmoid(logits))
    record_property("relative", deviations)
    record_property("probability", probability)
    assert max(deviations) < MAP
    assert probability < SCORE


@pytest.mark.parametrize("level", LEVELS)
def test_rois_of_every_level(photo, maps, record_property, level):
    found = jax.tree.map(lambda x: np.asarray(x[0]), maps["levels"][level - 2])
    ours, scores = found.boxes[found.valid], found.scores[found.valid]
    theirs = photo[f"rpn_rois_fpn{level}"][:, 1:]
    partner = pair(ours, theirs, within=BOX)
    deviations = largest(ours, theirs[partner]), largest(scores, photo[f"rpn_rois_prob_fpn{level}"][partner, 0])
    record_property("pixels", deviations[0])
    record_property("score", deviations[1])
    assert deviations[1] < SCORE


def test_the_roi_set_and_its_levels(photo, maps, record_property):
    proposals = maps["proposals"]
    assert proposals.valid.all()
    ours, theirs = np.asarray(proposals.boxes[0]), photo["rois"][:, 1:]
    partner = pair(ours, theirs, within=BOX)
    record_property("pixels", largest(ours, theirs[partner]))
    levels = np.concatenate([np.full(len(photo[f"rois_fpn{level}"]), level - 2) for level in range(2, 6)])
    levels = levels[photo["rois_idx_restore_int32"]]
    np.testing.assert_array_equal(roi_levels(jnp.asarray(ours)), levels[partner])


def test_the_box_head_on_the_stored_rois(photo, maps, batch, detector, record_property):
    """Features are ours, from the photo's bytes; only the RoIs are the file's, for their order."""
    (scores, deltas), rois = maps["stored"], photo["rois"][None, :, 1:]
    boxes = decode(to_original(rois, batch.scale[:, None, None])[0, :, None], deltas[0], weights=detector.reg_weights)
    boxes = clip(boxes, *photo["im_shape"][:2].astype(np.float32))
    deviations = {
        "pooled_relative": relative(maps["pooled"], photo["roi_feat_first64"].transpose(0, 2, 3, 1)),
        "hidden_relative": relative(maps["hidden"][0, :, ::4], photo["box_feat_chstride4"]),
        # At test the original's cls_score is a probability already.
        "score": max(largest(scores[0], photo[name]) for name in ("cls_score", "scores")),
        "deltas_relative": relative(deltas[0].reshape(1000, -1), photo["bbox_pred"]),
        "pixels": largest(boxes.reshape(1000, -1), photo["pred_boxes"]),
    }
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(deviations["pooled_relative"], deviations["hidden_relative"], deviations["deltas_relative"]) < MAP
    assert deviations["score"] < SCORE
    assert deviations["pixels"] < BOX


@pytest.mark.parametrize(
    ("suffix", "nms_thresh", "limit"), [("", 0.5, 100), ("_nolimit", 0.5, 3000), ("_t0.3_lim300", 0.3, 300)]
)
@pytest.mark.parametrize(
    ("name", "diou", "beta1"), [("greedy", False, 1.0), ("diou_b1.0", True, 1.0), ("diou_b0.9", True, 0.9)]
)
def test_detections(photo, maps, batch, detector, record_property, name, diou, beta1, suffix, nms_thresh, limit):
    rules = dataclasses.replace(
        detector.detection_rules, nms_thresh=nms_thresh, diou_nms=diou, beta1=beta1, detections_per_im=limit
    )
    proposals = maps["proposals"]
    found = jax.jit(functools.partial(detect, reg_weights=detector.reg_weights, **vars(rules)))(
        proposals.boxes, proposals.valid, *maps["own"], batch.scale, batch.original_size
    )
    found = jax.tree.map(lambda x: np.asarray(x[0])[np.asarray(found.valid[0])], found)
    theirs = photo[f"dets_{name}{suffix}"]
    np.testing.assert_array_equal(np.sort(found.classes), np.sort(theirs[:, 0]))
    # A class is another dimension, in which no two are near.
    ours = np.column_stack([1000 * found.classes, found.boxes])
    partner = pair(ours, theirs[:, :5] * [1000, 1, 1, 1, 1], within=BOX)
    deviations = largest(found.boxes, theirs[partner, 1:5]), largest(found.scores, theirs[partner, 5])
    record_property("pixels", deviations[0])
    record_property("score", deviations[1])
    assert deviations[1] < SCORE


@pytest.fixture(scope="module")
def trainer():
    """With the rules that the stored step was made with."""
    config = ciou.get_config()
    config.train.rpn_pre_nms_top_n, config.train.rpn_post_nms_top_n = 400, 500
    config.train.batch_size_per_im = 64
    return build.detector(config, 81)


@pytest.fixture(scope="module")
def sampled(step):
    """The stored RoIs, in pixels of the network's input, and their targets: 64 of each photo."""
    np.testing.assert_array_equal(step["rois"][:, 0], np.repeat([0, 1], 64))
    labels = step["labels_int32"]
    deltas = np.take_along_axis(step["bbox_targets"], 4 * labels[:, None] + np.arange(4), 1)
    shape = (2, 64)
    return SampledRois(
        rois=step["rois"][:, 1:].reshape(*shape, 4),
        labels=labels.reshape(shape),
        deltas=deltas.reshape(*shape, 4),
        valid=np.ones(shape, bool),
    )


@pytest.fixture(scope="module")
def labelled(step):
    """The stored RPN targets of the anchors that exist, in our order."""
    labels, deltas = [], []
    for level in LEVELS:
        height, width = (-(-side // 2**level) for side in step["data"].shape[2:])
        crop = np.s_[:, :, :height, :width]
        labels.append(step[f"rpn_labels_int32_wide_fpn{level}"][crop].transpose(0, 2, 3, 1).reshape(2, -1))
        wide = step[f"rpn_bbox_targets_wide_fpn{level}"][crop]
        deltas.append(wide.transpose(0, 2, 3, 1).reshape(2, -1, 4))
    return AnchorTargets(np.concatenate(labels, 1), np.concatenate(deltas, 1), sampled=None)


@pytest.fixture(scope="module")
def trained(step, trainer, variables, sampled, labelled):
    """One training step on the stored network input, targets and RoIs: gradient, losses, outputs."""

    def total(params, frozen, images):
        weights = {"params": params, **frozen}
        network = trainer.network
        pyramid = network.apply(weights, images, method="pyramid")
        outputs = network.apply(weights, pyramid, method="propose")
        head_outputs = network.apply(weights, trainer.pool(pyramid, sampled.rois, None), method="classify")
        loss, losses = trainer.compare(outputs, labelled, head_outputs, sampled)
        return loss, (losses | {"total": loss}, outputs, head_outputs)

    frozen = {name: values for name, values in variables.items() if name != "params"}
    images = jnp.asarray(step["data"].transpose(0, 2, 3, 1))
    return jax.jit(jax.grad(total, has_aux=True))(variables["params"], frozen, images)


def test_outputs_of_a_training_step(step, trained, record_property):
    _, (_, _, (logits, deltas)) = trained
    deviations = (
        relative(logits.reshape(128, -1), step["cls_score_train_logits"]),
        relative(deltas.reshape(128, -1), step["bbox_pred"]),
    )
    record_property("relative", deviations)
    assert max(deviations) < MAP


def test_losses_of_a_training_step(step, trained, trainer, record_property):
    _, (losses, _, _) = trained
    wanted = {"total": step["total_loss"], "loss_cls": step["loss/loss_cls"]}
    ours = {name: losses[name] for name in wanted}
    # The original logs the box loss with its weight.
    wanted["loss_bbox"], ours["loss_bbox"] = step["loss/loss_bbox"], trainer.loss_rules.box_weight * losses["loss_bbox"]
    for name in ("loss_rpn_cls", "loss_rpn_bbox"):
        for level in LEVELS:
            wanted[f"{name}_fpn{level}"] = step[f"loss/{name}_fpn{level}"]
            ours[f"{name}_fpn{level}"] = losses[f"{name}_levels"][level - 2]
    deviations = {n: largest(ours[n], w) / (float(w) or 1.0) for n, w in wanted.items()}
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(deviations.values()) < LOSS, deviations
    for name in ("accuracy_cls", "bbox_sl1", "bbox_iou", "bbox_giou"):
        theirs = step[f"metric/{name}"]
        deviation = largest(losses[name], theirs) / float(theirs)
        record_property(name, deviation)
        # The file's own IoU and GIoU losses of the same outputs lie 1e-5 from these metrics.
        assert deviation < 2 * LOSS, name


@pytest.mark.parametrize("name", ["smooth_l1", "iou", "giou", "diou", "ciou"])
def test_every_box_loss_on_the_outputs_of_the_step(step, trained, trainer, sampled, record_property, name):
    _, (_, _, (logits, deltas)) = trained

    @jax.jit
    @jax.value_and_grad
    def loss(deltas):
        options = {"box_loss": BOX_LOSSES[name], "reg_weights": trainer.reg_weights}
        return head_losses(logits, deltas, sampled, **options)["loss_bbox"]

    value, gradient = loss(deltas)
    theirs = float(step[f"head/loss_bbox_{name}"])
    deviation = largest(value, theirs) / theirs
    record_property("relative", deviation)
    slope = relative(gradient.reshape(128, -1), step[f"head/grad_bbox_pred_{name}"])
    record_property("gradient", slope)
    assert deviation < LOSS
    assert slope < MAP


def torch_norm(values):
    """The norm as the original's torch computed it: squares summed one after the other, in eight float32 lanes.

    Over the 13 million values of fc1 that loses a thousandth, which is no deviation of the gradient.
    """
    squares = np.square(values)
    squares = np.pad(squares, (0, -len(squares) % 8)).reshape(-1, 8)
    return float(np.sqrt(np.cumsum(squares, axis=0, dtype=np.float32)[-1].sum(dtype=np.float64)))


def test_gradient_of_every_parameter(step, trained, variables, record_property):
    flat = traverse_util.flatten_dict({"params": trained[0]}, sep="/")
    flat = {path: np.asarray(value) for path, value in flat.items()}
    tensors = {tensor.name: (path, tensor) for path, tensor in original_tensors(variables).items()}
    norms, exact, samples = {}, {}, {}
    for name, norm in zip(step["grad_names"].tolist(), step["grad_norms"].tolist(), strict=True):
        path, tensor = tensors[name]
        ours = np.ascontiguousarray(tensor.to_original(flat.pop(path))).ravel()
        if norm == 0:
            # Nothing of the step lies on P5: no RoI is pooled there and no anchor sampled.
            assert name.startswith("Conv_Body.posthoc_modules.0.") and not ours.any()
            continue
        norms[name] = largest(torch_norm(ours), norm) / norm
        exact[name] = largest(np.linalg.norm(ours.astype(np.float64)), norm) / norm
        sample = step[f"grad_sample/{name}"]
        picked = ours[np.arange(len(sample)) * max(len(ours) // 64, 1)]
        samples[name] = largest(picked, sample) / float(np.abs(ours).max())
    # What has no gradient in the original is frozen here as well.
    assert not any(left.any() for left in flat.values())
    for kind, deviations in {"norm": norms, "norm_in_float64": exact, "samples": samples}.items():
        worst = max(deviations, key=deviations.get)
        record_property(kind, f"{deviations[worst]:.3g} ({worst})")
    assert max(norms.values()) < GRADIENT
    # A ReLU whose input is zero to rounding may be open here and shut there, which moves a few values of a gradient.
    assert max(samples.values()) < GRADIENT


@pytest.fixture(scope="module")
def geometry(step, trainer, trained):
    """Anchors of the step's maps, which of them exist, and the proposals of our RPN outputs, per level and in all."""
    _, (_, (logits, deltas), _) = trained
    pyramid = [jnp.zeros((2, *(-(-side // stride) for side in step["data"].shape[2:]), 1)) for stride in STRIDES]
    extent = jnp.asarray([step["data"].shape[2:]] * 2)
    anchors, exists = trainer.anchors(pyramid, extent)
    options = {"limit": step["im_info"][:, :2], "scale": step["im_info"][:, 2]}
    options |= dataclasses.asdict(trainer.train_proposals)
    find = jax.jit(functools.partial(propose, **options))
    levels = [find(*([x] for x in level)) for level in zip(logits, deltas, anchors, exists, strict=True)]
    return np.concatenate(anchors), np.concatenate(exists, 1), levels, find(logits, deltas, anchors, exists)


def test_proposals_of_a_training_step(step, geometry, record_property):
    _, _, levels, _ = geometry
    pixels, score = [], []
    for level, found in zip(LEVELS, levels, strict=True):
        rois, scores = step[f"rpn_rois_fpn{level}"], step[f"rpn_rois_prob_fpn{level}"][:, 0]
        for image in (0, 1):
            valid, mine = np.asarray(found.valid[image]), rois[:, 0] == image
            ours = np.asarray(found.boxes[image])[valid]
            partner = pair(ours, rois[mine, 1:], within=BOX)
            pixels.append(largest(ours, rois[mine, 1:][partner]))
            score.append(largest(np.asarray(found.scores[image])[valid], scores[mine][partner]))
    record_property("pixels", max(pixels))
    record_property("score", max(score))
    assert max(score) < SCORE


def truth(step, image):
    """Boxes, classes, crowd flags and the validity of a photo's ground truth."""
    boxes, classes, crowd = (step[f"{name}_im{image}"] for name in ("gt_boxes", "gt_classes", "is_crowd"))
    return boxes, classes, crowd, np.ones(len(boxes), bool)


@pytest.mark.parametrize("image", [0, 1])
def test_anchors_get_the_originals_labels_and_targets(step, trainer, labelled, geometry, record_property, image):
    """Both photos have fewer objects than may be sampled, so all of them are; the background is a draw.

    Without a limit ours are the labels before the draw: the stored objects are exactly ours, and every stored
    background anchor is background here.
    """
    anchors, exists, _, _ = geometry
    boxes, _, crowd, _ = truth(step, image)
    height, width, scale = step["im_info"][image]
    rules = dataclasses.asdict(trainer.anchor_rules) | {"batch_size_per_im": 10**6}
    find = jax.jit(functools.partial(anchor_targets, **rules))
    only = exists[image], to_input(boxes, scale), ~crowd, jnp.array([height, width]), jax.random.key(0)
    ours = jax.tree.map(lambda x: x[0], find(anchors, *(x[None] for x in only)))
    labels = labelled.labels[image]
    np.testing.assert_array_equal(ours.labels == 1, labels == 1)
    assert (np.asarray(ours.labels)[labels == 0] == 0).all()
    deviation = largest(ours.deltas[labels == 1], labelled.deltas[image][labels == 1])
    record_property("deltas", deviation)
    record_property("objects", int((labels == 1).sum()))
    assert deviation < 1e-5


@pytest.mark.parametrize("image", [0, 1])
def test_rois_get_the_originals_labels_and_targets(step, trainer, sampled, geometry, record_property, image):
    """From our own proposals. Objects are fewer than may be sampled, so all of them are; the background is a draw.

    Without a limit ours are all candidates: the stored objects are exactly ours, and every stored background RoI is
    background here.
    """
    _, _, _, proposals = geometry
    scale = step["im_info"][image, 2]
    rules = dataclasses.asdict(trainer.roi_rules) | {"batch_size_per_im": 2000}
    find = jax.jit(functools.partial(sample_rois, reg_weights=trainer.reg_weights, **rules))
    rois = to_original(proposals.boxes[image], scale)
    ours = find(rois, proposals.valid[image], *truth(step, image), jax.random.key(0))
    ours = jax.tree.map(lambda x: np.asarray(x)[np.asarray(ours.valid)], ours)
    theirs = jax.tree.map(lambda x: x[image], sampled)
    found = np.asarray(to_input(ours.rois, scale))

    objects, wanted = ours.labels > 0, theirs.labels > 0
    partner = pair(found[objects], theirs.rois[wanted], within=BOX)
    np.testing.assert_array_equal(ours.labels[objects], theirs.labels[wanted][partner])
    background = np.abs(theirs.rois[~wanted][:, None] - found[~objects]).max(-1).min(1)
    deviation = largest(ours.deltas[objects], theirs.deltas[wanted][partner])
    record_property("deltas", deviation)
    record_property("object_pixels", largest(found[objects], theirs.rois[wanted][partner]))
    record_property("background_pixels", float(background.max()))
    assert background.max() < BOX
    assert deviation < 1e-4
