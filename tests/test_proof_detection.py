"""The proof of a detection: the original's weights, imported, give the original's numbers, in float32.

Every test records the largest deviation that it met; ``pytest -o junit_family=xunit1 --junitxml FILE`` keeps them.
Golden file: model_r50fpn, all from the image's bytes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import original
import pytest
import views
from conftest import slow
from fast_compilation import as_a_run
from original import BOX, LEVELS, MAP, SCORE, largest, load, pair, pair_of_a_class, relative, resizing

from diou_jax.boxes import clip, decode, to_original
from diou_jax.configs import base
from diou_jax.data import packing
from diou_jax.data.buckets import Bucket
from diou_jax.detection import preprocess
from diou_jax.detection.proposals import propose
from diou_jax.detection.rules import Thresholds
from diou_jax.kernels.roi_align import roi_levels
from diou_jax.models.resnet import max_pool
from diou_jax.options import build
from diou_jax.structures import Anchors
from diou_jax.weights.original import import_original


@pytest.fixture(scope="module")
def config():
    return base.get_config()


@pytest.fixture(scope="module")
def variables(config):
    return import_original(original.weights(), build.network(config, 81).variable_shapes())


@pytest.fixture(scope="module")
def image(golden_set):
    return load("model_r50fpn.npz", golden_set)


@pytest.fixture(scope="module")
def detector(config):
    return build.detector(config, 81)


@pytest.fixture(scope="module")
def batch(image):
    """The image's bytes as the loader would hand them over."""
    pixels = image["image_u8_bgr"]
    bucket = Bucket(*image["data"].shape[2:], *pixels.shape[:2])
    example = packing.example(pixels, views.resized(pixels, **resizing(image)), bucket)
    return jax.tree.map(jnp.asarray, packing.pack([example], bucket))


@pytest.fixture(scope="module")
def maps(image, detector, variables, batch):
    """From the image's bytes to the RoIs, and the box head on ours and on the stored RoIs."""

    @as_a_run
    def forward(variables, batch, stored_rois):
        network, padded_size = detector.network, batch.padded_size
        images = preprocess.normalise(batch, detector.pixel_means)
        pyramid, state = network.apply(
            variables,
            images,
            padded_size,
            method="pyramid",
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name in ("conv1", "backbone"),
        )
        backbone = state["intermediates"]["backbone"]
        stem = max_pool(jax.nn.relu(backbone["conv1"]["__call__"][0]))
        logits, deltas = network.apply(variables, pyramid, method="propose")
        anchors = detector.anchor_generator(pyramid, padded_size)
        options = {
            "limit": padded_size,
            "placement": batch.placement,
            "per_image": True,
            "rules": detector.test_proposals,
        }
        levels = [
            propose(([a], [b]), Anchors([c], [d]), **options)
            for a, b, c, d in zip(logits, deltas, anchors.boxes, anchors.exists, strict=True)
        ]
        proposals = propose((logits, deltas), anchors, **options)
        head = detector.heads[0]
        pooled = detector.pool(pyramid, stored_rois, rules=head.pooling, padded_size=padded_size)
        (stored_logits, stored_deltas), state = network.apply(
            variables,
            pooled,
            head.name,
            method="head",
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "fc2",
        )
        own_logits, own_deltas = detector.runner(head, variables, pyramid, padded_size=padded_size)(proposals.boxes)
        return {
            "images": images,
            "stages": [stem, *backbone["__call__"][0].values()],
            "pyramid": list(pyramid.values()),
            "logits": logits,
            "deltas": deltas,
            "levels": levels,
            "proposals": proposals,
            "own": (jax.nn.softmax(own_logits), own_deltas),
            "pooled": pooled[0, :64],
            "hidden": jax.nn.relu(state["intermediates"]["box_head"]["fc2"]["__call__"][0]),
            "stored": (jax.nn.softmax(stored_logits), stored_deltas),
        }

    return forward(variables, batch, image["rois"][None, :, 1:])


def test_the_networks_input(image, golden_set, maps, record_property):
    deviation = largest(maps["images"], image["data"].transpose(0, 2, 3, 1))
    record_property("grey_levels", deviation)
    assert deviation < 1e-4
    np.testing.assert_array_equal(load("model_train.npz", golden_set)["data"][0], image["data"][0])


@pytest.mark.parametrize("number", range(1, 6))
def test_stages(image, maps, record_property, number):
    theirs = image[f"c{number}_chstride16"].transpose(0, 2, 3, 1)
    deviation = relative(maps["stages"][number - 1][..., ::16], theirs)
    record_property("relative", deviation)
    assert deviation < MAP


@pytest.mark.parametrize(("level", "channel_stride"), [(2, 8), (3, 4), (4, 1), (5, 1), (6, 1)])
def test_pyramid(image, maps, record_property, level, channel_stride):
    theirs = image[f"fpn_p{level}_chstride{channel_stride}"].transpose(0, 2, 3, 1)
    deviation = relative(maps["pyramid"][level - 2][..., ::channel_stride], theirs)
    record_property("relative", deviation)
    assert deviation < MAP


