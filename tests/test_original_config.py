"""The original's YAML files as configs: diou_jax/command/original_*.py and docs/original_configs.md."""

import fnmatch
import importlib
import os
import pathlib
import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from diou_jax.command import arguments, original_page
from diou_jax.command.original_config import read_original
from diou_jax.command.original_keys import BODIES, KEYS
from diou_jax.configs import base, mask, mask_gn
from diou_jax.errors import UserError

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"

# The R-50-FPN files of the original, which differ in the lines of `RECIPES`.
RECIPE = """\
MODEL:
  TYPE: generalized_rcnn
  CONV_BODY: FPN.fpn_ResNet50_conv5_body
  FASTER_RCNN: True
{loss}RESNETS:
  IMAGENET_PRETRAINED_WEIGHTS: 'data/pretrained_model/resnet50_caffe.pth'
NUM_GPUS: {num_gpus}
SOLVER:
  WEIGHT_DECAY: 0.0001
  LR_POLICY: steps_with_decay
  BASE_LR: 0.02
  GAMMA: 0.1
  MAX_ITER: {max_iter}
  STEPS: {steps}
FPN:
  FPN_ON: True
  MULTILEVEL_ROIS: True
  MULTILEVEL_RPN: True
FAST_RCNN:
  ROI_BOX_HEAD: fast_rcnn_heads.roi_2mlp_head
  ROI_XFORM_METHOD: RoIAlign
  ROI_XFORM_RESOLUTION: 7
  ROI_XFORM_SAMPLING_RATIO: 2
TRAIN:
  SCALES: (800,)
  MAX_SIZE: 1333
  BATCH_SIZE_PER_IM: 512
  RPN_PRE_NMS_TOP_N: 2000  # Per FPN level
TEST:
  SCALE: 800
  MAX_SIZE: 1333
  NMS: 0.5
  RPN_PRE_NMS_TOP_N: 1000  # Per FPN level
  RPN_POST_NMS_TOP_N: 1000
"""
MASK_HEAD = """\
MRCNN:
  ROI_MASK_HEAD: mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs{norm}
  RESOLUTION: 28  # (output mask resolution) default 14
  ROI_XFORM_METHOD: RoIAlign
  ROI_XFORM_RESOLUTION: 14  # default 7
  ROI_XFORM_SAMPLING_RATIO: 2  # default 0
  DILATION: 1  # default 2
  CONV_INIT: MSRAFill  # default GaussianFill
"""
RECIPES = {  # number of devices, length, steps
    "smooth_l1": (2, 95000, (0, 24000, 80000)),
    "iou": (1, 90000, (0, 60000, 80000)),
    "giou": (8, 90000, (0, 60000, 80000)),
    "diou": (8, 90000, (0, 60000, 80000)),
    "ciou": (8, 90000, (0, 60000, 80000)),
}
# A file must say this much, as the original's defaults mean another model.
LEAST = {
    "MODEL.CONV_BODY": "FPN.fpn_ResNet50_conv5_body",
    "MODEL.FASTER_RCNN": True,
    "FPN.FPN_ON": True,
    "FPN.MULTILEVEL_ROIS": True,
    "FPN.MULTILEVEL_RPN": True,
    "FAST_RCNN.ROI_BOX_HEAD": "fast_rcnn_heads.roi_2mlp_head",
    "FAST_RCNN.ROI_XFORM_METHOD": "RoIAlign",
}
# Masks need a few keys of their own, whose defaults mean another head.
MASKS = {
    "MODEL.MASK_ON": True,
    "MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs",
    "MRCNN.DILATION": 1,
    "MRCNN.CONV_INIT": "MSRAFill",
}
# A list of ten lists of ten lists ..., which ends nobody's memory: they are the same ones.
BOMB = "TRAIN: {SCALES: [&a0 [1], " + ", ".join(f"&a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(9)) + "]}"
GROUP_NORM = {
    "RESNETS.USE_GN": True,
    "RESNETS.TRANS_FUNC": "bottleneck_gn_transformation",
    "RESNETS.STEM_FUNC": "basic_gn_stem",
    "RESNETS.SHORTCUT_FUNC": "basic_gn_shortcut",
}


# Keys that act, or are valid, with others only.
TOGETHER = dict.fromkeys(GROUP_NORM, GROUP_NORM) | {"TRAIN.CROWD_FILTER_THRESH": {"MODEL.FASTER_RCNN": False}}


def recipe(loss: str) -> str:
    num_gpus, max_iter, steps = RECIPES[loss]
    loss = "" if loss == "smooth_l1" else f"  LOSS_TYPE: '{loss}'\n  LOSS_BBOX_WEIGHT: 12.\n"
    return RECIPE.format(loss=loss, num_gpus=num_gpus, max_iter=max_iter, steps=list(steps))


