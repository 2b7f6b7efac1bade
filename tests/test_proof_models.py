"""The proof of the further models: the original's weights and an image's bytes give the original's numbers, in float32.

Every test records the largest deviation that it met; ``pytest -o junit_family=xunit1 --junitxml FILE`` keeps them.
Golden files: model_r101fpn, model_x101_32x8d_fpn, model_mask_r50fpn_gn.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import original_models
import pytest
from fast_compilation import as_a_run
from original import LEVELS, MAP, largest, pair, pair_of_a_class, relative
from original_models import BOX, GROUP_NORM_BOX, GROUP_NORM_SCORE, SCORE

from diou_jax.detection import preprocess
from diou_jax.detection.proposals import propose
from diou_jax.masks import decode
from diou_jax.models.conv import convolve
from diou_jax.models.norms import GroupNorm
from diou_jax.models.resnet import max_pool
from diou_jax.options import build
from diou_jax.structures import Anchors, Proposals

MODELS = ("r101fpn", "x101_32x8d_fpn", "mask_r50fpn_gn")
ROI = 0.01  # pixels, within which another build of the original gives each RoI again
WHOLE_BOX, WHOLE_SCORE = 0.01, 1e-4  # through the whole network, as the README of the first numbers has it
KINDS = {"greedy": (False, 100), "diou_b1.0": (True, 100), "diou_b1.0_nolimit": (True, 3000)}


class Run(NamedTuple):
    """A model's numbers, the original's and ours.

    Attributes:
      model: the model's name.
      golden: the original's numbers by name.
      variables: ours, with the original's weights.
      found: our numbers by name.
    """

    model: str
    golden: dict[str, np.ndarray]
    variables: dict
    found: dict[str, Any]

    @property
    def score(self) -> float:
        """The largest deviation of scores that is allowed."""
        return GROUP_NORM_SCORE if self.model.endswith("gn") else SCORE

    @property
    def box(self) -> float:
        """The largest deviation of boxes that is allowed, pixels."""
        return GROUP_NORM_BOX if self.model.endswith("gn") else BOX


@pytest.fixture(scope="module", params=MODELS)
def run(request):
    golden = original_models.load(f"model_{request.param}.npz")
    detector = build.detector(original_models.configs()[request.param], 81)
    variables = original_models.variables(request.param, detector.network)
    batch = original_models.packed(golden)

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
            capture_intermediates=lambda module, _: module.path[1:2] in ((), ("conv1",), ("res3_0",)),
        )
        inside = state["intermediates"]["backbone"]
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
        head = detector.heads[0]
        pooled = detector.pool(pyramid, stored_rois, rules=head.pooling, padded_size=padded_size)
        (scores, box_deltas), state = network.apply(
            variables,
            pooled,
            head.name,
            method="head",
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name in ("fc", "fc2"),
        )
        (hidden,) = (
            state["intermediates"]["box_head"][name]
            for name in ("fc", "fc2")
            if name in variables["params"]["box_head"]
        )
        found = {
            "images": images,
            "pyramid": list(pyramid.values()),
            "inside": inside,
            "logits": logits,
            "deltas": deltas,
            "levels": levels,
            "hidden": jax.nn.relu(hidden["__call__"][0]),
            "scores": jax.nn.softmax(scores),
            "box_deltas": box_deltas,
        }
        stored = Proposals(stored_rois, jnp.ones(stored_rois.shape[:2]), jnp.ones(stored_rois.shape[:2], bool))
        own = propose((logits, deltas), anchors, **options)
        own_scores, own_deltas = detector.runner(head, variables, pyramid, padded_size=padded_size)(own.boxes)
        for name, (diou, limit) in KINDS.items():
            rules = dataclasses.replace(head.detection, diou_nms=diou, detections_per_im=limit)
            select = dataclasses.replace(head, detection=rules).select
            for rois, outputs, source in (
                (stored, (jax.nn.softmax(scores), box_deltas), "stored"),
                (own, (jax.nn.softmax(own_scores), own_deltas), "own"),
            ):
                found[f"{name}_{source}"] = select(outputs, rois, batch, thresholds=rules.thresholds)
        if detector.heads[1:]:
            found["masks"], found["upsampled"] = masks_of(detector, variables, batch, pyramid=pyramid, golden=golden)
        return found

    found = jax.tree.map(np.asarray, forward(variables, batch, golden["rois"][None, :, 1:]))
    return Run(request.param, golden, variables, found)


def masks_of(detector, variables, batch, *, pyramid, golden):
    """The masks of the stored detections, and the output of the upsampling for the first two."""
    head, seen = detector.heads[1], []

    def run(rois, labels):
        pooled = detector.pool(pyramid, rois, rules=head.pooling, padded_size=batch.padded_size)
        logits, state = detector.network.apply(
            variables,
            pooled,
            head.name,
            labels,
            method="head",
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "upsample",
        )
        seen.append(state["intermediates"]["mask_head"]["upsample"]["__call__"][0])
        return logits

    stored = original_models.detections(golden["dets_diou_b1.0"])
    masks = head.detect(run, stored, batch, thresholds=detector.thresholds).masks
    return masks, seen[0][:2]


@pytest.mark.slow
def test_stages_and_pyramid(run, record_property):
    inside = run.found["inside"]
    stem = max_pool(jnp.asarray(inside["conv1"]["__call__"][0]))
    stages = [stem, *inside["__call__"][0].values()]
    ours = {f"c{number}": stage for number, stage in enumerate(stages, start=1)}
    ours |= {f"fpn_p{level}": level_map for level, level_map in zip(LEVELS, run.found["pyramid"], strict=True)}
    deviations = {}
    for name, values in ours.items():
        theirs, some = original_models.channels(run.golden, name)
        deviations[name] = relative(np.asarray(values)[..., some], theirs)
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(deviations.values()) < MAP


@pytest.mark.slow
def test_rpn_outputs_and_rois(run, record_property):
    golden, deviations = run.golden, {}
    for level, logits, deltas, found in zip(
        LEVELS, run.found["logits"], run.found["deltas"], run.found["levels"], strict=True
    ):
        theirs = golden[f"rpn_cls_logits_fpn{level}"].transpose(0, 2, 3, 1).reshape(1, -1)
        deviations[f"probability_{level}"] = largest(jax.nn.sigmoid(logits), jax.nn.sigmoid(theirs))
        deviations[f"logits_relative_{level}"] = relative(logits, theirs)
        theirs = golden[f"rpn_bbox_pred_fpn{level}"].transpose(0, 2, 3, 1).reshape(1, -1, 4)
        deviations[f"deltas_relative_{level}"] = relative(deltas, theirs)
        ours = found.boxes[0][found.valid[0]]
        theirs = golden[f"rpn_rois_fpn{level}"][:, 1:]
        partner = pair(ours, theirs, within=ROI)
        deviations[f"pixels_{level}"] = largest(ours, theirs[partner])
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(value for name, value in deviations.items() if name.startswith("probability")) < run.score
    assert max(value for name, value in deviations.items() if "relative" in name) < MAP


@pytest.mark.slow
def test_the_box_head_on_the_stored_rois(run, record_property):
    golden, found = run.golden, run.found
    deltas = found["box_deltas"][0].reshape(len(golden["rois"]), -1)
    deviations = {
        "hidden_relative": relative(found["hidden"][0, :, ::8], golden["box_feat_chstride8"]),
        "deltas_relative": relative(deltas[:, ::3], golden["bbox_pred_colstride3"]),
    }
    score = largest(found["scores"][0], golden["cls_score"])
    for name, deviation in (deviations | {"score": score}).items():
        record_property(name, deviation)
    assert max(deviations.values()) < MAP
    assert score < run.score


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_detections_of_the_stored_rois(run, record_property, name):
    """All of them; where two scores are equal but for rounding, either box may suppress the other.

    How near they are depends on the processor, 2.4e-6 on one without AVX-512, but they are nearer than two correct
    implementations (`run.score`).
    """
    found, theirs = run.found[f"{name}_stored"], run.golden[f"dets_{name}"]
    found = jax.tree.map(lambda x: x[0][found.valid[0]], found)
    assert len(found.scores) == len(theirs)
    apart = np.abs(np.column_stack([found.classes * 1000.0, found.boxes])[:, None] - theirs[:, :5] * [1000, 1, 1, 1, 1])
    partner = apart.max(2).argmin(1)
    alike = apart.max(2).min(1) < run.box
    assert len({*partner[alike]}) == alike.sum()
    assert (~alike).sum() <= len(theirs) // 1000
    np.testing.assert_array_equal(found.classes[~alike], theirs[partner[~alike], 0])
    deviations = {
        "pixels": largest(found.boxes[alike], theirs[partner[alike], 1:5]),
        "score": largest(found.scores, theirs[partner, 5]),
        "otherwise": int((~alike).sum()),
    }
    for what, deviation in deviations.items():
        record_property(what, deviation)
    assert deviations["score"] < run.score


@pytest.mark.slow
@pytest.mark.parametrize("name", ["greedy", "diou_b1.0"])
def test_detections_of_an_images_bytes(run, record_property, name):
    """On RoIs of our own.

    RoIs deviate by rounding, and scores follow. In float64 ours are the nearer ones: the RPN's logits of the model with
    GroupNorm deviate by 3e-5 from the exact ones, the original's by 1.4e-4.
    """
    found, theirs = run.found[f"{name}_own"], run.golden[f"dets_{name}"]
    found = jax.tree.map(lambda x: x[0][found.valid[0]], found)
    partner = pair_of_a_class(np.column_stack([found.classes, found.boxes]), theirs[:, :5], within=WHOLE_BOX)
    deviations = largest(found.boxes, theirs[partner, 1:5]), largest(found.scores, theirs[partner, 5])
    record_property("pixels", deviations[0])
    record_property("score", deviations[1])
    assert deviations[1] < WHOLE_SCORE


@pytest.mark.slow
@pytest.mark.parametrize("run", ["mask_r50fpn_gn"], indirect=True)
def test_masks_with_group_norm(run, record_property):
    """At the tolerance of scores: the original's are 2.9e-5 away from those in float64, ours 7e-6."""
    golden, found = run.golden, run.found
    theirs, some = original_models.channels(golden, "mask_feat_first2")
    deviations = {
        "upsampled_relative": relative(found["upsampled"][..., some], theirs),
        "probability": largest(found["masks"][0][golden["mask_sel"]], golden["mask_prob_own_class_sel"]),
    }
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert deviations["upsampled_relative"] < MAP
    assert deviations["probability"] < GROUP_NORM_SCORE
    # The probability of a pixel that only one of both pastes is as near to 0.5.
    rows, (height, width) = golden["dets_diou_b1.0"], map(int, original_models.packed(golden).original_size[0])
    theirs = [{"size": [height, width], "counts": str(counts)} for counts in golden["segm_rle_counts"]]
    ours, more, fewer, theirs = (
        decode(rles, height=height, width=width)
        for rles in (
            *(original_models.pasted(found["masks"][0], golden, rows, 0.5 + by) for by in (0, -run.score, run.score)),
            theirs,
        )
    )
    record_property("pixels", int((ours != theirs).sum()))
    assert not (fewer & ~theirs).any()
    assert not (theirs & ~more).any()
    assert (ours != theirs).sum() < 10


