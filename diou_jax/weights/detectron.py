"""Weights under Detectron's names of blobs."""

import re
from collections.abc import Mapping

import numpy as np

_HEADS = {
    "conv_rpn_fpn2": "RPN.FPN_RPN_conv",
    "rpn_cls_logits_fpn2": "RPN.FPN_RPN_cls_score",
    "rpn_bbox_pred_fpn2": "RPN.FPN_RPN_bbox_pred",
    "fc6": "Box_Head.fc1",
    "fc7": "Box_Head.fc2",
    "cls_score": "Box_Outs.cls_score",
    "bbox_pred": "Box_Outs.bbox_pred",
}
_BRANCHES = {"branch2a": "1", "branch2b": "2", "branch2c": "3"}


def is_detectron(names) -> bool:
    """Whether these are names of Detectron's blobs."""
    return "conv1_w" in names and any(name.startswith("res2_0_branch2a") for name in names)


def to_original(blobs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Blobs under the original's names, and the names of blobs that no network here has, such as momenta."""
    tensors, unused = {}, []
    for blob, value in blobs.items():
        name = original_name(blob)
        if name is None:
            unused.append(blob)
        else:
            tensors[name] = value
    return tensors, unused


def original_name(blob: str) -> str | None:
    """The original's name of a blob, or None."""
    match = re.fullmatch(r"(.+)_(w|b|s)", blob)
    if not match or blob.endswith("_momentum"):
        return None
    stem, leaf = match[1], "bias" if match[2] == "b" else "weight"
    module = _HEADS.get(stem) or _body(stem) or _pyramid(stem)
    return module and f"{module}.{leaf}"


def _body(stem):
    if stem == "conv1":
        return "Conv_Body.conv_body.res1.conv1"
    if stem == "res_conv1_bn":
        return "Conv_Body.conv_body.res1.bn1"
    match = re.fullmatch(r"res([2-5])_(\d+)_(branch\w\w?)(_bn)?", stem)
    if not match:
        return None
    stage, block, branch, norm = match.groups()
    if branch == "branch1":
        part = f"downsample.{1 if norm else 0}"
    elif branch in _BRANCHES:
        part = ("bn" if norm else "conv") + _BRANCHES[branch]
    else:
        return None
    return f"Conv_Body.conv_body.res{stage}.{block}.{part}"


def _pyramid(stem):
    """The number behind a stage is that of its last block, which differs between backbones."""
    match = re.fullmatch(r"fpn_(inner_)?res([2-5])_\d+_sum(_lateral)?", stem)
    if not match:
        return None
    inner, stage = match[1], int(match[2])
    if not inner:
        return f"Conv_Body.posthoc_modules.{5 - stage}"
    return "Conv_Body.conv_top" if stage == 5 else f"Conv_Body.topdown_lateral_modules.{4 - stage}.conv_lateral"
