"""The options that say which layers a network has, by the names of its tensors."""

import re
from collections.abc import Collection
from typing import Any, NamedTuple


class Part(NamedTuple):
    """The first convolution of a part of the network and its norm, by the original's names of modules.

    Attributes:
      convolution: the convolution, whether a norm follows it or not.
      group_norm, batch_norm: the norm of either kind. Batch norm alone has statistics.
    """

    convolution: str
    group_norm: str
    batch_norm: str


_PARTS = {
    "resnets": Part(*(f"Conv_Body.conv_body.res1.{module}" for module in ("conv1", "gn1", "bn1"))),
    "fpn": Part("Conv_Body.conv_top", "Conv_Body.conv_top.1", "Conv_Body.conv_top.1"),
    "mrcnn": Part("Mask_Head.conv_fcn.0", "Mask_Head.conv_fcn.1", "Mask_Head.conv_fcn.1"),
}
_BOX_HEAD = Part("Box_Head.convs.0", "Box_Head.convs.1", "Box_Head.convs.1")


def layer_options(names: Collection[str]) -> dict[str, Any]:
    """The options that tensors with these names, the original's, need; those of absent parts are left out."""
    options: dict[str, Any] = {}
    for name, part in _PARTS.items():
        if any(tensor.startswith(part.convolution) for tensor in names):
            norm = _norm(part, names)
            options |= {f"{name}.use_gn": norm == "gn", f"{name}.use_bn": norm == "bn"}
    if f"{_BOX_HEAD.convolution}.weight" in names:
        norm = _norm(_BOX_HEAD, names)
        options["fast_rcnn.roi_box_head"] = f"roi_Xconv1fc_{norm}_head" if norm else "roi_Xconv1fc_head"
    elif "Box_Head.fc1.weight" in names:
        options["fast_rcnn.roi_box_head"] = "roi_2mlp_head"
    convolutions = [name for name in names if re.fullmatch(r"RPN\.FPN_RPN_conv\d*\.weight", name)]
    if convolutions:
        options["fpn.rpn_num_convs"] = len(convolutions)
    return options


def _norm(part, names):
    """The kind of norm in a part, "bn", "gn" or None."""
    if f"{part.batch_norm}.running_var" in names:
        return "bn"
    return "gn" if f"{part.group_norm}.weight" in names else None