def mask_recipe(body: str, *, group_norm: bool = False) -> str:
    """The original's files of Mask R-CNN: with the GIoU loss, or with GroupNorm from random weights."""
    loss = "  MASK_ON: True\n" + ("" if group_norm else "  LOSS_TYPE: 'giou'\n  LOSS_BBOX_WEIGHT: 10.\n")
    length = (270000, [0, 210000, 250000]) if group_norm else (90000, [0, 60000, 80000])
    text = RECIPE.format(loss=loss, num_gpus=8, max_iter=length[0], steps=length[1])
    text += MASK_HEAD.format(norm="_gn" if group_norm else "")
    if group_norm:
        text = text.replace("  FASTER_RCNN: True\n", "  FASTER_RCNN: True\n  LOAD_IMAGENET_PRETRAINED_WEIGHTS: False\n")
        weights = next(line for line in text.splitlines() if "IMAGENET_PRETRAINED_WEIGHTS:" in line and "'" in line)
        functions = "".join(f"  {name.partition('.')[2]}: {value}\n" for name, value in GROUP_NORM.items())
        text = text.replace(f"{weights}\n", f"  STRIDE_1X1: False\n{functions}")
        text = text.replace("  MULTILEVEL_RPN: True\n", "  MULTILEVEL_RPN: True\n  USE_GN: True\n")
        text = text.replace("roi_2mlp_head", "roi_Xconv1fc_gn_head")
    if body.startswith("x101"):
        text = text.replace("RESNETS:", "RESNETS:\n  STRIDE_1X1: False\n  NUM_GROUPS: 32\n  WIDTH_PER_GROUP: 8")
        text = text.replace("TRAIN:", "TRAIN:\n  IMS_PER_BATCH: 1").replace("BASE_LR: 0.02", "BASE_LR: 0.01")
    return text if body.startswith("r50") else text.replace("ResNet50", "ResNet101")


def nested(values: dict) -> dict:
    content = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        section = content
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return content


def plain(value):
    """A value as YAML writes it: it knows no tuples."""
    return [plain(element) for element in value] if isinstance(value, tuple) else value


def option(config, name):
    for part in name.split("."):
        config = config[part]
    return config


@pytest.fixture
def read(tmp_path):
    """`read_original` of a text, or of keys over the least ones."""

    def read(content="", **keys):
        if not isinstance(content, str):
            values = {name: plain(value) for name, value in (LEAST | content | keys).items()}
            content = yaml.safe_dump(nested(values), sort_keys=False)
        path = tmp_path / "original.yaml"
        path.write_text(content, encoding="utf-8")
        return read_original(path)

    return read


@pytest.fixture
def refusal(read):
    """The message that reading ends with."""

    def refusal(content):
        with pytest.raises(UserError) as error:
            read(content)
        message = str(error.value)
        assert "original.yaml" in message and "\n" not in message and len(message) < 1000
        return message

    return refusal


@pytest.fixture(scope="module")
def unset(tmp_path_factory):
    """The config of a file that says the least."""
    path = tmp_path_factory.mktemp("unset") / "original.yaml"
    path.write_text(yaml.safe_dump(nested(LEAST)))
    return read_original(path)[0]


# Recipes


@pytest.mark.parametrize("loss", RECIPES)
def test_the_recipes_are_our_configs(loss, read):
    expected = importlib.import_module(f"diou_jax.configs.{loss}").get_config()
    expected.num_gpus, expected.solver.max_iter, expected.solver.steps = RECIPES[loss]
    expected.checkpoint.every = 20000 // expected.num_gpus
    expected.rng_seed = 17
    expected.resnets.imagenet_pretrained_weights = "data/pretrained_model/resnet50_caffe.pth"
    config, lines = read(recipe(loss))
    assert config.to_dict() == expected.to_dict()
    assert lines == []
    base.check(config)


@pytest.mark.parametrize("groups, width, body", [(32, 8, "x101_32x8d"), (64, 4, "x101_64x4d")])
def test_resnext(groups, width, body, read):
    text = recipe("smooth_l1").replace("ResNet50", "ResNet101")
    text = text.replace(
        "RESNETS:", f"RESNETS:\n  STRIDE_1X1: False\n  NUM_GROUPS: {groups}\n  WIDTH_PER_GROUP: {width}"
    )
    config, _ = read(text)
    config.resnets.imagenet_pretrained_weights = ""
    assert config.resnets.to_dict() == base.get_config(body).resnets.to_dict()


@pytest.mark.parametrize("body", ["r50", "r101", "x101_32x8d"])
def test_mask_recipes_are_our_config(body, read):
    expected = mask.get_config(body)
    expected.checkpoint.every, expected.rng_seed = 2500, 17
    if body == "x101_32x8d":
        expected.train.ims_per_batch, expected.solver.base_lr = 1, 0.01
    expected.resnets.imagenet_pretrained_weights = "data/pretrained_model/resnet50_caffe.pth"
    config, lines = read(mask_recipe(body))
    assert config.to_dict() == expected.to_dict()
    assert lines == []
    base.check(config)