@pytest.mark.slow
@pytest.mark.parametrize("run", ["mask_r50fpn_gn"], indirect=True)
def test_group_norm_of_the_stem(run, record_property):
    """Two channels a group."""
    golden, found = run.golden, run.found
    kernel = run.variables["params"]["backbone"]["conv1"]["kernel"]
    before = np.asarray(convolve(found["images"], kernel, stride=2, groups=1))
    groups = before.reshape(1, -1, 32, 2).astype(np.float64)
    after = found["inside"]["conv1"]["norm"]["__call__"][0]
    deviations = {
        "in": relative(before[:, :4], golden["stem_gn_in_rows0to3"].transpose(0, 2, 3, 1)),
        "mean": relative(groups.mean((1, 3)), golden["stem_gn_group_mean_f64"]),
        "variance": relative(groups.var((1, 3)), golden["stem_gn_group_var_f64"]),
        "out": relative(after[:, :4], golden["stem_gn_out_rows0to3"].transpose(0, 2, 3, 1)),
    }
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(deviations.values()) < MAP


@pytest.mark.slow
@pytest.mark.parametrize("run", ["x101_32x8d_fpn"], indirect=True)
def test_a_block_with_grouped_convolutions(run, record_property):
    """The original's file has the outputs of its convolutions; ours are a ReLU of them."""
    golden, found = run.golden, run.found["inside"]["res3_0"]
    frozen = run.variables["affine"]["backbone"]["res3_0"]
    shortcut = found["shortcut"]["__call__"][0]
    deviations = {}
    for name in ("conv1", "conv2", "conv3"):
        theirs, some = original_models.channels(golden, f"res3.0.{name}")
        theirs = theirs * frozen[name]["scale"][some] + frozen[name]["bias"][some]
        theirs = np.maximum(theirs + (shortcut[..., some] if name == "conv3" else 0), 0)
        deviations[name] = relative(found[name]["__call__"][0][..., some], theirs)
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(deviations.values()) < MAP


