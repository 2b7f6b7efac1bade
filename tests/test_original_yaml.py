"""The original's YAML files are configs."""

import importlib

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.command import original_page
from diou_jax.command.arguments import parse
from diou_jax.command.option_names import flatten
from diou_jax.command.original_config import KEYS
from diou_jax.command.original_yaml import read_yaml
from diou_jax.configs import base
from diou_jax.errors import UserError

# The names in the original's default config, section by section.
NAMES = {
    "TRAIN": "DATASETS SCALES MAX_SIZE IMS_PER_BATCH BATCH_SIZE_PER_IM FG_FRACTION FG_THRESH BG_THRESH_HI BG_THRESH_LO "
    "USE_FLIPPED BBOX_THRESH PROPOSAL_FILES SNAPSHOT_ITERS BBOX_NORMALIZE_TARGETS BBOX_INSIDE_WEIGHTS "
    "BBOX_NORMALIZE_TARGETS_PRECOMPUTED BBOX_NORMALIZE_MEANS BBOX_NORMALIZE_STDS ASPECT_GROUPING ASPECT_CROPPING "
    "ASPECT_HI ASPECT_LO RPN_POSITIVE_OVERLAP RPN_NEGATIVE_OVERLAP RPN_FG_FRACTION RPN_BATCH_SIZE_PER_IM "
    "RPN_NMS_THRESH RPN_PRE_NMS_TOP_N RPN_POST_NMS_TOP_N RPN_STRADDLE_THRESH RPN_MIN_SIZE CROWD_FILTER_THRESH "
    "GT_MIN_AREA FREEZE_CONV_BODY",
    "DATA_LOADER": "NUM_THREADS",
    "TEST": "DATASETS SCALE MAX_SIZE NMS BBOX_REG PROPOSAL_FILES PROPOSAL_LIMIT RPN_NMS_THRESH RPN_PRE_NMS_TOP_N "
    "RPN_POST_NMS_TOP_N RPN_MIN_SIZE DETECTIONS_PER_IM SCORE_THRESH COMPETITION_MODE FORCE_JSON_DATASET_EVAL "
    "PRECOMPUTED_PROPOSALS",
    "TEST.BBOX_AUG": "ENABLED SCORE_HEUR COORD_HEUR H_FLIP SCALES MAX_SIZE SCALE_H_FLIP SCALE_SIZE_DEP AREA_TH_LO "
    "AREA_TH_HI ASPECT_RATIOS ASPECT_RATIO_H_FLIP",
    "TEST.MASK_AUG": "ENABLED HEUR H_FLIP SCALES MAX_SIZE SCALE_H_FLIP SCALE_SIZE_DEP AREA_TH ASPECT_RATIOS "
    "ASPECT_RATIO_H_FLIP",
    "TEST.KPS_AUG": "ENABLED HEUR H_FLIP SCALES MAX_SIZE SCALE_H_FLIP SCALE_SIZE_DEP AREA_TH ASPECT_RATIOS "
    "ASPECT_RATIO_H_FLIP",
    "TEST.DIOU_NMS": "ENABLED BETA1",
    "TEST.SOFT_NMS": "ENABLED METHOD SIGMA",
    "TEST.BBOX_VOTE": "ENABLED VOTE_TH SCORING_METHOD SCORING_METHOD_BETA",
    "MODEL": "TYPE CONV_BODY NUM_CLASSES LOSS_TYPE LOSS_BBOX_WEIGHT CLS_AGNOSTIC_BBOX_REG BBOX_REG_WEIGHTS FASTER_RCNN "
    "MASK_ON KEYPOINTS_ON RPN_ONLY SHARE_RES5 LOAD_IMAGENET_PRETRAINED_WEIGHTS UNSUPERVISED_POSE",
    "RETINANET": "RETINANET_ON ASPECT_RATIOS SCALES_PER_OCTAVE ANCHOR_SCALE NUM_CONVS BBOX_REG_WEIGHT BBOX_REG_BETA "
    "PRE_NMS_TOP_N POSITIVE_OVERLAP NEGATIVE_OVERLAP LOSS_ALPHA LOSS_GAMMA PRIOR_PROB SHARE_CLS_BBOX_TOWER "
    "CLASS_SPECIFIC_BBOX SOFTMAX INFERENCE_TH",
    "SOLVER": "TYPE BASE_LR LR_POLICY GAMMA STEP_SIZE STEPS LRS MAX_ITER MOMENTUM WEIGHT_DECAY WEIGHT_DECAY_GN "
    "BIAS_DOUBLE_LR BIAS_WEIGHT_DECAY WARM_UP_ITERS WARM_UP_FACTOR WARM_UP_METHOD SCALE_MOMENTUM "
    "SCALE_MOMENTUM_THRESHOLD LOG_LR_CHANGE_THRESHOLD",
    "FAST_RCNN": "ROI_BOX_HEAD MLP_HEAD_DIM CONV_HEAD_DIM NUM_STACKED_CONVS ROI_XFORM_METHOD ROI_XFORM_SAMPLING_RATIO "
    "ROI_XFORM_RESOLUTION",
    "RPN": "RPN_ON OUT_DIM_AS_IN_DIM OUT_DIM CLS_ACTIVATION SIZES STRIDE ASPECT_RATIOS",
    "FPN": "FPN_ON DIM ZERO_INIT_LATERAL COARSEST_STRIDE MULTILEVEL_ROIS ROI_CANONICAL_SCALE ROI_CANONICAL_LEVEL "
    "ROI_MAX_LEVEL ROI_MIN_LEVEL MULTILEVEL_RPN RPN_MAX_LEVEL RPN_MIN_LEVEL RPN_ASPECT_RATIOS RPN_ANCHOR_START_SIZE "
    "RPN_COLLECT_SCALE EXTRA_CONV_LEVELS USE_GN",
    "MRCNN": "ROI_MASK_HEAD RESOLUTION ROI_XFORM_METHOD ROI_XFORM_RESOLUTION ROI_XFORM_SAMPLING_RATIO DIM_REDUCED "
    "DILATION UPSAMPLE_RATIO USE_FC_OUTPUT CONV_INIT CLS_SPECIFIC_MASK WEIGHT_LOSS_MASK THRESH_BINARIZE "
    "MEMORY_EFFICIENT_LOSS",
    "KRCNN": "ROI_KEYPOINTS_HEAD HEATMAP_SIZE UP_SCALE USE_DECONV DECONV_DIM USE_DECONV_OUTPUT DILATION DECONV_KERNEL "
    "NUM_KEYPOINTS NUM_STACKED_CONVS CONV_HEAD_DIM CONV_HEAD_KERNEL CONV_INIT NMS_OKS KEYPOINT_CONFIDENCE "
    "ROI_XFORM_METHOD ROI_XFORM_RESOLUTION ROI_XFORM_SAMPLING_RATIO MIN_KEYPOINT_COUNT_FOR_VALID_MINIBATCH "
    "INFERENCE_MIN_SIZE LOSS_WEIGHT NORMALIZE_BY_VISIBLE_KEYPOINTS",
    "RFCN": "PS_GRID_SIZE",
    "RESNETS": "NUM_GROUPS WIDTH_PER_GROUP STRIDE_1X1 TRANS_FUNC STEM_FUNC SHORTCUT_FUNC RES5_DILATION FREEZE_AT "
    "IMAGENET_PRETRAINED_WEIGHTS USE_GN",
    "GROUP_NORM": "DIM_PER_GP NUM_GROUPS EPSILON",
    "": "NUM_GPUS DEDUP_BOXES BBOX_XFORM_CLIP PIXEL_MEANS RNG_SEED EPS ROOT_DIR OUTPUT_DIR MATLAB VIS VIS_TH "
    "EXPECTED_RESULTS EXPECTED_RESULTS_RTOL EXPECTED_RESULTS_ATOL EXPECTED_RESULTS_EMAIL DATA_DIR POOLING_MODE "
    "POOLING_SIZE CROP_RESIZE_WITH_MAX_POOL CUDA DEBUG PYTORCH_VERSION_LESS_THAN_040",
}
# What a file of the original says for its 1x recipes of R-50-FPN.
RECIPE = {
    "MODEL.TYPE": "generalized_rcnn",
    "MODEL.CONV_BODY": "FPN.fpn_ResNet50_conv5_body",
    "MODEL.FASTER_RCNN": True,
    "NUM_GPUS": 8,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.LR_POLICY": "steps_with_decay",
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": [0, 60000, 80000],
    "FPN.FPN_ON": True,
    "FPN.MULTILEVEL_ROIS": True,
    "FPN.MULTILEVEL_RPN": True,
    "FAST_RCNN.ROI_BOX_HEAD": "fast_rcnn_heads.roi_2mlp_head",
    "FAST_RCNN.ROI_XFORM_METHOD": "RoIAlign",
    "FAST_RCNN.ROI_XFORM_RESOLUTION": 7,
    "FAST_RCNN.ROI_XFORM_SAMPLING_RATIO": 2,
    "TRAIN.SCALES": "(800,)",
    "TRAIN.MAX_SIZE": 1333,
    "TRAIN.BATCH_SIZE_PER_IM": 512,
    "TRAIN.RPN_PRE_NMS_TOP_N": 2000,
    "TEST.SCALE": 800,
    "TEST.MAX_SIZE": 1333,
    "TEST.NMS": 0.5,
    "TEST.RPN_PRE_NMS_TOP_N": 1000,
    "TEST.RPN_POST_NMS_TOP_N": 1000,
}
GROUP_NORM = {
    "RESNETS.TRANS_FUNC": "bottleneck_gn_transformation",
    "RESNETS.STEM_FUNC": "basic_gn_stem",
    "RESNETS.SHORTCUT_FUNC": "basic_gn_shortcut",
    "RESNETS.USE_GN": True,
    "FPN.USE_GN": True,
}