@pytest.mark.parametrize("level", LEVELS)
def test_rpn_outputs(image, maps, record_property, level):
    """Anchors are the original's channels; flat, they follow the cells."""
    logits = image[f"rpn_cls_logits_fpn{level}"].transpose(0, 2, 3, 1).reshape(1, -1)
    deltas = image[f"rpn_bbox_pred_fpn{level}"].transpose(0, 2, 3, 1).reshape(1, -1, 4)
    deviations = relative(maps["logits"][level - 2], logits), relative(maps["deltas"][level - 2], deltas)
    probability = largest(jax.nn.sigmoid(maps["logits"][level - 2]), jax.nn.sigmoid(logits))
    record_property("relative", deviations)
    record_property("probability", probability)
    assert max(deviations) < MAP
    assert probability < SCORE


@pytest.mark.parametrize("level", LEVELS)
def test_rois_of_every_level(image, maps, record_property, level):
    found = jax.tree.map(lambda x: np.asarray(x[0]), maps["levels"][level - 2])
    ours, scores = found.boxes[found.valid], found.scores[found.valid]
    theirs = image[f"rpn_rois_fpn{level}"][:, 1:]
    partner = pair(ours, theirs, within=BOX)
    deviations = largest(ours, theirs[partner]), largest(scores, image[f"rpn_rois_prob_fpn{level}"][partner, 0])
    record_property("pixels", deviations[0])
    record_property("score", deviations[1])
    assert deviations[1] < SCORE


def test_the_roi_set_and_its_levels(image, maps, record_property):
    proposals = maps["proposals"]
    ours, theirs = np.asarray(proposals.boxes[0])[proposals.valid[0]], image["rois"][:, 1:]
    partner = pair(ours, theirs, within=BOX)
    record_property("pixels", largest(ours, theirs[partner]))
    levels = np.concatenate([np.full(len(image[f"rois_fpn{level}"]), level - 2) for level in range(2, 6)])
    levels = levels[image["rois_idx_restore_int32"]]
    np.testing.assert_array_equal(roi_levels(jnp.asarray(ours)), levels[partner])


def test_the_box_head_on_the_stored_rois(image, maps, batch, detector, record_property):
    """Features are ours, from the image's bytes; only the RoIs are the file's, for their order."""
    (scores, deltas), rois = maps["stored"], image["rois"][None, :, 1:]
    boxes = decode(to_original(rois, batch.placement)[0, :, None], deltas[0], weights=detector.heads[0].reg_weights)
    boxes = clip(boxes, *image["im_shape"][:2].astype(np.float32))
    deviations = {
        "pooled_relative": relative(maps["pooled"], image["roi_feat_first64"].transpose(0, 2, 3, 1)),
        "hidden_relative": relative(maps["hidden"][0, :, ::4], image["box_feat_chstride4"]),
        # At test the original's cls_score is a probability already.
        "score": max(largest(scores[0], image[name]) for name in ("cls_score", "scores")),
        "deltas_relative": relative(deltas[0].reshape(rois.shape[1], -1), image["bbox_pred"]),
        "pixels": largest(boxes.reshape(rois.shape[1], -1), image["pred_boxes"]),
    }
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(deviations["pooled_relative"], deviations["hidden_relative"], deviations["deltas_relative"]) < MAP
    assert deviations["score"] < SCORE
    assert deviations["pixels"] < BOX


@pytest.mark.parametrize(
    ("suffix", "nms_thresh", "limit"), [("", 0.5, 100), slow("_nolimit", 0.5, 3000), slow("_t0.3_lim300", 0.3, 300)]
)
@pytest.mark.parametrize(
    ("name", "diou", "beta1"), [("greedy", False, 1.0), ("diou_b1.0", True, 1.0), ("diou_b0.9", True, 0.9)]
)
def test_detections(image, maps, batch, detector, record_property, name, diou, beta1, suffix, nms_thresh, limit):
    head = detector.heads[0]
    rules = dataclasses.replace(head.detection, diou_nms=diou, beta1=beta1, detections_per_im=limit)
    select = as_a_run(dataclasses.replace(head, detection=rules).select)
    found = select(maps["own"], maps["proposals"], batch, thresholds=Thresholds(rules.thresholds.score, nms_thresh))
    found = jax.tree.map(lambda x: np.asarray(x[0])[np.asarray(found.valid[0])], found)
    theirs = image[f"dets_{name}{suffix}"]
    partner = pair_of_a_class(np.column_stack([found.classes, found.boxes]), theirs[:, :5], within=BOX)
    deviations = largest(found.boxes, theirs[partner, 1:5]), largest(found.scores, theirs[partner, 5])
    record_property("pixels", deviations[0])
    record_property("score", deviations[1])
    assert deviations[1] < SCORE
