"""The original's results for two images, and the comparison of ours with them.

Golden files: model_r50fpn, a detection from an image's bytes; model_train, a training step from the network's input,
which for the first image equals the result from its bytes (the second image's bytes are not stored). There are two
sets of them: for photographs, and for drawn images.
"""

import importlib.util
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from conftest import find_golden

from diou_jax.configs import ciou
from diou_jax.detection.anchor_targets import AnchorTargets
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.options import build
from diou_jax.structures import RoiSamples

LEVELS = range(2, 7)
SCORE, BOX = 1e-4, 0.02  # BOX in pixels
LOSS, GRADIENT = 1e-5, 1e-3  # relative
MAP = 2e-5  # of the largest value


def load(name: str, golden_set: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file of a set."""
    with np.load(find_golden(name, golden_set)) as file:
        return dict(file)


def resizing(detection: dict[str, np.ndarray]) -> dict[str, int]:
    """The limits by which the image of a detection was resized."""
    shorter = min(detection["image_u8_bgr"].shape[:2])
    return {
        "target": round(float(detection["im_scale_f64"][0]) * shorter),
        "max_size": max(detection["data"].shape[2:]),
    }


def weights() -> dict[str, np.ndarray]:
    """The original's tensors by its names, which all files were made with."""
    spec = importlib.util.spec_from_file_location("make_weights", find_golden("make_weights.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.weights("public")


def trainer() -> FasterRCNN:
    """With the rules that the stored step was made with."""
    config = ciou.get_config()
    config.train.rpn_pre_nms_top_n, config.train.rpn_post_nms_top_n = 400, 500
    config.train.batch_size_per_im = 64
    return build.detector(config, 81)


class StoredRois(NamedTuple):
    """RoIs in pixels of the network's input, and their targets."""

    rois: np.ndarray
    labels: np.ndarray
    deltas: np.ndarray
    valid: np.ndarray

    @property
    def samples(self) -> RoiSamples:
        """As the heads are given them; which object each one matches is not stored."""
        return RoiSamples(
            *map(jnp.asarray, (self.rois, self.rois, self.labels, np.zeros_like(self.labels), self.valid))
        )


def sampled_rois(step: dict[str, np.ndarray]) -> StoredRois:
    """The stored RoIs, in pixels of the network's input, and their targets: 64 of each photo."""
    np.testing.assert_array_equal(step["rois"][:, 0], np.repeat([0, 1], 64))
    labels = step["labels_int32"]
    deltas = np.take_along_axis(step["bbox_targets"], 4 * labels[:, None] + np.arange(4), 1)
    shape = (2, 64)
    return StoredRois(
        rois=step["rois"][:, 1:].reshape(*shape, 4),
        labels=labels.reshape(shape),
        deltas=deltas.reshape(*shape, 4),
        valid=np.ones(shape, bool),
    )


def labelled_anchors(step: dict[str, np.ndarray]) -> AnchorTargets:
    """The stored RPN targets of the anchors that exist, in our order: the original's channels follow the cells."""
    labels, deltas = [], []
    for level in LEVELS:
        height, width = (-(-side // 2**level) for side in step["data"].shape[2:])
        crop = np.s_[:, :, :height, :width]
        labels.append(step[f"rpn_labels_int32_wide_fpn{level}"][crop].transpose(0, 2, 3, 1).reshape(2, -1))
        wide = step[f"rpn_bbox_targets_wide_fpn{level}"][crop]
        deltas.append(wide.transpose(0, 2, 3, 1).reshape(2, -1, 4))
    return AnchorTargets(np.concatenate(labels, 1), np.concatenate(deltas, 1))


def largest(ours, theirs) -> float:
    """The largest difference of two arrays of one shape; ours must be finite."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max(initial=0.0))


def relative(ours, theirs) -> float:
    """The largest difference over the largest value."""
    return largest(ours, theirs) / float(np.abs(theirs).max())


def pair(ours, theirs, *, within: float) -> np.ndarray:
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


def pair_of_a_class(ours, theirs, *, within: float) -> np.ndarray:
    """`pair` of rows (M, 5), class and box, where partners must be of one class: it is a dimension of its own."""
    np.testing.assert_array_equal(np.sort(ours[:, 0]), np.sort(theirs[:, 0]))
    apart = np.array([1000, 1, 1, 1, 1])
    return pair(ours * apart, theirs * apart, within=within)