@pytest.mark.parametrize("body", ["r50_gn", "r101_gn"])
def test_the_recipe_of_group_norm_from_random_weights_is_our_config(body, read):
    """The stem and res2 stay random, as the original's default has it."""
    expected = mask_gn.get_config(body)
    expected.checkpoint.every, expected.rng_seed = 2500, 17
    config, lines = read(mask_recipe(body, group_norm=True))
    assert config.to_dict() == expected.to_dict()
    assert config.resnets.freeze_at == 2
    assert len(lines) == 1 and "RESNETS.FREEZE_AT is 2" in lines[0]
    base.check(config)


@pytest.mark.parametrize(
    "name, convs, norm", [("v1up4convs", 4, False), ("v1up4convs_gn", 4, True), ("v1up", 2, False)]
)
def test_mask_heads(name, convs, norm, read):
    config, _ = read(MASKS | {"MRCNN.ROI_MASK_HEAD": f"mask_rcnn_heads.mask_rcnn_fcn_head_{name}"})
    assert (config.mrcnn.num_convs, config.mrcnn.use_gn) == (convs, norm)


@pytest.mark.parametrize("name", ["roi_2mlp_head", "roi_Xconv1fc_head", "roi_Xconv1fc_gn_head"])
def test_box_heads(name, read):
    config, _ = read(
        {"FAST_RCNN.ROI_BOX_HEAD": f"fast_rcnn_heads.{name}", "FAST_RCNN.NUM_STACKED_CONVS": 3},
    )
    assert config.fast_rcnn.roi_box_head == name
    assert config.fast_rcnn.num_stacked_convs == 3


def test_without_masks_their_keys_are_not_read_and_not_refused(read, unset):
    config, lines = read({"MRCNN.RESOLUTION": 56, "MRCNN.ROI_MASK_HEAD": "mine", "MRCNN.DILATION": 2})
    assert config.to_dict() == unset.to_dict()
    said = "without effect: MRCNN.RESOLUTION, MRCNN.ROI_MASK_HEAD, MRCNN.DILATION (MODEL.MASK_ON is off)"
    assert [line for line in lines if "MRCNN" in line] == [said]


@pytest.mark.parametrize("body, blocks", BODIES.items())
def test_bodies(body, blocks, read):
    config, _ = read({"MODEL.CONV_BODY": body})
    assert config.resnets.blocks == blocks


def test_group_norm(read):
    content = {**GROUP_NORM, "RESNETS.STRIDE_1X1": False, "FPN.USE_GN": True, "RESNETS.FREEZE_AT": 0}
    config, lines = read(content | {"MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS": False})
    expected = base.get_config("r50_gn")
    assert config.resnets.to_dict() == expected.resnets.to_dict()
    assert config.fpn.to_dict() == expected.fpn.to_dict()
    assert lines == []


def test_group_norm_freezes_random_weights_as_in_the_original_and_says_so(read):
    config, lines = read({**GROUP_NORM, "MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS": False})
    assert config.resnets.freeze_at == 2
    assert len(lines) == 1 and "FREEZE_AT is 2" in lines[0] and "res1 to res2" in lines[0]


@pytest.mark.parametrize("name", GROUP_NORM)
def test_group_norm_is_all_or_nothing(name, refusal):
    assert name in refusal({name: GROUP_NORM[name]})
    assert name in refusal({key: value for key, value in GROUP_NORM.items() if key != name})


# The table


def other(name: str):
    """A value of the key's type that is not its default; one that is refused, where there is such."""
    key = KEYS[name]
    if key.only and key.default not in key.only:
        return key.default
    if isinstance(key.default, tuple):
        of = key.element or type(key.default[0])
        several = {str: ("mine",), int: (7, 9), float: (0.125, 3.0, 0.25, 1.5), list: ([1, "a"],)}[of]
        return several[: key.count or None]
    if isinstance(key.default, bool):
        return not LEAST.get(name, key.default)
    return {int: 3, float: 0.625, str: "mine"}[type(key.default)]


def test_the_original_has_these_many_keys_in_each_section():
    sections = [name.rpartition(".")[0] for name in KEYS]
    counts = {section: sections.count(section) for section in sections}
    assert counts == {
        "": 22,
        "DATA_LOADER": 1,
        "FAST_RCNN": 7,
        "FPN": 17,
        "GROUP_NORM": 3,
        "KRCNN": 22,
        "MODEL": 14 + 2,  # the RPN's loss, which one of its files has and its config lacks
        "MRCNN": 14,
        "RESNETS": 10,
        "RETINANET": 17,
        "RFCN": 1,
        "RPN": 7,
        "SOLVER": 19,
        "TEST": 16,
        "TEST.BBOX_AUG": 12,
        "TEST.BBOX_VOTE": 4,
        "TEST.DIOU_NMS": 2,
        "TEST.KPS_AUG": 10,
        "TEST.MASK_AUG": 10,
        "TEST.SOFT_NMS": 3,
        "TRAIN": 34,
    }


