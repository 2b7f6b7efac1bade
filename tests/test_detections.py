"""Golden files: postproc, and the final detections of model_r50fpn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.detector.detections import detect, suppress

VARIANTS = {"greedy": (False, 1.0), "diou_b1.0": (True, 1.0), "diou_b0.9": (True, 0.9)}


@functools.partial(jax.jit, static_argnames=("nms_thresh", "diou_nms", "beta1", "detections_per_im"))
def jitted_suppress(boxes, scores, **options):
    return suppress(boxes, scores, scores > 0.05, **options)


def from_original(scores, boxes, *, variant, limit, nms_thresh=0.5):
    """The original's (R, K) scores and (R, 4K) boxes through `suppress`, as rows of class, box, score."""
    count, classes = scores.shape
    boxes = boxes.reshape(count, classes, 4).transpose(1, 0, 2)[None, 1:]
    diou, beta = VARIANTS[variant]
    found = jitted_suppress(
        boxes, scores.T[None, 1:], nms_thresh=nms_thresh, diou_nms=diou, beta1=beta, detections_per_im=limit
    )
    return rows(found)


def rows(found, image=0):
    valid = np.asarray(found.valid[image])
    return np.column_stack([found.classes[image], found.boxes[image], found.scores[image]])[valid]


def ordered(rows):
    return rows[np.lexsort((*np.round(rows[:, 1:5].T, 2), -rows[:, 5], rows[:, 0]))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_detections_equal_the_original(golden, variant):
    data = golden("postproc.npz")
    ours = from_original(data["a/scores"], data["a/boxes"], variant=variant, limit=100)
    np.testing.assert_array_equal(ordered(ours), ordered(data[f"a/dets_{variant}"]))
    assert (np.diff(ours[:, 5]) <= 0).all(), "best first"


def test_another_limit(golden):
    data = golden("postproc.npz")
    ours = from_original(data["a/scores"], data["a/boxes"], variant="greedy", limit=20)
    np.testing.assert_array_equal(ordered(ours), ordered(data["a/dets_greedy_lim20"]))


@pytest.mark.parametrize(
    ("variant", "limit", "name"),
    [("greedy", 100, "greedy"), ("diou_b1.0", 100, "diou_b1.0"), ("greedy", 20, "greedy_lim20")],
)
def test_ties_at_the_limit_are_cut_by_class_then_roi(golden, variant, limit, name):
    """The original keeps every tie, 203 detections instead of 100; ours are its first ones in class and RoI order."""
    data = golden("postproc.npz")
    theirs = data[f"b_ties/dets_{name}"]
    ours = from_original(data["b_ties/scores"], data["b_ties/boxes"], variant=variant, limit=limit)
    assert len(theirs) > limit == len(ours)
    # The original lists a class's detections in RoI order, so a stable sort by score is the rule.
    wanted = theirs[np.argsort(-theirs[:, 5], kind="stable")][:limit]
    np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize(
    ("variant", "name", "limit", "nms_thresh"),
    [
        *((variant, variant, 100, 0.5) for variant in VARIANTS),
        *((variant, f"{variant}_nolimit", 2000, 0.5) for variant in VARIANTS),
        *((variant, f"{variant}_t0.3_lim300", 300, 0.3) for variant in VARIANTS),
    ],
)
def test_detections_in_a_photo_equal_the_original(golden, variant, name, limit, nms_thresh):
    data = golden("model_r50fpn.npz")
    theirs = ordered(data[f"dets_{name}"])
    ours = ordered(
        from_original(data["scores"], data["pred_boxes"], variant=variant, limit=limit, nms_thresh=nms_thresh)
    )
    assert len(ours) == len(theirs)
    np.testing.assert_array_equal(ours, theirs)


def test_decoding_equals_the_original(golden):
    data = golden("model_r50fpn.npz")
    info = data["image_u8_bgr"].shape[:2]
    found = jax.jit(
        functools.partial(
            detect,
            reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=0.05,
            nms_thresh=0.5,
            diou_nms=True,
            beta1=1.0,
            detections_per_im=100,
        )
    )(
        data["rois"][None, :, 1:],
        jnp.ones((1, 1000), bool),
        data["scores"][None],
        data["bbox_pred"].reshape(1, 1000, -1, 4),
        data["im_scale_f64"].astype(np.float32),
        jnp.asarray([info]),
    )
    ours, theirs = ordered(rows(found)), ordered(data["dets_diou_b1.0"])
    np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
    np.testing.assert_allclose(ours[:, 1:5], theirs[:, 1:5], atol=2e-3)
    np.testing.assert_allclose(ours[:, 5], theirs[:, 5], atol=1e-6)


def test_class_agnostic_boxes_are_shared_and_what_is_not_a_number_is_dropped():
    rois = np.array([[[0, 0, 9, 9], [50, 50, 69, 79], [20, 0, 39, 9]]], np.float32)
    scores = np.array([[[0.1, 0.5, 0.4], [0.1, 0.2, 0.7], [0.0, np.nan, 1.0]]], np.float32)
    deltas = np.zeros((1, 3, 1, 4), np.float32)
    deltas[0, 2, 0, 0] = np.nan
    found = detect(
        jnp.asarray(rois),
        jnp.ones((1, 3), bool),
        jnp.asarray(scores),
        jnp.asarray(deltas),
        jnp.ones(1),
        jnp.array([[100, 100]]),
        reg_weights=(1, 1, 1, 1),
        score_thresh=0.05,
        nms_thresh=0.5,
        diou_nms=False,
        beta1=1.0,
        detections_per_im=10,
    )
    np.testing.assert_array_equal(
        rows(found),
        np.array(
            [[2, *rois[0, 1], 0.7], [1, *rois[0, 0], 0.5], [2, *rois[0, 0], 0.4], [1, *rois[0, 1], 0.2]], np.float32
        ),
    )
    assert not found.valid[0, 4:].any() and (found.boxes[0, 4:] == 0).all()
