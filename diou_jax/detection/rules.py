"""The numbers that steer the detector, one group for each function that takes them; the original's options."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np


class Thresholds(NamedTuple):
    """What separates detections from the rest; arrays may stand in for the numbers, at no cost of compilation.

    Attributes:
      score: only higher scores count, TEST.SCORE_THRESH.
      nms: overlap at which a detection suppresses another of its class, TEST.NMS.
    """

    score: float | np.floating | jax.Array
    nms: float | np.floating | jax.Array


@dataclasses.dataclass(frozen=True)
class BoxRules:
    """What differs between Detectron's boxes and torchvision's.

    Attributes:
      edges: scale and pool boxes by their edges instead of their corner pixels.
      clip_to_padding: at test, proposals may reach into the image's padding.
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
    """Which RoIs the box head learns from: the original's TRAIN.*."""

    batch_size_per_im: int
    fg_fraction: float
    fg_thresh: float
    bg_thresh_hi: float
    bg_thresh_lo: float
    crowd_filter_thresh: float


@dataclasses.dataclass(frozen=True)
class RpnLossRules:
    """The RPN's box loss, its weight and the normaliser: the original's MODEL.RPN_LOSS_TYPE and its kin."""

    box: str
    box_weight: float
    batch_size_per_im: int


@dataclasses.dataclass(frozen=True)
class SoftNmsRules:
    """How overlapping boxes lose score: the original's TEST.SOFT_NMS."""

    method: str
    sigma: float
    beta1: float


@dataclasses.dataclass(frozen=True)
class BoxVoteRules:
    """How boxes vote on the detections: the original's TEST.BBOX_VOTE."""

    vote_th: float
    scoring_method: str
    scoring_method_beta: float


@dataclasses.dataclass(frozen=True)
class DetectionRules:
    """How box head outputs become detections: the original's TEST.*; without soft-NMS and votes where they are None."""

    thresholds: Thresholds
    diou_nms: bool
    beta1: float
    detections_per_im: int
    soft_nms: SoftNmsRules | None = None
    bbox_vote: BoxVoteRules | None = None


@dataclasses.dataclass(frozen=True)
class PoolingRules:
    """How RoIs are pooled: the original's FAST_RCNN.ROI_XFORM_* and FPN.ROI_CANONICAL_*.

    Attributes:
      resolution: cells of a pooled RoI, along each side.
      sampling_ratio: samples of a cell, along each side.
      canonical_scale: side in pixels of a RoI that belongs to `canonical_level`.
      canonical_level: the logarithm to the base 2 of that level's stride.
    """

    resolution: int
    sampling_ratio: int
    canonical_scale: float
    canonical_level: int