def test_the_page_of_options_has_the_same_keys():
    section = (DOCS / "options.md").read_text(encoding="utf-8")
    section = (
        section[section.index("### General") : section.index("## Ours only")] + section[section.index("## Left") :]
    )
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    patterns = {name for cell in cells for name in re.findall(r"`([A-Z][\w.*]*)`", cell)}
    unknown = [pattern for pattern in patterns if not fnmatch.filter(KEYS, pattern)]
    assert not unknown
    assert not [name for name in KEYS if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def test_without_a_key_the_original_s_default_holds(unset):
    config = unset
    for name, key in KEYS.items():
        if key.option and not (key.convert or key.needs):
            assert option(config, key.option) == key.default, name
    assert config.checkpoint.every == 20000
    assert config.train.datasets == ("coco_2017_train",) and config.test.datasets == ("coco_2017_val",)
    assert config.data.root == "data/coco"
    base.check(config)


def test_what_the_original_does_not_know_is_ours(unset):
    options = {key.option for key in KEYS.values()}
    ours = base.get_config()
    for name in (
        "train.drop_empty",
        "solver.clip_norm",
        "train.proposal_limit",
        "fpn.mask_padding",
        "data.workers",
    ):
        assert name not in options
        assert option(unset, name) == option(ours, name)


@pytest.mark.parametrize("name", KEYS)
def test_every_key_sets_an_option_or_has_no_effect_or_is_refused(name, read, refusal, unset):
    key, value = KEYS[name], other(name)
    more = MASKS if key.needs or name == "MODEL.MASK_ON" else {}
    before = read(more)[0] if key.needs else unset
    if key.only:
        message = refusal(more | {name: value})
        assert name in message and repr(value) in message and key.reason in message
        for good in set(key.only) - {""}:
            if name not in GROUP_NORM:
                read(more | {name: good})
    elif key.option:
        together = more | TOGETHER.get(name, {}) | {name: value}
        config, lines = read(together if name not in GROUP_NORM else GROUP_NORM)
        assert option(config, key.option) != option(before, key.option)
        if not key.convert:
            assert option(config, key.option) == (True if name in GROUP_NORM else value)
        assert not [line for line in lines if name in line and "without effect" in line]
    else:
        config, lines = read(more | {name: value})
        assert config.to_dict() == before.to_dict()
        assert key.reason
        said = [line for line in lines if line.startswith("without effect") and name in line and key.reason in line]
        assert len(said) == (0 if key.decides else 1)


def test_options_of_the_table_exist_and_are_set_once():
    options = [key.option for key in KEYS.values() if key.option]
    assert len(options) == len(set(options))
    for name in options:
        option(base.get_config(), name)


def test_keys_without_effect_share_a_line_for_a_reason(read):
    _, lines = read({"TRAIN.BBOX_THRESH": 0.5, "TRAIN.BBOX_NORMALIZE_TARGETS": False, "VIS": True})
    assert sum("TRAIN.BBOX_THRESH, TRAIN.BBOX_NORMALIZE_TARGETS (" in line for line in lines) == 1
    assert sum("VIS (" in line for line in lines) == 1


@pytest.mark.parametrize("policy, said", [("steps_with_decay", 0), ("steps_with_lrs", 1)])
def test_only_another_policy_of_the_rate_is_worth_a_line(policy, said, read):
    _, lines = read({"SOLVER.LR_POLICY": policy})
    assert sum("SOLVER.LR_POLICY" in line for line in lines) == said


# Conversions


def test_the_period_of_checkpoints_is_divided_by_the_devices(read):
    config, _ = read({"TRAIN.SNAPSHOT_ITERS": 8000, "NUM_GPUS": 4})
    assert config.checkpoint.every == 2000
    config, _ = read({"TRAIN.SNAPSHOT_ITERS": 3, "NUM_GPUS": 8})
    assert config.checkpoint.every == 1


def test_data(read):
    config, _ = read({"DATA_DIR": "/sets/", "TRAIN.DATASETS": ["a", "b"], "TEST.DATASETS": "('coco_2014_minival',)"})
    assert config.data.root == "/sets/coco"
    assert config.train.datasets == ("a", "b") and config.test.datasets == ("coco_2014_minival",)


def test_weights_are_found_here_or_above_the_file(tmp_path, monkeypatch):
    config_file = tmp_path / "repository" / "configs" / "baselines" / "a.yaml"
    weights = tmp_path / "repository" / "data" / "pretrained_model" / "resnet50_caffe.pth"
    for path in (config_file, weights):
        path.parent.mkdir(parents=True)
    config_file.write_text(recipe("ciou"))

    def found():
        return read_original(config_file)[0].resnets.imagenet_pretrained_weights

    assert found() == "data/pretrained_model/resnet50_caffe.pth"
    weights.write_bytes(b"")
    assert found() == str(weights)
    monkeypatch.chdir(tmp_path / "repository")
    assert found() == "data/pretrained_model/resnet50_caffe.pth"


def test_weights_below_the_root_that_the_file_names(read):
    config, lines = read({"ROOT_DIR": "/there", "RESNETS.IMAGENET_PRETRAINED_WEIGHTS": "a.pth"})
    assert config.resnets.imagenet_pretrained_weights == "/there/a.pth"
    assert lines == []
    config, _ = read({"ROOT_DIR": "/there", "RESNETS.IMAGENET_PRETRAINED_WEIGHTS": "/a.pth"})
    assert config.resnets.imagenet_pretrained_weights == "/a.pth"


def test_weights_that_are_not_loaded(read):
    keys = {"RESNETS.IMAGENET_PRETRAINED_WEIGHTS": "/a.pth", "MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS": False}
    config, lines = read(keys)
    assert config.resnets.imagenet_pretrained_weights == "" and lines == []


def test_weights_that_are_not_named_are_worth_a_line(read):
    _, lines = read({})
    assert len(lines) == 1 and "RESNETS.IMAGENET_PRETRAINED_WEIGHTS names no file" in lines[0]


RPN_ALONE = {"MODEL.CONV_BODY": "FPN.fpn_ResNet50_conv5_body", "FPN.FPN_ON": True, "FPN.MULTILEVEL_RPN": True}


def test_a_file_of_the_rpn_alone_need_not_name_a_head(read):
    text = yaml.safe_dump(nested(RPN_ALONE | {"MODEL.RPN_ONLY": True, "TEST.RPN_POST_NMS_TOP_N": 2000}))
    config, _ = read(text)
    assert config.model.rpn_only and config.model.faster_rcnn and config.test.rpn_post_nms_top_n == 2000
    base.check(config)


def test_a_file_of_fast_rcnn_names_files_of_proposals_and_need_not_name_an_rpn(read):
    names = {"TRAIN.DATASETS": ["coco_2017_train"], "TEST.DATASETS": ["coco_2017_val"], "TEST.PROPOSAL_LIMIT": 1000}
    files = {"TRAIN.PROPOSAL_FILES": ["a.pkl"], "TEST.PROPOSAL_FILES": "('b.pkl',)"}
    least = {name: value for name, value in LEAST.items() if name not in ("MODEL.FASTER_RCNN", "FPN.MULTILEVEL_RPN")}
    config, lines = read(yaml.safe_dump(nested(least | names | files)))
    assert not config.model.faster_rcnn and not config.model.rpn_only and not any("effect" in line for line in lines)
    assert (config.train.proposal_files, config.test.proposal_files) == (("a.pkl",), ("b.pkl",))
    assert config.test.proposal_limit == 1000 and config.train.crowd_filter_thresh == 0.7
    base.check(config)
    assert read({"TRAIN.CROWD_FILTER_THRESH": 0.5})[0].train.crowd_filter_thresh == 0, "with an RPN it has no effect"


@pytest.mark.parametrize("name", ["FPN.FPN_ON", "FPN.MULTILEVEL_RPN", "MODEL.CONV_BODY"])
def test_a_file_of_the_rpn_alone_must_name_the_rest(name, refusal):
    values = {key: value for key, value in RPN_ALONE.items() if key != name} | {"MODEL.RPN_ONLY": True}
    assert f"{name} is {KEYS[name].default!r} by the original's default" in refusal(yaml.safe_dump(nested(values)))


# Refused values


@pytest.mark.parametrize(
    "name, value",
    [
        ("MODEL.KEYPOINTS_ON", True),
        ("MODEL.TYPE", "retinanet"),
        ("MODEL.CONV_BODY", "ResNet.ResNet50_conv4_body"),
        ("MODEL.CONV_BODY", "FPN.fpn_ResNet50_conv5_P2only_body"),
        ("RETINANET.RETINANET_ON", True),
        ("FAST_RCNN.ROI_BOX_HEAD", "ResNet.ResNet_roi_conv5_head"),
        ("FAST_RCNN.ROI_XFORM_METHOD", "RoIPoolF"),
        ("MRCNN.ROI_MASK_HEAD", "mask_rcnn_heads.mask_rcnn_fcn_head_v0upshare"),
        ("MRCNN.ROI_MASK_HEAD", "mask_rcnn_heads.mask_rcnn_fcn_head_v0up"),
        ("MRCNN.ROI_XFORM_METHOD", "RoIPoolF"),
        ("MRCNN.DILATION", 2),
        ("MRCNN.USE_FC_OUTPUT", True),
        ("MRCNN.UPSAMPLE_RATIO", 2),
        ("MRCNN.CONV_INIT", "GaussianFill"),
        ("FPN.FPN_ON", False),
        ("FPN.MULTILEVEL_ROIS", False),
        ("FPN.MULTILEVEL_RPN", False),
        ("FPN.RPN_MAX_LEVEL", 7),
        ("RESNETS.RES5_DILATION", 2),
        ("TEST.BBOX_AUG.SCALE_SIZE_DEP", True),
        ("TEST.BBOX_AUG.SCORE_HEUR", "AVG"),
        ("TEST.KPS_AUG.ENABLED", True),
    ],
)
def test_what_is_not_there_is_refused_by_name(name, value, refusal):
    message = refusal((MASKS if KEYS[name].needs else {}) | {name: value})
    assert f"{name} is " in message and str(value).strip("(),[]") in message and KEYS[name].reason in message


@pytest.mark.parametrize("name", list(MASKS)[1:])
def test_a_default_of_masks_that_is_not_there_is_named_as_such(name, refusal):
    message = refusal({key: value for key, value in MASKS.items() if key != name})
    assert f"{name} is {KEYS[name].default!r} by the original's default" in message


@pytest.mark.parametrize("name", [name for name in LEAST if name != "MODEL.FASTER_RCNN"])
def test_a_default_of_the_original_that_is_not_there_is_named_as_such(name, refusal):
    values = {key: value for key, value in LEAST.items() if key != name}
    message = refusal(yaml.safe_dump(nested(values)))
    assert f"{name} is {KEYS[name].default!r} by the original's default" in message


def test_what_the_file_says_is_refused_before_what_it_leaves_out(refusal):
    message = refusal("MODEL: {KEYPOINTS_ON: True}")
    assert "MODEL.KEYPOINTS_ON" in message and "FPN" not in message


@pytest.mark.parametrize(
    "text, key, nearest",
    [
        ("MODEL: {LOSS_TIPE: ciou}", "MODEL.LOSS_TIPE", "MODEL.LOSS_TYPE"),
        ("SOLVER: {LR: 0.1}", "SOLVER.LR", "SOLVER"),
        ("TRIAN: {SCALES: [800]}", "TRIAN", "TRAIN"),
        ("model: {LOSS_TYPE: ciou}", "model", "MODEL"),
        ("TEST: {DIOU_NMS: {ENABLE: True}}", "TEST.DIOU_NMS.ENABLE", "TEST.DIOU_NMS.ENABLED"),
        ("BASE_LR: 0.1", "BASE_LR", "SOLVER.BASE_LR"),
        ("1: 2", "1", ""),
        ("null: 2", "None", ""),
        ('MODEL: {"a\\nb": 2}', "MODEL.a\\nb", "MODEL"),
        (f"{'A' * 900}: 2", "AAAA", ""),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(text, key, nearest, refusal):
    message = refusal(text)
    assert f"{key} is no key" in message or key == "AAAA"
    assert re.search(rf"the nearest is {re.escape(nearest)}", message)


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("SOLVER.BASE_LR", "fast", "a number"),
        ("SOLVER.BASE_LR", True, "a number"),
        ("SOLVER.BASE_LR", float("nan"), "a number"),
        ("SOLVER.BASE_LR", float("inf"), "a number"),
        ("SOLVER.BASE_LR", 10**400, "a number"),
        ("SOLVER.BASE_LR", [0.1], "a number"),
        ("SOLVER.BASE_LR", {"a": 1}, "a number"),
        ("SOLVER.BASE_LR", None, "a number; without the line it has the original's default"),
        ("SOLVER.BASE_LR", "None", "a number"),
        ("SOLVER.MAX_ITER", 1.5, "a whole number"),
        ("SOLVER.MAX_ITER", True, "a whole number"),
        ("SOLVER.MAX_ITER", "9e4.0", "a whole number"),
        ("TRAIN.USE_FLIPPED", 1, "True or False"),
        ("TRAIN.USE_FLIPPED", "maybe", "True or False"),
        ("TRAIN.SCALES", 800, "a list of whole numbers, such as (600,)"),
        ("TRAIN.SCALES", "(800)", "a list of whole numbers, such as (600,)"),
        ("TRAIN.SCALES", ["a"], "a list of whole numbers"),
        ("TRAIN.SCALES", [[800]], "a list of whole numbers"),
        ("SOLVER.STEPS", 60000, "a list of whole numbers, such as (0, 60000, 80000)"),
        ("SOLVER.STEPS", None, "a list of whole numbers"),
        ("TRAIN.DATASETS", "coco_2017_train", "a list of texts, such as ('coco_2017_val',)"),
        ("TRAIN.DATASETS", [["a"]], "a list of texts"),
        ("FPN.RPN_ASPECT_RATIOS", ["1:2"], "a list of numbers"),
        ("MODEL.BBOX_REG_WEIGHTS", {"x": 10.0}, "a list of 4 numbers, such as (10.0, 10.0, 5.0, 5.0)"),
        ("MODEL.BBOX_REG_WEIGHTS", [10.0, 5.0], "a list of 4 numbers"),
        ("PIXEL_MEANS", 127, "a list of 3 numbers"),
        ("PIXEL_MEANS", [[1, "x", 2]], "a list of 3 numbers"),
        ("PIXEL_MEANS", [[[1.0, 2.0]]], "a list of 3 numbers"),
        ("EXPECTED_RESULTS", 1, "a list of lists"),
        ("MODEL.LOSS_TYPE", ["ciou"], "a text"),
        ("MODEL.LOSS_TYPE", None, "a text"),
        ("MODEL.LOSS_TYPE", True, "a text"),
        ("TEST.DIOU_NMS", True, "a section"),
        ("MODEL", [1], "a section"),
    ],
)
def test_another_type_is_refused_with_key_and_value(name, value, wanted, refusal):
    text = yaml.safe_dump(nested({name: value}))
    message = refusal(text)
    said = {None: "empty"}.get(value if not isinstance(value, list | dict) else 0, repr(value)[:12])
    assert f"{name} is {said}" in message and f"must be {wanted}" in message


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("SOLVER.BASE_LR", "1e-4", 1e-4),  # a text in YAML 1.1
        ("SOLVER.BASE_LR", "'0.02'", 0.02),
        ("SOLVER.BASE_LR", "1.0e-4", 1e-4),
        ("MODEL.LOSS_BBOX_WEIGHT", "12", 12.0),
        ("MODEL.LOSS_BBOX_WEIGHT", "12.", 12.0),
        ("SOLVER.MAX_ITER", "9e4", 90000),
        ("SOLVER.MAX_ITER", "90000.0", 90000),
        ("SOLVER.MAX_ITER", "'90000'", 90000),
        ("SOLVER.STEPS", "(0, 60000)", (0, 60000)),
        ("SOLVER.STEPS", "[0, 60000]", (0, 60000)),
        ("SOLVER.STEPS", "'[0, 6e4]'", (0, 60000)),
        ("SOLVER.STEPS", "\n    - 0\n    - 6e4", (0, 60000)),
        ("SOLVER.STEPS", "[]", ()),
        ("TRAIN.SCALES", "(800,)", (800,)),
        ("TRAIN.SCALES", "(640, 672, 704)", (640, 672, 704)),
        ("TRAIN.GT_MIN_AREA", "-1", -1.0),
        ("TRAIN.USE_FLIPPED", "no", False),
        ("TRAIN.USE_FLIPPED", "'False'", False),
        (
            "TRAIN.DATASETS",
            "('coco_2014_train', 'coco_2014_valminusminival')",
            ("coco_2014_train", "coco_2014_valminusminival"),
        ),
        ("FPN.RPN_ASPECT_RATIOS", "(0.5, 1, 2)", (0.5, 1.0, 2.0)),
        ("MODEL.BBOX_REG_WEIGHTS", "(10., 10., 5., 5.)", (10.0, 10.0, 5.0, 5.0)),
        ("MODEL.LOSS_TYPE", "'\"ciou\"'", "ciou"),
        ("MODEL.LOSS_TYPE", "5", "5"),
        ("RESNETS.IMAGENET_PRETRAINED_WEIGHTS", "/data/1e5", "/data/1e5"),
        ("RESNETS.IMAGENET_PRETRAINED_WEIGHTS", "'1e5'", "1e5"),
        ("PIXEL_MEANS", "[[[103.53, 116.28, 123.675]]]", (103.53, 116.28, 123.675)),
        ("PIXEL_MEANS", "'[[[103.53, 116.28, 123]]]'", (103.53, 116.28, 123.0)),
        ("PIXEL_MEANS", "(103.53, 116.28, 123.675)", (103.53, 116.28, 123.675)),
    ],
)
def test_types_are_the_original_s(name, text, value, read):
    placeholder = "PLACEHOLDER"
    content = yaml.safe_dump(nested(LEAST | {name: placeholder}))
    config, _ = read(content.replace(placeholder, text))
    got = option(config, KEYS[name].option)
    assert got == value and type(got) is type(value)
    if isinstance(value, tuple):
        assert [type(element) for element in got] == [type(element) for element in value]


