"""Every key of the original's config: its default, and its meaning here."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from diou_jax.configs import base

# MODEL.CONV_BODY: bottlenecks in res2 to res5.
BODIES = {
    "FPN.fpn_ResNet50_conv5_body": (3, 4, 6, 3),
    "FPN.fpn_ResNet101_conv5_body": (3, 4, 23, 3),
    "FPN.fpn_ResNet152_conv5_body": (3, 8, 36, 3),
}
# MRCNN.ROI_MASK_HEAD: number of convolutions, and whether each has a GroupNorm.
MASK_HEADS = {
    "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs": (4, False),
    "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs_gn": (4, True),
    "mask_rcnn_heads.mask_rcnn_fcn_head_v1up": (2, False),
}
# The original has no batch norm that learns.
BOX_HEADS = tuple(f"fast_rcnn_heads.{name}" for name in base.BOX_HEADS if "_bn_" not in name)


@dataclasses.dataclass(frozen=True)
class Key:
    """The meaning of one key: it sets an option, or accepts few values, or has no effect.

    Attributes:
      default: the original's default; its type is the type of the key.
      option: name of our option that the key sets; empty: none.
      convert: function of (value, values of all keys by name) that returns the option's value, or None to keep our
        default.
      only: the supported values, all others are refused; empty: all.
      reason: why the key has no effect, which feature other values than `only` need, or a remark on `convert`.
      count: number of elements of a tuple; 0: any number.
      element: type of the elements, if the default is an empty tuple.
      decides: the key whose conversion reads this one, which therefore has an effect.
      needs: a switch without which the key has no effect; empty: none.
    """

    default: Any
    option: str = ""
    convert: Callable[[Any, dict[str, Any]], Any] | None = None
    only: tuple = ()
    reason: str = ""
    count: int = 0
    element: type | None = None
    decides: str = ""
    needs: str = ""


def _same(section: str, *, needs: str = "", **defaults: Any) -> dict[str, Key]:
    """Keys of a section that set the options with their names in lower case."""
    prefix = f"{section}." if section else ""
    return {prefix + name: Key(default, (prefix + name).lower(), needs=needs) for name, default in defaults.items()}


def _idle(section: str, reason: str, **defaults: Any) -> dict[str, Key]:
    """Keys of a section without effect."""
    prefix = f"{section}." if section else ""
    return {prefix + name: Key(default, reason=reason) for name, default in defaults.items()}


def _must(name: str, default: Any, only: tuple, reason: str, **more: Any) -> dict[str, Key]:
    """A key that accepts few values."""
    return {name: Key(default, only=only, reason=reason, **more)}


def _off(name: str, reason: str, **more: Any) -> dict[str, Key]:
    """A switch that stays off."""
    return _must(name, False, (False,), reason, **more)


def _augmented(section: str) -> dict[str, Key]:
    """The keys that are the same for augmented testing of boxes and of masks."""
    numbers: dict[str, Any] = {
        "ENABLED": False,
        "H_FLIP": False,
        "MAX_SIZE": 4000,
        "SCALE_H_FLIP": False,
        "ASPECT_RATIO_H_FLIP": False,
    }
    return {
        **_same(section, **numbers),
        f"{section}.SCALES": Key((), f"{section}.SCALES".lower(), element=int),
        f"{section}.ASPECT_RATIOS": Key((), f"{section}.ASPECT_RATIOS".lower(), element=float),
        **_off(f"{section}.SCALE_SIZE_DEP", "the original refuses scales that depend on the size of an object, too"),
    }


def _keypoint_views() -> dict[str, Key]:
    """The keys for augmented testing of keypoints."""
    group = {"H_FLIP": False, "MAX_SIZE": 4000, "SCALE_H_FLIP": False, "SCALE_SIZE_DEP": False, "AREA_TH": 180**2}
    return {
        **_off("TEST.KPS_AUG.ENABLED", _KEYPOINTS),
        **_idle("TEST.KPS_AUG", _KEYPOINTS, HEUR="HM_AVG", **group, ASPECT_RATIO_H_FLIP=False),
        "TEST.KPS_AUG.SCALES": Key((), reason=_KEYPOINTS, element=int),
        "TEST.KPS_AUG.ASPECT_RATIOS": Key((), reason=_KEYPOINTS, element=float),
    }


def _weights(path: str, values: dict[str, Any]) -> str:
    return path if values["MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS"] else ""


def _has_rpn(values: dict[str, Any]) -> bool:
    return values["MODEL.FASTER_RCNN"] or values["MODEL.RPN_ONLY"]


_WEIGHTS = "RESNETS.IMAGENET_PRETRAINED_WEIGHTS"
_MASK_ON = "MODEL.MASK_ON"
_KEYPOINTS = "keypoints are not supported"
_RETINANET = "RetinaNet is not supported"
_RFCN = "R-FCN is not supported"
_UNION = "the boxes of all passes are united; other ways need precomputed proposals, in the original, too"
_ONE_MODEL = "Faster R-CNN with FPN, trained end to end, is the only model"
_BODY = "only bodies with FPN are supported, not C4 and P2only"
_HEAD = "a head of res5 belongs to bodies without FPN"
_MASK_HEAD = "a mask head of res5 belongs to bodies without FPN"
_NOT_END_TO_END = "the original's end-to-end training does not read it, either"
_INFERRED = "the original sets it itself"
_POLICY = "the original's training script always follows SOLVER.STEPS and SOLVER.GAMMA"
_ROI_ALIGN = "RoIPool and RoICrop are not supported"
_POOLING = "it belongs to an older method of pooling"
_NOTHING = "it has no counterpart here"

KEYS: dict[str, Key] = {
    "TRAIN.DATASETS": Key(
        (),
        "train.datasets",
        lambda names, _: names or None,
        element=str,
        reason="empty: our default; the original takes it from --dataset",
    ),
    **_same("TRAIN", SCALES=(600,), MAX_SIZE=1000, IMS_PER_BATCH=2, BATCH_SIZE_PER_IM=64, USE_FLIPPED=True),
    **_same("TRAIN", FG_FRACTION=0.25, FG_THRESH=0.5, BG_THRESH_HI=0.5, BG_THRESH_LO=0.0, GT_MIN_AREA=-1.0),
    **_same("TRAIN", RPN_POSITIVE_OVERLAP=0.7, RPN_NEGATIVE_OVERLAP=0.3, RPN_FG_FRACTION=0.5),
    **_same("TRAIN", RPN_BATCH_SIZE_PER_IM=256, RPN_NMS_THRESH=0.7, RPN_PRE_NMS_TOP_N=12000, RPN_POST_NMS_TOP_N=2000),
    **_same("TRAIN", RPN_STRADDLE_THRESH=0, RPN_MIN_SIZE=0),
    "TRAIN.SNAPSHOT_ITERS": Key(
        20000,
        "checkpoint.every",
        lambda period, values: max(1, period // max(1, values["NUM_GPUS"])),
        reason="divided by `NUM_GPUS`, as in the original",
    ),
    "TRAIN.CROWD_FILTER_THRESH": Key(
        0.7,
        "train.crowd_filter_thresh",
        lambda share, values: None if _has_rpn(values) else share,
        reason="acts on precomputed proposals only, as in the original",
    ),
    "TRAIN.PROPOSAL_FILES": Key((), "train.proposal_files", element=str),
    **_idle("TRAIN", _NOT_END_TO_END, BBOX_THRESH=0.5, BBOX_NORMALIZE_TARGETS=True),
    **_idle("TRAIN", _NOT_END_TO_END, BBOX_NORMALIZE_TARGETS_PRECOMPUTED=False),
    **_idle("TRAIN", _NOT_END_TO_END, BBOX_NORMALIZE_MEANS=(0.0, 0.0, 0.0, 0.0)),
    **_idle("TRAIN", _NOT_END_TO_END, BBOX_NORMALIZE_STDS=(0.1, 0.1, 0.2, 0.2)),
    **_idle("TRAIN", _NOT_END_TO_END, BBOX_INSIDE_WEIGHTS=(1.0, 1.0, 1.0, 1.0)),
    **_idle("TRAIN", "a batch always has one shape, that of its bucket", ASPECT_GROUPING=True),
    **_off("TRAIN.ASPECT_CROPPING", "cropping to another aspect ratio is not supported"),
    **_idle("TRAIN", "it belongs to TRAIN.ASPECT_CROPPING, which is off", ASPECT_HI=2.0, ASPECT_LO=0.5),
    **_off("TRAIN.FREEZE_CONV_BODY", "freezing the pyramid is not supported; RESNETS.FREEZE_AT: 5 freezes the ResNet"),
    "DATA_LOADER.NUM_THREADS": Key(4, "data.threads"),
    "TEST.DATASETS": Key(
        (),
        "test.datasets",
        lambda names, _: names or None,
        element=str,
        reason="empty: our default; the original takes it from --dataset",
    ),
    **_same("TEST", SCALE=600, MAX_SIZE=1000, NMS=0.3, DETECTIONS_PER_IM=100, SCORE_THRESH=0.05),
    **_same("TEST", RPN_NMS_THRESH=0.7, RPN_PRE_NMS_TOP_N=12000, RPN_POST_NMS_TOP_N=2000, RPN_MIN_SIZE=0),
    **_same("TEST.DIOU_NMS", ENABLED=True, BETA1=1.0),
    **_same("TEST.SOFT_NMS", ENABLED=False, METHOD="linear", SIGMA=0.5),
    **_same("TEST.BBOX_VOTE", ENABLED=False, VOTE_TH=0.8, SCORING_METHOD="ID", SCORING_METHOD_BETA=1.0),
    **_must("TEST.BBOX_REG", True, (True,), "boxes are always refined"),
    "TEST.PROPOSAL_FILES": Key((), "test.proposal_files", element=str),
    **_same("TEST", PROPOSAL_LIMIT=2000),
    **_idle("TEST", _INFERRED, PRECOMPUTED_PROPOSALS=True),
    **_idle("TEST", "the file of results always stays", COMPETITION_MODE=True),
    **_idle("TEST", "evaluation is always COCO's", FORCE_JSON_DATASET_EVAL=False),
    **_augmented("TEST.BBOX_AUG"),
    **_must("TEST.BBOX_AUG.SCORE_HEUR", "UNION", ("UNION",), _UNION),
    **_must("TEST.BBOX_AUG.COORD_HEUR", "UNION", ("UNION",), _UNION),
    **_idle("TEST.BBOX_AUG", "it belongs to SCALE_SIZE_DEP, which is off", AREA_TH_LO=50**2, AREA_TH_HI=180**2),
    **_augmented("TEST.MASK_AUG"),
    **_same("TEST.MASK_AUG", HEUR="SOFT_AVG"),
    **_idle("TEST.MASK_AUG", "it belongs to SCALE_SIZE_DEP, which is off", AREA_TH=180**2),
    **_keypoint_views(),
    **_must("MODEL.TYPE", "", ("", "generalized_rcnn"), _ONE_MODEL),
    "MODEL.CONV_BODY": Key("", "resnets.blocks", lambda name, _: BODIES[name], tuple(BODIES), _BODY),
    **_idle("MODEL", "the annotation file determines it", NUM_CLASSES=-1),
    # The RPN's two keys do not exist in the original, but one of its files sets them.
    **_same("MODEL", LOSS_TYPE="smooth_l1", LOSS_BBOX_WEIGHT=1.0, RPN_LOSS_TYPE="smooth_l1", RPN_LOSS_BBOX_WEIGHT=1.0),
    **_same("MODEL", CLS_AGNOSTIC_BBOX_REG=False),
    "MODEL.BBOX_REG_WEIGHTS": Key((10.0, 10.0, 5.0, 5.0), "model.bbox_reg_weights", count=4),
    **_same("MODEL", MASK_ON=False),
    "MODEL.FASTER_RCNN": Key(
        False,
        "model.faster_rcnn",
        lambda _, values: _has_rpn(values),
        reason="without effect if `MODEL.RPN_ONLY` is True",
    ),
    **_off("MODEL.KEYPOINTS_ON", _KEYPOINTS),
    **_same("MODEL", RPN_ONLY=False),
    **_idle("MODEL", _INFERRED, SHARE_RES5=False),
    "MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS": Key(True, reason=f"False empties {_WEIGHTS}", decides=_WEIGHTS),
    **_off("MODEL.UNSUPERVISED_POSE", _KEYPOINTS),
    **_off("RETINANET.RETINANET_ON", _RETINANET),
    **_idle("RETINANET", _RETINANET, ASPECT_RATIOS=(0.5, 1.0, 2.0), SCALES_PER_OCTAVE=3, ANCHOR_SCALE=4, NUM_CONVS=4),
    **_idle("RETINANET", _RETINANET, BBOX_REG_WEIGHT=1.0, BBOX_REG_BETA=0.11, PRE_NMS_TOP_N=1000, LOSS_ALPHA=0.25),
    **_idle("RETINANET", _RETINANET, POSITIVE_OVERLAP=0.5, NEGATIVE_OVERLAP=0.4, LOSS_GAMMA=2.0, PRIOR_PROB=0.01),
    **_idle("RETINANET", _RETINANET, SHARE_CLS_BBOX_TOWER=False, CLASS_SPECIFIC_BBOX=False, SOFTMAX=False),
    **_idle("RETINANET", _RETINANET, INFERENCE_TH=0.05),
    **_same("SOLVER", TYPE="SGD", BASE_LR=0.001, GAMMA=0.1, MAX_ITER=40000, MOMENTUM=0.9),
    "SOLVER.STEPS": Key((), "solver.steps", element=int),
    **_same("SOLVER", WEIGHT_DECAY=0.0005, WEIGHT_DECAY_GN=0.0, BIAS_DOUBLE_LR=True, BIAS_WEIGHT_DECAY=False),
    **_same("SOLVER", WARM_UP_ITERS=500, WARM_UP_FACTOR=1.0 / 3.0, WARM_UP_METHOD="linear"),
    **_same("SOLVER", SCALE_MOMENTUM=True, SCALE_MOMENTUM_THRESHOLD=1.1),
    **_idle("SOLVER", _POLICY, LR_POLICY="step", STEP_SIZE=30000),
    "SOLVER.LRS": Key((), reason=_POLICY, element=float),
    **_idle("SOLVER", "the rate is in every line of the log", LOG_LR_CHANGE_THRESHOLD=1.1),
    "FAST_RCNN.ROI_BOX_HEAD": Key(
        "", "fast_rcnn.roi_box_head", lambda name, _: name.rpartition(".")[2] or None, only=BOX_HEADS, reason=_HEAD
    ),
    **_same("FAST_RCNN", MLP_HEAD_DIM=1024, ROI_XFORM_RESOLUTION=14, ROI_XFORM_SAMPLING_RATIO=0),
    **_same("FAST_RCNN", CONV_HEAD_DIM=256, NUM_STACKED_CONVS=4),
    **_must("FAST_RCNN.ROI_XFORM_METHOD", "RoIPoolF", ("RoIAlign",), _ROI_ALIGN),
    **_must("RPN.CLS_ACTIVATION", "sigmoid", ("sigmoid",), "an RPN with softmax is not supported"),
    **_idle("RPN", _INFERRED, RPN_ON=False),
    **_idle("RPN", "read without FPN only", OUT_DIM_AS_IN_DIM=True, OUT_DIM=512, SIZES=(64, 128, 256, 512), STRIDE=16),
    **_idle("RPN", "read without FPN only", ASPECT_RATIOS=(0.5, 1.0, 2.0)),
    **_must("FPN.FPN_ON", False, (True,), _ONE_MODEL),
    **_must("FPN.MULTILEVEL_ROIS", False, (True,), _ONE_MODEL),
    **_must("FPN.MULTILEVEL_RPN", False, (True,), _ONE_MODEL),
    **_same("FPN", DIM=256, COARSEST_STRIDE=32, ROI_CANONICAL_SCALE=224, ROI_CANONICAL_LEVEL=4, USE_GN=False),
    **_same("FPN", RPN_ANCHOR_START_SIZE=32, RPN_ASPECT_RATIOS=(0.5, 1.0, 2.0)),
    **_must("FPN.ROI_MIN_LEVEL", 2, (2,), "RoIs are pooled from P2 to P5"),
    **_must("FPN.ROI_MAX_LEVEL", 5, (5,), "RoIs are pooled from P2 to P5"),
    **_must("FPN.RPN_MIN_LEVEL", 2, (2,), "anchors lie on P2 to P6"),
    **_must("FPN.RPN_MAX_LEVEL", 6, (6,), "anchors lie on P2 to P6"),
    **_idle("FPN", _INFERRED, RPN_COLLECT_SCALE=1.0),
    **_off("FPN.EXTRA_CONV_LEVELS", _RETINANET),
    **_off("FPN.ZERO_INIT_LATERAL", "lateral connections that start at zero are not supported"),
    "MRCNN.ROI_MASK_HEAD": Key(
        "",
        "mrcnn.num_convs",
        lambda name, _: MASK_HEADS[name][0],
        only=tuple(MASK_HEADS),
        reason=_MASK_HEAD,
        needs=_MASK_ON,
    ),
    **_same("MRCNN", needs=_MASK_ON, RESOLUTION=14, ROI_XFORM_RESOLUTION=7, ROI_XFORM_SAMPLING_RATIO=0),
    **_same("MRCNN", needs=_MASK_ON, DIM_REDUCED=256, CLS_SPECIFIC_MASK=True),
    **_same("MRCNN", needs=_MASK_ON, WEIGHT_LOSS_MASK=1.0, THRESH_BINARIZE=0.5),
    **_must("MRCNN.ROI_XFORM_METHOD", "RoIAlign", ("RoIAlign",), _ROI_ALIGN, needs=_MASK_ON),
    **_must("MRCNN.DILATION", 2, (1,), "dilated convolutions are not supported", needs=_MASK_ON),
    **_must("MRCNN.UPSAMPLE_RATIO", 1, (1,), "predicted masks are not upsampled", needs=_MASK_ON),
    **_off("MRCNN.USE_FC_OUTPUT", "masks come from convolutions alone", needs=_MASK_ON),
    **_must("MRCNN.CONV_INIT", "GaussianFill", ("MSRAFill",), "weights start by MSRAFill alone", needs=_MASK_ON),
    **_idle("MRCNN", "the loss always computes the mask of an object's class alone", MEMORY_EFFICIENT_LOSS=True),
    **_idle("KRCNN", _KEYPOINTS, ROI_KEYPOINTS_HEAD="", HEATMAP_SIZE=-1, UP_SCALE=-1, USE_DECONV=False, DECONV_DIM=256),
    **_idle("KRCNN", _KEYPOINTS, USE_DECONV_OUTPUT=False, DILATION=1, DECONV_KERNEL=4, NUM_KEYPOINTS=-1, NMS_OKS=False),
    **_idle("KRCNN", _KEYPOINTS, NUM_STACKED_CONVS=8, CONV_HEAD_DIM=256, CONV_HEAD_KERNEL=3, CONV_INIT="GaussianFill"),
    **_idle("KRCNN", _KEYPOINTS, KEYPOINT_CONFIDENCE="bbox", ROI_XFORM_METHOD="RoIAlign", ROI_XFORM_RESOLUTION=7),
    **_idle("KRCNN", _KEYPOINTS, ROI_XFORM_SAMPLING_RATIO=0, MIN_KEYPOINT_COUNT_FOR_VALID_MINIBATCH=20),
    **_idle("KRCNN", _KEYPOINTS, INFERENCE_MIN_SIZE=0, LOSS_WEIGHT=1.0, NORMALIZE_BY_VISIBLE_KEYPOINTS=True),
    **_idle("RFCN", _RFCN, PS_GRID_SIZE=3),
    **_same("RESNETS", NUM_GROUPS=1, WIDTH_PER_GROUP=64, STRIDE_1X1=True, FREEZE_AT=2, USE_GN=False),
    **_must(
        "RESNETS.TRANS_FUNC",
        "bottleneck_transformation",
        ("bottleneck_transformation", "bottleneck_gn_transformation"),
        "other bottlenecks are not supported",
    ),
    **_must("RESNETS.STEM_FUNC", "basic_bn_stem", ("basic_bn_stem", "basic_gn_stem"), "other stems are not supported"),
    **_must(
        "RESNETS.SHORTCUT_FUNC",
        "basic_bn_shortcut",
        ("basic_bn_shortcut", "basic_gn_shortcut"),
        "other shortcuts are not supported",
    ),
    **_must("RESNETS.RES5_DILATION", 1, (1,), "a dilated res5 is not supported"),
    _WEIGHTS: Key("", _WEIGHTS.lower(), _weights, reason="a relative path: see above"),
    **_same("GROUP_NORM", DIM_PER_GP=-1, NUM_GROUPS=32, EPSILON=1e-5),
    **_same("", NUM_GPUS=1, RNG_SEED=17),
    "PIXEL_MEANS": Key((102.9801, 115.9465, 122.7717), "pixel_means", count=3),
    "DATA_DIR": Key("data", "data.root", lambda folder, _: f"{folder.rstrip('/')}/coco", reason="`coco` is appended"),
    "ROOT_DIR": Key("", reason=f"the folder of a relative {_WEIGHTS}", decides=_WEIGHTS),
    **_must("BBOX_XFORM_CLIP", math.log(1000 / 16), (math.log(1000 / 16),), "it is the logarithm of 1000 / 16"),
    **_idle("", "--workdir names the folder", OUTPUT_DIR="Outputs"),
    **_idle("", _POOLING, DEDUP_BOXES=1 / 16, POOLING_MODE="crop", POOLING_SIZE=7, CROP_RESIZE_WITH_MAX_POOL=True),
    **_idle("", _INFERRED, CUDA=False, PYTORCH_VERSION_LESS_THAN_040=False),
    **_idle("", "--mode predict draws, log.images counts the pictures of an evaluation", VIS=False, VIS_TH=0.9),
    **_idle("", _NOTHING, EPS=1e-14, MATLAB="matlab", DEBUG=False),
    **_idle("", _NOTHING, EXPECTED_RESULTS_RTOL=0.1, EXPECTED_RESULTS_ATOL=0.005, EXPECTED_RESULTS_EMAIL=""),
    "EXPECTED_RESULTS": Key((), reason=_NOTHING, element=list),
}


def answer(name: str) -> str | None:
    """The message for a name of the original that differs or is missing here; None for any other name."""
    key = KEYS.get(name.upper())
    if key is None:
        return None
    if key.option:
        return f"the original's {name.upper()} is --config.{key.option} here"
    return f"the original's {name.upper()} is no option here: {key.reason}"
