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
import views
from original import LEVELS, MAP, largest, pair, pair_of_a_class, relative
from original_models import BOX, GROUP_NORM_BOX, GROUP_NORM_SCORE, SCORE

from diou_jax.data import packing
from diou_jax.data.buckets import Bucket
from diou_jax.detection import preprocess
from diou_jax.detection.proposals import propose
from diou_jax.models.resnet import max_pool
from diou_jax.options import build
from diou_jax.structures import Anchors

MODELS = ("r101fpn", "x101_32x8d_fpn", "mask_r50fpn_gn")


class Run(NamedTuple):
    """A model's numbers, the original's and ours.

    Attributes:
      model: the model's name.
      golden: the original's numbers by name.
      detector: ours, with the model's options.
      variables: ours, with the original's weights.
      batch: the image.
      found: our numbers by name.
    """

    model: str
    golden: dict[str, np.ndarray]
    detector: Any
    variables: dict
    batch: Any
    found: dict[str, Any]

    @property
    def score(self) -> float:
        """The largest deviation of scores that is allowed."""
        return GROUP_NORM_SCORE if self.model.endswith("gn") else SCORE

    @property
    def box(self) -> float:
        """The largest deviation of boxes that is allowed, pixels."""
        return GROUP_NORM_BOX if self.model.endswith("gn") else BOX

    def theirs(self, name: str) -> tuple[np.ndarray, Any]:
        """A map of the original, channels last, and which of our channels it has."""
        found = next(key for key in self.golden if key.startswith(f"{name}_chstride"))
        return self.golden[found].transpose(0, 2, 3, 1), np.s_[..., :: int(found.rpartition("chstride")[2])]


@pytest.fixture(scope="module", params=MODELS)
def run(request):
    golden = original_models.load(f"model_{request.param}.npz")
    detector = build.detector(original_models.configs()[request.param], 81)
    variables = original_models.variables(request.param, detector.network)
    pixels = original_models.photo(golden)
    height, width = map(int, golden["im_info"][0, :2])
    bucket = Bucket(height, width, *pixels.shape[:2])
    target, max_size = map(int, golden["test_scale"])
    example = packing.example(pixels, views.resized(pixels, target=target, max_size=max_size), bucket)
    batch = jax.tree.map(jnp.asarray, packing.pack([example], bucket))

    @jax.jit
    def forward(variables, batch, stored_rois):
        network, padded_size = detector.network, batch.padded_size
        images = preprocess.normalise(batch, detector.pixel_means)
        pyramid, state = network.apply(
            variables,
            images,
            padded_size,
            method="pyramid",
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: (
                module.name in ("backbone", "conv1") or {"res3_0", "conv1"} & {*module.path}
            ),
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
        (hidden,) = jax.tree.leaves(state["intermediates"]["box_head"])[-1:] or [None]
        found = {
            "images": images,
            "pyramid": list(pyramid.values()),
            "inside": inside,
            "logits": logits,
            "deltas": deltas,
            "levels": levels,
            "proposals": propose((logits, deltas), anchors, **options),
            "hidden": jax.nn.relu(hidden),
            "scores": jax.nn.softmax(scores),
            "box_deltas": box_deltas,
        }
        for name, diou, limit in (("greedy", False, 100), ("diou_b1.0", True, 100), ("diou_b1.0_nolimit", True, 3000)):
            rules = dataclasses.replace(head.detection, diou_nms=diou, detections_per_im=limit)
            heads = dataclasses.replace(head, detection=rules), *(detector.heads[1:] if limit == 100 and diou else ())
            found[f"dets_{name}"] = dataclasses.replace(detector, heads=heads).detect(variables, batch)
        return found

    found = jax.tree.map(np.asarray, forward(variables, batch, golden["rois"][None, :, 1:]))
    return Run(request.param, golden, detector, variables, batch, found)


@pytest.mark.slow
def test_stages_and_pyramid(run, record_property):
    inside = run.found["inside"]
    stem = max_pool(jnp.asarray(inside["conv1"]["__call__"][0]))
    stages = [stem, *inside["__call__"][0].values()]
    ours = {f"c{number}": stage for number, stage in enumerate(stages, start=1)}
    ours |= {f"fpn_p{level}": level_map for level, level_map in zip(LEVELS, run.found["pyramid"], strict=True)}
    deviations = {}
    for name, values in ours.items():
        theirs, channels = run.theirs(name)
        deviations[name] = relative(np.asarray(values)[channels], theirs)
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
        assert relative(logits, theirs) < 2 * MAP
        theirs = golden[f"rpn_bbox_pred_fpn{level}"].transpose(0, 2, 3, 1).reshape(1, -1, 4)
        deviations[f"deltas_relative_{level}"] = relative(deltas, theirs)
        ours = found.boxes[0][found.valid[0]]
        theirs = golden[f"rpn_rois_fpn{level}"][:, 1:]
        partner = pair(ours, theirs, within=10 * run.box)
        deviations[f"pixels_{level}"] = largest(ours, theirs[partner])
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(value for name, value in deviations.items() if name.startswith("probability")) < run.score
    assert max(value for name, value in deviations.items() if name.startswith("deltas")) < MAP


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
@pytest.mark.parametrize("name", ["greedy", "diou_b1.0", "diou_b1.0_nolimit"])
def test_detections(run, record_property, name):
    found, theirs = run.found[f"dets_{name}"], run.golden[f"dets_{name}"]
    found = jax.tree.map(lambda x: x[0][found.valid[0]], found)
    partner = pair_of_a_class(np.column_stack([found.classes, found.boxes]), theirs[:, :5], within=run.box)
    deviations = largest(found.boxes, theirs[partner, 1:5]), largest(found.scores, theirs[partner, 5])
    record_property("pixels", deviations[0])
    record_property("score", deviations[1])
    assert deviations[1] < run.score