def test_a_section_without_keys_is_none(read, unset):
    config, _ = read(yaml.safe_dump(nested(LEAST)) + "SOLVER:\n  # BASE_LR: 0.02\n")
    assert config.to_dict() == unset.to_dict()


# Files


@pytest.mark.parametrize(
    "text, said",
    [
        ("MODEL:\n  TYPE: a\n TYPE: b\n", "line 3 is not YAML"),
        ("MODEL: {TYPE: [}", "line 1 is not YAML"),
        ("a: b: c", "is not YAML"),
        ("--- 1\n--- 2\n", "is not YAML"),
        ("!!python/object:utils.collections.AttrDict {}", "is not YAML"),
        ("!!python/object/apply:os.system ['touch stolen']", "is not YAML"),
        ("SOLVER: {BASE_LR: 2020-13-45}", "is not YAML: month must be"),
        ("[" * 1500, "is not YAML: nested too deeply"),
        ("&a [*a]", "has no sections"),
        ("TRAIN: {SCALES: &a [*a]}", "TRAIN.SCALES is [["),
        (BOMB, "TRAIN.SCALES is [["),
        ("", "has no sections"),
        ("# nothing\n", "has no sections"),
        ("- MODEL\n", "has no sections"),
        ("MODEL", "has no sections"),
    ],
)
def test_what_is_no_yaml_of_the_original_is_refused(text, said, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(text)
    assert not (tmp_path / "stolen").exists()


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80" * 9)
    (tmp_path / "control.yaml").write_bytes(b"MODEL: \x00\n")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    said = {
        "binary": "UTF-8",
        "control": "not YAML",
        "pipe": "no regular file",
        "folder": "no regular file",
        "gone": "No such file",
    }
    for name, words in said.items():
        with pytest.raises(UserError, match=words) as error:
            read_original(tmp_path / f"{name}.yaml")
        assert str(error.value).startswith(str(tmp_path / f"{name}.yaml")) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(recipe("ciou"), encoding="utf-8-sig")
    assert read_original(path)[0].model.loss_type == "ciou"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(KEYS)), VALUES)
