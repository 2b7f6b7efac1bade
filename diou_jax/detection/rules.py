"""The detector's numbers, grouped by the function that takes them; they come from the original's options."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np


class Thresholds(NamedTuple):
    """Thresholds of detections; as arrays they are inputs of a program and can change without a new compilation.

    Attributes:
      score: detections have higher scores, TEST.SCORE_THRESH; (K - 1, 1) if each class has a threshold of its own.
      nms: overlap at which a detection suppresses another of its class, TEST.NMS.
    """

    score: float | np.floating | np.ndarray | jax.Array
    nms: float | np.floating | jax.Array


@dataclasses.dataclass(frozen=True)
class BoxRules:
    """The differences between Detectron's boxes and torchvision's.

    Attributes:
      edges: whether boxes are scaled, clipped and pooled by their edges instead of their corner pixels.
      clip_to_padding: whether proposals in a test may reach into the image's padding.
      anchors: "detectron" or "torchvision", see `diou_jax.detection.anchors`.
    """

    edges: bool = False
    clip_to_padding: bool = True
    anchors: str = "detectron"


@dataclasses.dataclass(frozen=True)
class ProposalRules:
    """How RPN outputs become RoIs: the original's TRAIN.RPN_* or TEST.RPN_*."""

    pre_nms_top_n: int
    post_nms_top_n: int
    nms_thresh: float
    min_size: float
    collect_top_n: int


@dataclasses.dataclass(frozen=True)
class AnchorRules:
    """Which anchors the RPN learns from: the original's TRAIN.RPN_*."""

    batch_size_per_im: int
    fg_fraction: float
    positive_overlap: float
    negative_overlap: float
    straddle_thresh: float


@dataclasses.dataclass(frozen=True)
class RoiRules:
    """Which RoIs the heads learn from: the original's TRAIN.*."""

    batch_size_per_im: int
    fg_fraction: float
    fg_thresh: float
    bg_thresh_hi: float
    bg_thresh_lo: float
    crowd_filter_thresh: float


@dataclasses.dataclass(frozen=True)
class RpnLossRules:
    """The RPN's box loss, its weight, and the anchors per image that normalise the objectness loss.

    In the original these are MODEL.RPN_LOSS_TYPE, the weight of that loss, and TRAIN.RPN_BATCH_SIZE_PER_IM.
    """

    box: str
    box_weight: float
    batch_size_per_im: int


@dataclasses.dataclass(frozen=True)
class SoftNmsRules:
    """How overlapping boxes lose score: the original's TEST.SOFT_NMS.

    Attributes:
      method: "linear", "gaussian" or "hard", see `diou_jax.detection.soft_nms`.
      sigma: the width of the method "gaussian".
      beta1: exponent of the distance penalty, 0.8 in the original; infinity: no penalty, as in the paper.
    """

    method: str
    sigma: float = 0.5
    beta1: float = 0.8


@dataclasses.dataclass(frozen=True)
class BoxVoteRules:
    """How boxes vote on detections: the original's TEST.BBOX_VOTE.

    Attributes:
      vote_th: IoU from which on a box votes.
      scoring_method: "ID" keeps the score; `diou_jax.detection.box_vote` lists the others.
      scoring_method_beta: exponent of some methods, positive; the original always takes 1.
    """

    vote_th: float
    scoring_method: str
    scoring_method_beta: float = 1.0


@dataclasses.dataclass(frozen=True)
class DetectionRules:
    """How the box head's outputs become detections: the original's TEST.*; None switches soft-NMS or voting off."""

    thresholds: Thresholds
    diou_nms: bool
    beta1: float
    detections_per_im: int
    soft_nms: SoftNmsRules | None = None
    bbox_vote: BoxVoteRules | None = None

    def hard_nms(self, *, diou: bool) -> "DetectionRules":
        """Greedy NMS or DIoU-NMS with these thresholds, without soft-NMS and voting."""
        return dataclasses.replace(self, diou_nms=diou, soft_nms=None, bbox_vote=None)


@dataclasses.dataclass(frozen=True)
class PoolingRules:
    """How RoIs are pooled: the original's FAST_RCNN.ROI_XFORM_* and FPN.ROI_CANONICAL_*.

    Attributes:
      resolution: bins along each side of a pooled RoI.
      sampling_ratio: samples along each side of a bin.
      canonical_scale: side in pixels of a RoI that belongs to `canonical_level`.
      canonical_level: base-2 logarithm of that level's stride.
    """

    resolution: int
    sampling_ratio: int
    canonical_scale: float
    canonical_level: int
