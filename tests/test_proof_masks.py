"""The proof of the mask head: with the original's weights and RoIs it gives the original's numbers, in float32.

Every test records the largest deviation that it met. Golden files: mask_head_forward, from drawn feature maps;
model_mask_r50fpn, from an image's bytes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import original_models
import pytest
from fast_compilation import as_a_run
from original import MAP, largest, pair_of_a_class, relative
from original_models import BOX, MASK, SCORE

from diou_jax.configs import mask
from diou_jax.kernels.roi_align import roi_levels
from diou_jax.models.folding import fold
from diou_jax.options import build
from diou_jax.weights.original import fit

MASK_OF_OUR_BOX = 1e-4
# From an image's bytes the backbone's rounding, which is each processor's own, adds to that of the head.
MASK_OF_AN_IMAGE = 1e-5
POOLED = 1e-6  # of the largest value: RoIAlign takes samples where the original does, to the bit


@pytest.fixture(scope="module")
def detector():
    return build.detector(mask.get_config(), 81)


def head_variables(detector):
    """The variables of the mask head alone."""
    values, _ = fit(original_models.weights("mask_r50fpn", "Mask_"), detector.network.variable_shapes(), only="Mask_")
    params = {path.removeprefix("params/mask_head/"): jnp.asarray(value) for path, value in values.items()}
    tree: dict = {}
    for path, value in params.items():
        module, leaf = path.split("/")
        tree.setdefault(module, {})[leaf] = value
    return tree


def run_head(head, params, pooled, *labels):
    """Logits of pooled RoIs (R, H, W, C), the outputs of the convolutions and of the upsampling."""
    logits, state = head.module().apply(
        {"params": params},
        pooled,
        *labels,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name in ("conv4", "upsample"),
    )
    found = state["intermediates"]
    return logits, found["conv4"]["__call__"][0], found["upsample"]["__call__"][0]


@pytest.fixture(scope="module")
def drawn(detector):
    """The head on drawn feature maps of two images, and the original's numbers."""
    golden, head, params = original_models.load("mask_head_forward.npz"), detector.heads[1], head_variables(detector)
    features = original_models.maker().features
    maps = {
        2**level: jnp.asarray(
            features(0, f"maskhead_p{level}", (2, 256, 512 >> level, 640 >> level)).transpose(0, 2, 3, 1)
        )
        for level in range(2, 6)
    }

    @as_a_run
    def forward(params, maps, rois):
        pooled = detector.pool(maps, rois, rules=head.pooling, padded_size=None)
        return pooled, run_head(head, params, pooled.reshape(-1, *pooled.shape[2:]))

    # Every RoI is pooled from both images; the file has one of them.
    images = golden["mask_rois"][:, 0].astype(int)
    rois = np.broadcast_to(golden["mask_rois"][:, 1:], (2, 10, 4))
    pooled, outputs = forward(params, maps, rois)
    outputs = [np.reshape(np.asarray(x), (2, 10, *x.shape[1:]))[images, range(10)] for x in outputs]
    return golden, params, np.asarray(pooled)[images, range(10)], outputs


def test_the_head_on_drawn_maps(drawn, record_property):
    golden, _, pooled, (logits, convolved, upsampled) = drawn
    assert set(np.asarray(roi_levels(golden["mask_rois"][None, :, 1:]))[0]) == {0, 1, 2, 3}
    deviations = {"logits_relative": relative(logits[:, ::8], golden["logits_classstride8"])}
    for name, ours in (("pooled", pooled), ("fcn", convolved), ("upconv", upsampled)):
        theirs, some = original_models.channels(golden, name)
        deviations[f"{name}_relative"] = relative(ours[..., some], theirs)
    probability = largest(jax.nn.sigmoid(logits[:, ::16]), golden["prob_classstride16"])
    for name, deviation in deviations.items():
        record_property(name, deviation)
    record_property("probability", probability)
    assert max(deviations.values()) < MAP
    assert deviations["pooled_relative"] < POOLED
    assert probability < MASK


