"""Weights under Detectron's names of blobs."""

import re
from collections.abc import Collection, Mapping

import numpy as np

_HEADS = {
    "conv_rpn_fpn2": "RPN.FPN_RPN_conv",
    "rpn_cls_logits_fpn2": "RPN.FPN_RPN_cls_score",
    "rpn_bbox_pred_fpn2": "RPN.FPN_RPN_bbox_pred",
    "fc7": "Box_Head.fc2",
    "cls_score": "Box_Outs.cls_score",
    "bbox_pred": "Box_Outs.bbox_pred",
    "conv5_mask": "Mask_Head.upconv",
    "mask_fcn_logits": "Mask_Outs.classify",
}
# Convolutions of the heads, by number: of the box head, and of the mask head without and with GroupNorm.
_STACKS = {"head_conv": "Box_Head.convs", "_[mask]_fcn": "Mask_Head.conv_fcn", "_mask_fcn": "Mask_Head.conv_fcn"}
_BRANCHES = {"branch2a": "1", "branch2b": "2", "branch2c": "3"}


def is_detectron(names) -> bool:
    """Whether these are names of Detectron's blobs."""
    return "conv1_w" in names and any(name.startswith("res2_0_branch2a") for name in names)


def to_original(blobs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Blobs under the original's names, and the names of blobs that no network here has, such as momenta."""
    tensors, unused = {}, []
    for blob, value in blobs.items():
        name = original_name(blob, blobs.keys())
        if name is None:
            unused.append(blob)
        else:
            tensors[name] = value
    return tensors, unused


def original_name(blob: str, blobs: Collection[str]) -> str | None:
    """The original's name of a blob, or None.

    Args:
      blob: name of the blob.
      blobs: names of all blobs of the file: some names depend on whether a convolution has a GroupNorm, or the box head
        a second fully connected layer.
    """
    match = re.fullmatch(r"(.+?)(?:_(bn|gn)_([sb])|_([wb]))", blob)
    if not match:
        return None
    stem, norm = match[1], match[2]
    leaf = "bias" if "b" in (match[3], match[4]) else "weight"
    # The original has a sequence where Detectron has a convolution with GroupNorm.
    sequence = f"{stem}_gn_s" in blobs
    module = _body(stem, norm, leaf) or _stack(stem, norm, sequence) or _pyramid(stem, norm, sequence)
    if not module and not norm:
        module = ("Box_Head.fc1" if "fc7_w" in blobs else "Box_Head.fc") if stem == "fc6" else _HEADS.get(stem)
    return module and f"{module}.{leaf}"


def _body(stem, norm, leaf):
    if not norm and leaf == "bias":
        return None  # files of ImageNet models have them, all zero: a norm follows every convolution of a backbone
    if (stem, norm) == ("res_conv1", "bn"):
        return "Conv_Body.conv_body.res1.bn1"
    if stem == "conv1" and norm != "bn":
        return f"Conv_Body.conv_body.res1.{norm or 'conv'}1"
    match = re.fullmatch(r"res([2-5])_(\d+)_(branch\w\w?)", stem)
    if not match:
        return None
    stage, block, branch = match.groups()
    if branch == "branch1":
        part = f"downsample.{1 if norm else 0}"
    elif branch in _BRANCHES:
        part = (norm or "conv") + _BRANCHES[branch]
    else:
        return None
    return f"Conv_Body.conv_body.res{stage}.{block}.{part}"


def _stack(stem, norm, sequence):
    """Each convolution of a head is followed by its GroupNorm, if it has one, and by a ReLU, which counts as well."""
    prefix = stem.rstrip("0123456789")
    number = stem[len(prefix) :]
    if prefix not in _STACKS or not number or norm == "bn":
        return None
    return f"{_STACKS[prefix]}.{(3 if sequence else 2) * (int(number) - 1) + bool(norm)}"


def _pyramid(stem, norm, sequence):
    """The number behind a stage is that of its last block, which differs between backbones."""
    match = re.fullmatch(r"fpn_(inner_)?res([2-5])_\d+_sum(_lateral)?", stem)
    if not match or norm == "bn":
        return None
    inner, stage = match[1], int(match[2])
    if not inner:
        module = f"Conv_Body.posthoc_modules.{5 - stage}"
    elif stage == 5:
        module = "Conv_Body.conv_top"
    else:
        module = f"Conv_Body.topdown_lateral_modules.{4 - stage}.conv_lateral"
    return f"{module}.{1 if norm else 0}" if sequence else module
