"""Weights of torchvision's ``fasterrcnn_resnet50_fpn`` and ``maskrcnn_resnet50_fpn``, and of their ``_v2``.

The second versions have batch norm that learns after every convolution but the RPN's, two convolutions in the RPN, and
four before a single fully connected layer in the box head.
"""

import re
from collections.abc import Collection, Mapping

import numpy as np

from diou_jax.data import coco_classes
from diou_jax.weights import imagenet

# torchvision's heads have a row for each of COCO's category ids, used or not.
CLASSES = 91
_SCORES = "roi_heads.box_predictor.cls_score.weight"
_HEADS = {
    "rpn.head.conv": "RPN.FPN_RPN_conv",
    "rpn.head.conv.0.0": "RPN.FPN_RPN_conv",
    "rpn.head.conv.1.0": "RPN.FPN_RPN_conv2",
    "rpn.head.cls_logits": "RPN.FPN_RPN_cls_score",
    "rpn.head.bbox_pred": "RPN.FPN_RPN_bbox_pred",
    "roi_heads.box_head.fc6": "Box_Head.fc1",
    "roi_heads.box_head.fc7": "Box_Head.fc2",
    "roi_heads.box_head.5": "Box_Head.fc",
    "roi_heads.box_predictor.cls_score": "Box_Outs.cls_score",
    "roi_heads.box_predictor.bbox_pred": "Box_Outs.bbox_pred",
    "roi_heads.mask_predictor.conv5_mask": "Mask_Head.upconv",
    "roi_heads.mask_predictor.mask_fcn_logits": "Mask_Outs.classify",
}
# Outputs with a row, or four, for every category.
_BY_CLASS = ("Box_Outs.", "Mask_Outs.")


def is_torchvision(names) -> bool:
    """Whether these are the names of a torchvision detector."""
    return "backbone.body.conv1.weight" in names


def has_batch_norm(names: Collection[str]) -> bool:
    """Whether a detector with these names has batch norm that learns, as the second versions have.

    Of the backbone both versions have statistics; the first one's pyramid has no norm.
    """
    return "backbone.fpn.inner_blocks.0.1.running_var" in names


def is_of_coco(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the heads have as many rows as COCO has category ids: they are then read as these."""
    return _SCORES in tensors and len(tensors[_SCORES]) == CLASSES


def to_original(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors under the original's names, for BGR images minus `imagenet.MEANS`, and the names of unused tensors.

    Batch norm that learns stays as it is. Frozen batch normalisation is folded without an epsilon, as the published
    weights require. Of 91 classes those of COCO are kept, see `is_of_coco`.
    """
    batch_norm, of_coco = has_batch_norm(tensors.keys()), is_of_coco(tensors)
    body = {name.removeprefix("backbone.body."): name for name in tensors if name.startswith("backbone.body.")}
    result, body_unused = imagenet.to_original(
        {name: tensors[source] for name, source in body.items()}, batch_norm=batch_norm, epsilon=0.0
    )
    stem = "Conv_Body.conv_body.res1.conv1.weight"
    result[stem] = imagenet.from_bgr(result[stem])
    unused, counters = [], [body[name] for name in body_unused]
    for name, value in tensors.items():
        if name in body.values():
            continue
        module, _, leaf = name.rpartition(".")
        original = _HEADS.get(module) or _stack(module, tensors) or _pyramid(module, batch_norm)
        if leaf == imagenet.COUNTER:
            counters.append(name)
        elif original is None:
            unused.append(name)
        else:
            rows = of_coco and original.startswith(_BY_CLASS)
            result[f"{original}.{leaf}"] = _coco_rows(value) if rows else value
    return result, unused + counters


def _pyramid(module, batch_norm):
    match = re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.([0-3])(?:\.([01]))?", module)
    if not match:
        return None
    kind, level = match[1], int(match[2]) + 2
    place = f".{match[3]}" if batch_norm else ""
    if kind == "layer":
        return f"Conv_Body.posthoc_modules.{5 - level}{place}"
    if level == 5:
        return f"Conv_Body.conv_top{place}"
    return f"Conv_Body.topdown_lateral_modules.{4 - level}.conv_lateral{place}"


def _stack(module, names):
    """Older versions call the convolutions of the mask head mask_fcn1 to mask_fcn4, newer ones 0.0 to 3.0.

    The original counts convolutions, norms and ReLUs, torchvision blocks of these.
    """
    match = re.fullmatch(r"roi_heads\.(box|mask)_head\.(?:mask_fcn([1-4])|([0-3])\.([01]))", module)
    if not match:
        return None
    number = int(match[2]) - 1 if match[2] else int(match[3])
    stack = "Box_Head.convs" if match[1] == "box" else "Mask_Head.conv_fcn"
    modules = 3 if f"roi_heads.{match[1]}_head.0.1.running_var" in names else 2
    return f"{stack}.{modules * number + int(match[4] or 0)}"


def _coco_rows(value):
    """The rows of the background and COCO's 80 classes, from 91 rows or 91 times 4; other arrays, misfits, stay."""
    if len(value) not in (CLASSES, 4 * CLASSES):
        return value
    rows = value.reshape(CLASSES, -1, *value.shape[1:])[[max(number, 0) for number in coco_classes.IDS]]
    return rows.reshape(-1, *value.shape[1:])