@pytest.fixture
def recipe(tmp_path):
    """``recipe({"TEST.NMS": 0.3})`` is a file of the original's with these keys changed."""

    def write(changes=None):
        file = tmp_path / "e2e_faster_rcnn.yaml"
        file.write_text(yaml.safe_dump(nest(RECIPE | (changes or {}))))
        return file

    return write


def nest(keys):
    nested = {}
    for name, value in keys.items():
        *sections, key = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return nested


def differences(config, other):
    one, two = flatten(config), flatten(other)
    same_kind = {name for name in one if type(one[name]) is type(two[name])}
    return {name: one[name] for name in one if one[name] != two[name] or name not in same_kind}


def test_every_key_of_the_original_s_config_is_known():
    names = {f"{section}.{name}".strip(".") for section, words in NAMES.items() for name in words.split()}
    assert names == set(KEYS) - {"MODEL.RPN_LOSS_TYPE", "MODEL.RPN_LOSS_BBOX_WEIGHT"}
    assert len(names) > 200


def test_every_key_sets_an_option_or_says_why_not():
    options = flatten(base.get_config())
    for name, key in KEYS.items():
        assert key.option or key.reason, name
        assert not key.option or key.option in options, name


def test_the_page_is_made_from_the_table():
    page = (ROOT / "docs" / "original_configs.md").read_text(encoding="utf-8")
    assert page == original_page.page(), "python -m diou_jax.command.original_page > docs/original_configs.md"


