"""Every key of the original's config: its default, and what becomes of it here. `original_yaml` reads files by it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

# Bottlenecks in res2 to res5 of the bodies that are there.
BODIES = {
    "FPN.fpn_ResNet50_conv5_body": (3, 4, 6, 3),
    "FPN.fpn_ResNet101_conv5_body": (3, 4, 23, 3),
    "FPN.fpn_ResNet152_conv5_body": (3, 8, 36, 3),
}
WEIGHTS = "RESNETS.IMAGENET_PRETRAINED_WEIGHTS"


@dataclasses.dataclass(frozen=True)
class Key:
    """What becomes of one key.

    Attributes:
      default: the original's; a value must be of its type.
      option: ours that takes the value; empty: the key has no effect.
      only: the values that this program can do; empty: all.
      reason: why the key has no effect, or why other values than `only` are refused.
      when_given: `option` keeps our default where a file does not name the key.
      convert: from the value, and those of all keys by name, to the option's value.
    """

    default: Any
    option: str = ""
    only: tuple = ()
    reason: str = ""
    when_given: bool = False
    convert: Callable[[Any, dict], Any] | None = None


def same(section: str, **defaults) -> dict[str, Key]:
    """Keys of one section whose options bear their names in lower case."""
    prefix = f"{section}." if section else ""
    return {prefix + name: Key(value, f"{prefix}{name}".lower()) for name, value in defaults.items()}


def idle(section: str, reason: str, **defaults) -> dict[str, Key]:
    """Keys of one section without effect."""
    prefix = f"{section}." if section else ""
    return {prefix + name: Key(value, reason=reason) for name, value in defaults.items()}


def switch(name: str, reason: str) -> dict[str, Key]:
    """A key that is False by default and cannot be switched on."""
    return {name: Key(False, only=(False,), reason=reason)}


MASKS = "masks are not there"
KEYPOINTS = "keypoints are not there"
FPN_ONLY = "Faster R-CNN with FPN, trained end to end, is the only model; C4 and Fast R-CNN are not there"
RETINANET = "RetinaNet is not there"
VIEWS = "several views of an image at test are not there"
PROPOSALS = "proposals are always the RPN's; precomputed ones are not there"
OTHER_RPN = "of an RPN without FPN"
NORMALIZED = "without effect in the original's end-to-end training"
INFERRED = "the original infers it"
ONE_POLICY = "the original's training script always follows SOLVER.STEPS"
NO_COUNTERPART = "has no counterpart"
POOLING = "of an older way of pooling"
NORMS = "TRANS_FUNC, STEM_FUNC, SHORTCUT_FUNC and USE_GN all say GroupNorm, or none of them does"

KEYS: dict[str, Key] = {
    # Training
    "TRAIN.DATASETS": Key((), "train.datasets", when_given=True),
    **same("TRAIN", SCALES=(600,), MAX_SIZE=1000, IMS_PER_BATCH=2, BATCH_SIZE_PER_IM=64, FG_FRACTION=0.25),
    **same("TRAIN", FG_THRESH=0.5, BG_THRESH_HI=0.5, BG_THRESH_LO=0.0, USE_FLIPPED=True),
    **idle("TRAIN", NORMALIZED, BBOX_THRESH=0.5, BBOX_NORMALIZE_TARGETS=True),
    **idle("TRAIN", NORMALIZED, BBOX_INSIDE_WEIGHTS=(1.0, 1.0, 1.0, 1.0), BBOX_NORMALIZE_TARGETS_PRECOMPUTED=False),
    **idle("TRAIN", NORMALIZED, BBOX_NORMALIZE_MEANS=(0.0, 0.0, 0.0, 0.0), BBOX_NORMALIZE_STDS=(0.1, 0.1, 0.2, 0.2)),
    **idle("TRAIN", "acts on precomputed proposals only, in the original too", CROWD_FILTER_THRESH=0.7),
    "TRAIN.PROPOSAL_FILES": Key((), only=((),), reason=PROPOSALS),
    "TRAIN.SNAPSHOT_ITERS": Key(
        20000,
        "checkpoint.every",
        when_given=True,
        convert=lambda value, values: max(1, value // max(1, values["NUM_GPUS"])),
    ),
    **idle("TRAIN", "a batch always has one shape, that of its bucket", ASPECT_GROUPING=True),
    **switch("TRAIN.ASPECT_CROPPING", "cropping to another aspect ratio is not there"),
    **idle("TRAIN", "of TRAIN.ASPECT_CROPPING, which is off", ASPECT_HI=2, ASPECT_LO=0.5),
    **same("TRAIN", RPN_POSITIVE_OVERLAP=0.7, RPN_NEGATIVE_OVERLAP=0.3, RPN_FG_FRACTION=0.5),
    **same("TRAIN", RPN_BATCH_SIZE_PER_IM=256, RPN_NMS_THRESH=0.7, RPN_PRE_NMS_TOP_N=12000, RPN_POST_NMS_TOP_N=2000),
    **same("TRAIN", RPN_STRADDLE_THRESH=0, RPN_MIN_SIZE=0),
    "TRAIN.GT_MIN_AREA": Key(-1, "train.gt_min_area", convert=lambda value, _: float(value)),
    **switch("TRAIN.FREEZE_CONV_BODY", "to freeze the pyramid is not there; RESNETS.FREEZE_AT: 5 freezes the ResNet"),
    "DATA_LOADER.NUM_THREADS": Key(4, "data.threads"),
    # Test
    "TEST.DATASETS": Key((), "test.datasets", when_given=True),
    **same("TEST", SCALE=600, MAX_SIZE=1000, NMS=0.3, DETECTIONS_PER_IM=100, SCORE_THRESH=0.05),
    **same("TEST", RPN_NMS_THRESH=0.7, RPN_PRE_NMS_TOP_N=12000, RPN_POST_NMS_TOP_N=2000, RPN_MIN_SIZE=0),
    "TEST.BBOX_REG": Key(True, only=(True,), reason="boxes are always refined"),
    "TEST.PROPOSAL_FILES": Key((), only=((),), reason=PROPOSALS),
    **idle("TEST", "of precomputed proposals", PROPOSAL_LIMIT=2000),
    **idle("TEST", INFERRED, PRECOMPUTED_PROPOSALS=True),
    **idle("TEST", "the file of results always stays", COMPETITION_MODE=True),
    **idle("TEST", "evaluation is always COCO's", FORCE_JSON_DATASET_EVAL=False),
    **switch("TEST.BBOX_AUG.ENABLED", VIEWS),
    **idle("TEST.BBOX_AUG", VIEWS, SCORE_HEUR="UNION", COORD_HEUR="UNION", H_FLIP=False, SCALES=(), MAX_SIZE=4000),
    **idle("TEST.BBOX_AUG", VIEWS, SCALE_H_FLIP=False, SCALE_SIZE_DEP=False, AREA_TH_LO=2500, AREA_TH_HI=32400),
    **idle("TEST.BBOX_AUG", VIEWS, ASPECT_RATIOS=(), ASPECT_RATIO_H_FLIP=False),
    **switch("TEST.MASK_AUG.ENABLED", MASKS),
    **idle("TEST.MASK_AUG", MASKS, HEUR="SOFT_AVG", H_FLIP=False, SCALES=(), MAX_SIZE=4000, SCALE_H_FLIP=False),
    **idle("TEST.MASK_AUG", MASKS, SCALE_SIZE_DEP=False, AREA_TH=32400, ASPECT_RATIOS=(), ASPECT_RATIO_H_FLIP=False),
    **switch("TEST.KPS_AUG.ENABLED", KEYPOINTS),
    **idle("TEST.KPS_AUG", KEYPOINTS, HEUR="HM_AVG", H_FLIP=False, SCALES=(), MAX_SIZE=4000, SCALE_H_FLIP=False),
    **idle("TEST.KPS_AUG", KEYPOINTS, SCALE_SIZE_DEP=False, AREA_TH=32400, ASPECT_RATIOS=(), ASPECT_RATIO_H_FLIP=False),
    **same("TEST.DIOU_NMS", ENABLED=True, BETA1=1.0),
    **same("TEST.SOFT_NMS", ENABLED=False, METHOD="linear", SIGMA=0.5),
    **same("TEST.BBOX_VOTE", ENABLED=False, VOTE_TH=0.8, SCORING_METHOD="ID", SCORING_METHOD_BETA=1.0),
    # Model
    "MODEL.TYPE": Key("", only=("generalized_rcnn", ""), reason=FPN_ONLY),
    "MODEL.CONV_BODY": Key(
        "", "resnets.blocks", only=tuple(BODIES), reason=FPN_ONLY, convert=lambda value, _: BODIES[value]
    ),
    **idle("MODEL", "the annotation file says", NUM_CLASSES=-1),
    **same("MODEL", LOSS_TYPE="smooth_l1", LOSS_BBOX_WEIGHT=1.0, CLS_AGNOSTIC_BBOX_REG=False),
    # A file of the original has these two, its config does not.
    **same("MODEL", RPN_LOSS_TYPE="smooth_l1", RPN_LOSS_BBOX_WEIGHT=1.0),
    **same("MODEL", BBOX_REG_WEIGHTS=(10.0, 10.0, 5.0, 5.0)),
    "MODEL.FASTER_RCNN": Key(False, only=(True,), reason=FPN_ONLY),
    **switch("MODEL.MASK_ON", MASKS),
    **switch("MODEL.KEYPOINTS_ON", KEYPOINTS),
    **switch("MODEL.RPN_ONLY", "a model that ends with proposals is not there"),
    **idle("MODEL", INFERRED, SHARE_RES5=False),
    **idle("MODEL", f"False leaves out {WEIGHTS}", LOAD_IMAGENET_PRETRAINED_WEIGHTS=True),
    **switch("MODEL.UNSUPERVISED_POSE", KEYPOINTS),
    **switch("RETINANET.RETINANET_ON", RETINANET),
    **idle("RETINANET", RETINANET, ASPECT_RATIOS=(0.5, 1.0, 2.0), SCALES_PER_OCTAVE=3, ANCHOR_SCALE=4, NUM_CONVS=4),
    **idle("RETINANET", RETINANET, BBOX_REG_WEIGHT=1.0, BBOX_REG_BETA=0.11, PRE_NMS_TOP_N=1000, POSITIVE_OVERLAP=0.5),
    **idle("RETINANET", RETINANET, NEGATIVE_OVERLAP=0.4, LOSS_ALPHA=0.25, LOSS_GAMMA=2.0, PRIOR_PROB=0.01),
    **idle("RETINANET", RETINANET, SHARE_CLS_BBOX_TOWER=False, CLASS_SPECIFIC_BBOX=False, SOFTMAX=False),
    **idle("RETINANET", RETINANET, INFERENCE_TH=0.05),
    # Solver
    **same("SOLVER", TYPE="SGD", BASE_LR=0.001, GAMMA=0.1, STEPS=[], MAX_ITER=40000, MOMENTUM=0.9, WEIGHT_DECAY=0.0005),
    **same("SOLVER", WEIGHT_DECAY_GN=0.0, BIAS_DOUBLE_LR=True, BIAS_WEIGHT_DECAY=False, WARM_UP_ITERS=500),
    **same("SOLVER", WARM_UP_FACTOR=1.0 / 3.0, WARM_UP_METHOD="linear", SCALE_MOMENTUM=True),
    **same("SOLVER", SCALE_MOMENTUM_THRESHOLD=1.1),
    **idle("SOLVER", ONE_POLICY, LR_POLICY="step", STEP_SIZE=30000, LRS=[]),
    **idle("SOLVER", "the rate is in every line of the log", LOG_LR_CHANGE_THRESHOLD=1.1),
    # Heads
    "FAST_RCNN.ROI_BOX_HEAD": Key(
        "", only=("fast_rcnn_heads.roi_2mlp_head",), reason="the head of two layers is the only one"
    ),
    **same("FAST_RCNN", MLP_HEAD_DIM=1024, ROI_XFORM_SAMPLING_RATIO=0, ROI_XFORM_RESOLUTION=14),
    **idle("FAST_RCNN", "of a head with convolutions, which is not there", CONV_HEAD_DIM=256, NUM_STACKED_CONVS=4),
    "FAST_RCNN.ROI_XFORM_METHOD": Key("RoIPoolF", only=("RoIAlign",), reason="RoIAlign is the only one"),
    **idle("RPN", INFERRED, RPN_ON=False),
    **idle("RPN", OTHER_RPN, OUT_DIM_AS_IN_DIM=True, OUT_DIM=512, SIZES=(64, 128, 256, 512), STRIDE=16),
    **idle("RPN", OTHER_RPN, ASPECT_RATIOS=(0.5, 1, 2)),
    "RPN.CLS_ACTIVATION": Key("sigmoid", only=("sigmoid",), reason="an RPN with softmax is not there"),
    "FPN.FPN_ON": Key(False, only=(True,), reason=FPN_ONLY),
    "FPN.MULTILEVEL_ROIS": Key(False, only=(True,), reason=FPN_ONLY),
    "FPN.MULTILEVEL_RPN": Key(False, only=(True,), reason=FPN_ONLY),
    **same("FPN", DIM=256, COARSEST_STRIDE=32, ROI_CANONICAL_SCALE=224, ROI_CANONICAL_LEVEL=4),
    **same("FPN", RPN_ANCHOR_START_SIZE=32, USE_GN=False),
    "FPN.RPN_ASPECT_RATIOS": Key(
        (0.5, 1, 2), "fpn.rpn_aspect_ratios", convert=lambda value, _: tuple(map(float, value))
    ),
    **idle("FPN", "the original infers it from the batch, as we do", RPN_COLLECT_SCALE=1),
    **switch("FPN.ZERO_INIT_LATERAL", "lateral connections that start at zero are not there"),
    **switch("FPN.EXTRA_CONV_LEVELS", RETINANET),
    "FPN.ROI_MIN_LEVEL": Key(2, only=(2,), reason="RoIs are pooled from P2 to P5"),
    "FPN.ROI_MAX_LEVEL": Key(5, only=(5,), reason="RoIs are pooled from P2 to P5"),
    "FPN.RPN_MIN_LEVEL": Key(2, only=(2,), reason="anchors lie on P2 to P6"),
    "FPN.RPN_MAX_LEVEL": Key(6, only=(6,), reason="anchors lie on P2 to P6"),
    **idle("MRCNN", MASKS, ROI_MASK_HEAD="", RESOLUTION=14, ROI_XFORM_METHOD="RoIAlign", ROI_XFORM_RESOLUTION=7),
    **idle("MRCNN", MASKS, ROI_XFORM_SAMPLING_RATIO=0, DIM_REDUCED=256, DILATION=2, UPSAMPLE_RATIO=1),
    **idle("MRCNN", MASKS, USE_FC_OUTPUT=False, CONV_INIT="GaussianFill", CLS_SPECIFIC_MASK=True),
    **idle("MRCNN", MASKS, WEIGHT_LOSS_MASK=1.0, THRESH_BINARIZE=0.5, MEMORY_EFFICIENT_LOSS=True),
    **idle("KRCNN", KEYPOINTS, ROI_KEYPOINTS_HEAD="", HEATMAP_SIZE=-1, UP_SCALE=-1, USE_DECONV=False, DECONV_DIM=256),
    **idle("KRCNN", KEYPOINTS, USE_DECONV_OUTPUT=False, DILATION=1, DECONV_KERNEL=4, NUM_KEYPOINTS=-1),
    **idle("KRCNN", KEYPOINTS, NUM_STACKED_CONVS=8, CONV_HEAD_DIM=256, CONV_HEAD_KERNEL=3, CONV_INIT="GaussianFill"),
    **idle("KRCNN", KEYPOINTS, NMS_OKS=False, KEYPOINT_CONFIDENCE="bbox", ROI_XFORM_METHOD="RoIAlign"),
    **idle("KRCNN", KEYPOINTS, ROI_XFORM_RESOLUTION=7, ROI_XFORM_SAMPLING_RATIO=0, INFERENCE_MIN_SIZE=0),
    **idle("KRCNN", KEYPOINTS, MIN_KEYPOINT_COUNT_FOR_VALID_MINIBATCH=20, LOSS_WEIGHT=1.0),
    **idle("KRCNN", KEYPOINTS, NORMALIZE_BY_VISIBLE_KEYPOINTS=True),
    **idle("RFCN", "R-FCN is not there", PS_GRID_SIZE=3),
    # Body
    **same("RESNETS", NUM_GROUPS=1, WIDTH_PER_GROUP=64, STRIDE_1X1=True, FREEZE_AT=2, USE_GN=False),
    "RESNETS.TRANS_FUNC": Key(
        "bottleneck_transformation",
        only=("bottleneck_transformation", "bottleneck_gn_transformation"),
        reason="these bottlenecks are there",
    ),
    "RESNETS.STEM_FUNC": Key("basic_bn_stem", only=("basic_bn_stem", "basic_gn_stem"), reason="these stems are there"),
    "RESNETS.SHORTCUT_FUNC": Key(
        "basic_bn_shortcut", only=("basic_bn_shortcut", "basic_gn_shortcut"), reason="these shortcuts are there"
    ),
    "RESNETS.RES5_DILATION": Key(1, only=(1,), reason="a dilated res5 is not there"),
    WEIGHTS: Key(
        "",
        "resnets.imagenet_pretrained_weights",
        convert=lambda value, values: value if values["MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS"] else "",
    ),
    **same("GROUP_NORM", DIM_PER_GP=-1, NUM_GROUPS=32, EPSILON=1e-5),
    # The rest
    **same("", NUM_GPUS=1),
    "PIXEL_MEANS": Key([102.9801, 115.9465, 122.7717], "pixel_means"),
    "RNG_SEED": Key(17, "rng_seed", when_given=True),
    "DATA_DIR": Key("data", "data.root", convert=lambda value, _: f"{value.rstrip('/')}/coco"),
    "BBOX_XFORM_CLIP": Key(
        math.log(1000.0 / 16.0), only=(math.log(1000.0 / 16.0),), reason="a constant, log(1000 / 16)"
    ),
    **idle("", "--workdir names the folder", OUTPUT_DIR="Outputs"),
    **idle("", POOLING, DEDUP_BOXES=1.0 / 16.0, POOLING_MODE="crop", POOLING_SIZE=7, CROP_RESIZE_WITH_MAX_POOL=True),
    **idle("", INFERRED, CUDA=False, PYTORCH_VERSION_LESS_THAN_040=False, ROOT_DIR=""),
    **idle("", NO_COUNTERPART, EPS=1e-14, MATLAB="matlab", DEBUG=False, EXPECTED_RESULTS=[]),
    **idle("", NO_COUNTERPART, EXPECTED_RESULTS_RTOL=0.1, EXPECTED_RESULTS_ATOL=0.005, EXPECTED_RESULTS_EMAIL=""),
    **idle("", "--mode predict draws, log.images counts the pictures of an evaluation", VIS=False, VIS_TH=0.9),
}


def answer(name: str) -> str | None:
    """What to say of the original's name of an option that has another one, or none, here; None: it is no such name."""
    key = KEYS.get(name.upper())
    if key is None:
        return None
    if key.option:
        return f"the original's {name.upper()} is --config.{key.option} here"
    return f"the original's {name.upper()} is no option here: {key.reason}"