@pytest.mark.parametrize("case", ["a", "b"])
def test_group_norm_and_its_gradients(case, record_property):
    """By itself."""
    deviations = normalised(original_models.load("group_norm.npz"), case)
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert deviations["y"] < 1e-6
    assert max(deviations.values()) < 1e-6


def test_group_norm_of_constant_groups():
    """The division by the root of epsilon enlarges rounding: the original is as far from the exact result as we are."""
    golden = original_models.load("group_norm.npz")
    x, dy = (golden[f"gn/c_const/{name}"].astype(np.float64) for name in ("x", "dy"))
    groups = x.reshape(len(x), 32, -1)
    centred = groups - groups.mean(-1, keepdims=True)
    exact = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).reshape(x.shape)
    exact = {
        "y": exact * golden["gn/c_const/weight"][:, None, None] + golden["gn/c_const/bias"][:, None, None],
        "dw": (exact * dy).sum((0, 2, 3)),
    }
    assert groups.var(-1).min() == 0
    ours = normalise(golden, "c_const")
    for name, value in exact.items():
        theirs = np.abs(golden[f"gn/c_const/{name}"] - value).max()
        assert np.abs(ours[name] - value).max() < 2 * theirs
    assert largest(ours["dx"], golden["gn/c_const/dx"]) < 1e-6 * np.abs(golden["gn/c_const/dx"]).max()


def normalise(golden, case):
    """A GroupNorm's result and gradients, channels first."""
    x, weight, bias, dy = (jnp.asarray(golden[f"gn/{case}/{name}"]) for name in ("x", "weight", "bias", "dy"))

    def norm(x, weight, bias):
        y = GroupNorm().apply({"params": {"scale": weight, "bias": bias}}, x.transpose(0, 2, 3, 1))
        return y.transpose(0, 3, 1, 2)

    y, pull = jax.vjp(norm, x, weight, bias)
    return {name: np.asarray(value) for name, value in zip(("y", "dx", "dw", "db"), (y, *pull(dy)), strict=True)}


def normalised(golden, case):
    """The relative deviations of a GroupNorm's result and gradients."""
    return {name: relative(value, golden[f"gn/{case}/{name}"]) for name, value in normalise(golden, case).items()}