@pytest.mark.parametrize("loss", ["smooth_l1", "iou", "giou", "diou", "ciou"])
def test_a_recipe_is_our_config_of_the_same_name(recipe, loss):
    keys = {} if loss == "smooth_l1" else {"MODEL.LOSS_TYPE": loss, "MODEL.LOSS_BBOX_WEIGHT": 12.0}
    config, lines = read_yaml(recipe(keys))
    ours = importlib.import_module(f"diou_jax.configs.{loss}").get_config()
    assert differences(config, ours) == {}
    assert lines == []


def test_the_rpn_s_loss_is_read_where_the_original_could_not(recipe):
    keys = {"MODEL.LOSS_TYPE": "giou", "MODEL.LOSS_BBOX_WEIGHT": 12.0, "MODEL.RPN_LOSS_TYPE": "giou"}
    ours = importlib.import_module("diou_jax.configs.rpn_giou").get_config()
    assert differences(read_yaml(recipe(keys))[0], ours) == {}


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        ("r101", {"MODEL.CONV_BODY": "FPN.fpn_ResNet101_conv5_body"}),
        (
            "x101_32x8d",
            {
                "MODEL.CONV_BODY": "FPN.fpn_ResNet101_conv5_body",
                "RESNETS.NUM_GROUPS": 32,
                "RESNETS.WIDTH_PER_GROUP": 8,
                "RESNETS.STRIDE_1X1": False,
            },
        ),
        ("r50_gn", GROUP_NORM | {"RESNETS.STRIDE_1X1": False, "RESNETS.FREEZE_AT": 0}),
    ],
)
def test_a_body_is_ours_of_the_same_name(recipe, body, keys):
    assert differences(read_yaml(recipe(keys))[0], base.get_config(body)) == {}