@example("SOLVER.BASE_LR", "'\\d'")  # Python warns of this literal
@example("SOLVER.BASE_LR", "0x")
@example("SOLVER.MAX_ITER", "9" * 5000)
@example("SOLVER.MAX_ITER", "(" * 5000)
@example("MODEL.LOSS_TYPE", "\x85")
def test_any_value_is_read_or_refused_by_its_key(tmp_path_factory, name, value):
    path = tmp_path_factory.mktemp("any") / "original.yaml"
    path.write_text(yaml.safe_dump(nested({**LEAST, name: value}), allow_unicode=True), encoding="utf-8")
    try:
        config, lines = read_original(path)
    except UserError as error:
        message = str(error)
        assert name in message or name in GROUP_NORM
        assert "\n" not in message and len(message) < 2000
    else:
        assert type(config) is type(base.get_config())
        assert all("\n" not in line for line in lines)


LINES = st.sampled_from([*recipe("ciou").splitlines(), "  - 1", "? a", "&a", "*a", "!!set {a}", "<<: {}", "\t", "..."])


@given(st.binary() | st.lists(LINES | st.text(max_size=9), max_size=30).map("\n".join).map(lambda text: text.encode()))
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "original.yaml"
    path.write_bytes(content)
    try:
        read_original(path)
    except UserError as error:
        assert "original.yaml" in str(error) and "\n" not in str(error) and len(str(error)) < 2000


# The page


def test_the_page_is_that_of_the_table():
    page = (DOCS / "original_configs.md").read_text(encoding="utf-8")
    assert page == original_page.page(), "python -m diou_jax.command.original_page > docs/original_configs.md"


def test_the_page_has_every_key():
    page = (DOCS / "original_configs.md").read_text(encoding="utf-8")
    tables = [line for line in page.splitlines() if line.startswith("|")]
    first = [name for line in tables for name in re.findall(r"`([A-Z][\w.]*)`", line.split("|")[1])]
    assert sorted(first) == sorted(KEYS)


def test_a_file_is_a_config_on_the_command_line_and_options_apply(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "e2e_faster_rcnn.yaml"
    file.write_text(recipe("diou").replace("MODEL:\n", "MODEL:\n  NUM_CLASSES: 81\n"))
    command = arguments.parse(["--config", str(file), "--config.solver.max_iter=10"])
    assert (command.config.model.loss_type, command.config.solver.max_iter) == ("diou", 10)
    assert command.workdir == "runs/e2e_faster_rcnn"
    assert any("MODEL.NUM_CLASSES" in line for line in command.lines)
    with pytest.raises(UserError, match="a YAML file takes no argument"):
        arguments.parse(["--config", f"{file}:r101"])