@pytest.mark.parametrize("folded", [False, True])
def test_the_mask_of_a_class_is_one_of_all_masks(drawn, detector, record_property, folded):
    """Only the wanted class's mask is computed where a class is given."""
    golden, params, pooled, (logits, *_) = drawn
    labels = jnp.arange(10) * 8  # the stored ones
    if folded:
        params = fold({"params": {"mask_head": params}}, jnp.float32, epsilon=1e-5)["params"]["mask_head"]
    ours, *_ = as_a_run(lambda params, pooled: run_head(detector.heads[1], params, pooled, labels))(params, pooled)
    theirs = golden["logits_classstride8"][range(10), range(10)]
    deviations = relative(ours, theirs), largest(jax.nn.sigmoid(ours), jax.nn.sigmoid(theirs))
    record_property("relative", deviations[0])
    record_property("probability", deviations[1])
    assert deviations[0] < MAP
    assert deviations[1] < MASK
    np.testing.assert_allclose(ours, logits[range(10), labels], atol=1e-5)


@pytest.fixture(scope="module")
def whole():
    """From an image's bytes to masks: of the stored boxes, and of ours."""
    golden = original_models.load("model_mask_r50fpn.npz")
    detector = build.detector(mask.get_config(), 81)
    variables = original_models.variables("mask_r50fpn", detector.network)
    batch, head = original_models.packed(golden), detector.heads[1]
    stored = original_models.detections(golden["dets"])

    @as_a_run
    def forward(variables, batch, stored):
        pyramid = detector.pyramid(variables, batch, batch.padded_size)
        seen = {}

        def run(rois, labels):
            pooled = detector.pool(pyramid, rois, rules=head.pooling, padded_size=batch.padded_size)
            logits, convolved, upsampled = run_head(head, variables["params"]["mask_head"], pooled[0], labels[0])
            every, *_ = run_head(head, variables["params"]["mask_head"], pooled[0, :3])
            seen.update(rois=rois[0], pooled=pooled[0, :4], convolved=convolved[:4], upsampled=upsampled[:4])
            seen["every"] = jax.nn.sigmoid(every)
            return logits[None]

        masks = head.detect(run, stored, batch, thresholds=detector.thresholds).masks[0]
        return detector.detect(variables, batch), masks, seen

    return golden, *jax.tree.map(np.asarray, forward(variables, batch, stored))


@pytest.mark.slow
def test_masks_of_the_stored_boxes_from_an_images_bytes(whole, record_property):
    golden, _, masks, seen = whole
    # The original multiplies in double precision, and then rounds.
    np.testing.assert_allclose(seen["rois"], golden["mask_rois"][:, 1:], rtol=2**-23)
    theirs = np.concatenate([np.full(len(golden[f"mask_rois_fpn{level}"]), level - 2) for level in range(2, 6)])
    np.testing.assert_array_equal(roi_levels(jnp.asarray(seen["rois"])), theirs[golden["mask_rois_idx_restore_int32"]])
    deviations = {}
    for ours, theirs in (("pooled", "pooled"), ("convolved", "fcn"), ("upsampled", "upconv")):
        wanted, some = original_models.channels(golden, f"mask_{theirs}_first4")
        deviations[f"{ours}_relative"] = relative(seen[ours][..., some], wanted)
    probabilities = {
        "of_the_class": largest(masks, golden["mask_prob_own_class"]),
        "of_every_class": largest(seen["every"][:, ::8], golden["mask_prob_first3_classstride8"]),
    }
    for name, deviation in (deviations | probabilities).items():
        record_property(name, deviation)
    assert max(deviations.values()) < MAP
    assert max(probabilities.values()) < MASK_OF_AN_IMAGE
    pasted = [rle["counts"] for rle in original_models.pasted(masks, golden, golden["dets"])]
    assert pasted == golden["segm_rle_counts"].tolist()


@pytest.mark.slow
def test_boxes_and_masks_of_an_images_bytes(whole, record_property):
    """The boxes are ours, too, 0.0005 pixels beside the original's; masks change with them by more than rounding."""
    golden, found, *_ = whole
    ours, theirs = np.column_stack([found.classes[0], found.boxes[0]]), golden["dets"]
    assert found.valid.all()
    partner = pair_of_a_class(ours, theirs[:, :5], within=BOX)
    deviations = {
        "pixels": largest(ours[:, 1:], theirs[partner, 1:5]),
        "score": largest(found.scores[0], theirs[partner, 5]),
        "probability": largest(found.masks[0], golden["mask_prob_own_class"][partner]),
    }
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert deviations["score"] < SCORE
    assert deviations["probability"] < MASK_OF_OUR_BOX