def test_what_a_file_leaves_out_has_the_original_s_default(tmp_path, recipe):
    file = recipe()
    content = yaml.safe_load(file.read_text())
    del content["TEST"], content["SOLVER"], content["TRAIN"], content["NUM_GPUS"]
    file.write_text(yaml.safe_dump(content))
    config = read_yaml(file)[0]
    assert (config.test.nms, config.test.scale, config.test.rpn_pre_nms_top_n) == (0.3, 600, 12000)
    assert (config.solver.base_lr, config.solver.steps, config.solver.max_iter) == (0.001, (), 40000)
    assert (config.train.scales, config.train.batch_size_per_im, config.num_gpus) == ((600,), 64, 1)
    ours = base.get_config()
    assert (config.train.datasets, config.rng_seed) == (ours.train.datasets, ours.rng_seed)
    assert config.checkpoint.every == ours.checkpoint.every


@pytest.mark.parametrize(
    ("key", "written", "option", "value"),
    [
        ("SOLVER.BASE_LR", "1e-2", "solver.base_lr", 0.01),
        ("SOLVER.WEIGHT_DECAY", "5e-4", "solver.weight_decay", 0.0005),
        ("MODEL.LOSS_BBOX_WEIGHT", 12, "model.loss_bbox_weight", 12.0),
        ("SOLVER.STEPS", "(0, 60000)", "solver.steps", (0, 60000)),
        ("SOLVER.STEPS", [], "solver.steps", ()),
        ("TRAIN.SCALES", [640, 800], "train.scales", (640, 800)),
        ("TRAIN.DATASETS", "('coco_2014_train', 'coco_2014_valminusminival')", "train.datasets", None),
        ("TRAIN.USE_FLIPPED", "False", "train.use_flipped", False),
        ("TRAIN.MAX_SIZE", "1000", "train.max_size", 1000),
        ("MODEL.LOSS_TYPE", "'diou'", "model.loss_type", "diou"),
        ("TRAIN.SNAPSHOT_ITERS", 8000, "checkpoint.every", 1000),
        ("DATA_LOADER.NUM_THREADS", 8, "data.threads", 8),
        ("DATA_DIR", "/big/data", "data.root", "/big/data/coco"),
        ("PIXEL_MEANS", [[[1.0, 2, 3.5]]], "pixel_means", (1.0, 2.0, 3.5)),
        ("FPN.RPN_ASPECT_RATIOS", [1, 2], "fpn.rpn_aspect_ratios", (1.0, 2.0)),
        ("TEST.SOFT_NMS.ENABLED", True, "test.soft_nms.enabled", True),
        ("RNG_SEED", 5, "rng_seed", 5),
    ],
)
def test_values_are_read_by_the_original_s_rules(recipe, key, written, option, value):
    read = flatten(read_yaml(recipe({key: written}))[0])[option]
    value = ("coco_2014_train", "coco_2014_valminusminival") if value is None else value
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("TEST.NMS", "high", "TEST.NMS is 'high', and must be a number, such as 0.3"),
        ("SOLVER.MAX_ITER", 1.5, "SOLVER.MAX_ITER is 1.5, and must be a whole number"),
        ("SOLVER.MAX_ITER", "9e4", "SOLVER.MAX_ITER is 90000.0, and must be a whole number"),
        ("NUM_GPUS", True, "NUM_GPUS is True, and must be a whole number"),
        ("TRAIN.USE_FLIPPED", 1, "TRAIN.USE_FLIPPED is 1, and must be True or False"),
        ("SOLVER.BASE_LR", False, "SOLVER.BASE_LR is False, and must be a number"),
        ("TRAIN.SCALES", 800, "TRAIN.SCALES is 800, and must be a list, such as (600,)"),
        ("TRAIN.SCALES", ["800"], "TRAIN.SCALES is ['800'], and must be a list"),
        ("TRAIN.DATASETS", "coco_2017_train", "TRAIN.DATASETS is 'coco_2017_train', and must be a list"),
        ("SOLVER.STEPS", [0, "x"], "SOLVER.STEPS is [0, 'x'], and must be a list"),
        ("SOLVER.STEPS", None, "SOLVER.STEPS is None, and must be a list"),
        ("MODEL.LOSS_TYPE", ["ciou"], "MODEL.LOSS_TYPE is ['ciou'], and must be a text"),
        ("PIXEL_MEANS", [1.0, 2.0], "PIXEL_MEANS is [1.0, 2.0], and must be a list, such as [102.9801"),
        ("PIXEL_MEANS", [[[1.0, 2.0, "x"]]], "PIXEL_MEANS is"),
        ("TEST", 5, "TEST is a section of options, not 5"),
        ("MODEL.LOS_TYPE", "ciou", "MODEL.LOS_TYPE is no key of the original's config; the nearest is MODEL.LOSS_TYPE"),
        ("TRIAN.SCALES", [1], "TRIAN is no key of the original's config; the nearest is TRAIN"),
        ("model.loss_type", "ciou", "model is no key of the original's config; the nearest is MODEL"),
        ("MODEL.MASK_ON", True, "MODEL.MASK_ON is True, and must be False (masks are not there)"),
        ("MODEL.KEYPOINTS_ON", True, "MODEL.KEYPOINTS_ON is True"),
        ("MODEL.CONV_BODY", "ResNet.ResNet50_conv4_body", "C4 and Fast R-CNN are not there"),
        ("MODEL.FASTER_RCNN", False, "MODEL.FASTER_RCNN is False, and must be True"),
        ("RETINANET.RETINANET_ON", True, "RetinaNet is not there"),
        ("TRAIN.PROPOSAL_FILES", ["a.pkl"], "TRAIN.PROPOSAL_FILES is ('a.pkl',), and must be ()"),
        ("TEST.BBOX_AUG.ENABLED", True, "TEST.BBOX_AUG.ENABLED is True, and must be False"),
        ("FAST_RCNN.ROI_BOX_HEAD", "fast_rcnn_heads.roi_Xconv1fc_gn_head", "the head of two layers is the only one"),
        ("FAST_RCNN.ROI_XFORM_METHOD", "RoIPoolF", "RoIAlign is the only one"),
        ("RESNETS.RES5_DILATION", 2, "RESNETS.RES5_DILATION is 2, and must be 1"),
        ("RESNETS.USE_GN", True, "RESNETS.USE_GN True"),
    ],
)
def test_what_cannot_be_is_refused_by_file_and_key(recipe, key, value, words):
    if key == "TEST":
        file = recipe()
        file.write_text("TEST: 5\n")
    else:
        file = recipe({key: value})
    with pytest.raises(UserError) as error:
        read_yaml(file)
    assert str(error.value).startswith(str(file))
    assert words in str(error.value)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
SCALARS = PLAIN | st.sampled_from(["(1,)", "1e-3"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(KEYS)), VALUES, max_size=3))
def test_whatever_a_file_holds_is_a_config_of_the_right_types_or_one_error(tmp_path_factory, changes):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump(nest(RECIPE | changes)), encoding="utf-8")
    ours = flatten(base.get_config())
    try:
        config = read_yaml(file)[0]
    except UserError as error:
        assert str(file) in str(error)
    else:
        assert all(type(value) is type(ours[name]) for name, value in flatten(config).items())


def test_what_a_file_says_is_refused_before_what_it_leaves_out(recipe):
    with pytest.raises(UserError) as error:
        read_yaml(recipe({"MODEL.MASK_ON": True, "RETINANET.RETINANET_ON": True, "MODEL.CONV_BODY": ""}))
    assert "MODEL.MASK_ON" in str(error.value)
    assert "RETINANET.RETINANET_ON" in str(error.value)
    with pytest.raises(UserError) as error:
        file = recipe()
        file.write_text("MODEL:\n  LOSS_TYPE: ciou\n")
        read_yaml(file)
    assert "FPN.FPN_ON is False, the original's default" in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"MODEL:\n  A: [1\nB: 2\n", "line 3: not YAML"),
        (b"MODEL: !!python/object/apply:os.system ['true']\n", "line 1: not YAML"),
        (b"- 1\n", "has sections such as MODEL; this is [1]"),
        (b"", "this is None"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"MODEL:\n\x00", "not YAML"),
    ],
)
def test_a_file_that_is_none_is_one_error(tmp_path, content, words):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_yaml(file)
    assert words in str(error.value)


def test_keys_without_effect_are_listed_by_reason(recipe):
    keys = {"MODEL.NUM_CLASSES": 81, "MRCNN.RESOLUTION": 28, "MRCNN.DILATION": 1, "SOLVER.LR_POLICY": "step"}
    lines = read_yaml(recipe(keys))[1]
    assert "without effect: MRCNN.DILATION, MRCNN.RESOLUTION (masks are not there)" in lines
    assert "without effect: MODEL.NUM_CLASSES (the annotation file says)" in lines
    assert len(lines) == 3


def test_weights_lie_below_the_folder_of_the_original(recipe, tmp_path):
    weights = {"RESNETS.IMAGENET_PRETRAINED_WEIGHTS": "data/pretrained_model/resnet50_caffe.pth"}
    assert read_yaml(recipe(weights))[0].resnets.imagenet_pretrained_weights.startswith("data/pretrained_model/")
    found = tmp_path / "data" / "pretrained_model" / "resnet50_caffe.pth"
    found.parent.mkdir(parents=True)
    found.write_bytes(b"")
    file = tmp_path / "configs" / "baselines" / "a.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(recipe(weights).read_text())
    assert read_yaml(file)[0].resnets.imagenet_pretrained_weights == str(found)
    off = {"MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS": False}
    assert read_yaml(recipe(weights | off))[0].resnets.imagenet_pretrained_weights == ""


def test_a_file_is_a_config_on_the_command_line_and_options_apply(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = recipe({"MODEL.LOSS_TYPE": "diou", "MODEL.NUM_CLASSES": 81})
    command = parse(["--config", str(file), "--config.solver.max_iter=10", "--config.MODEL.LOSS_TYPE=ciou"])
    assert (command.config.model.loss_type, command.config.solver.max_iter) == ("ciou", 10)
    assert command.workdir == "runs/e2e_faster_rcnn"
    assert any("MODEL.NUM_CLASSES" in line for line in command.lines)
    with pytest.raises(UserError, match="a YAML file takes no argument"):
        parse(["--config", f"{file}:r101"])
