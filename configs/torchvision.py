"""Faster R-CNN R-50-FPN as torchvision builds it, for its weights.

python main.py --config configs/torchvision.py --mode import --source fasterrcnn_resnet50_fpn.pth
python main.py --config configs/torchvision.py:r50_bn --mode import --source fasterrcnn_resnet50_fpn_v2.pth
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    """`base` with torchvision's images, strides, boxes, anchors and suppression; `r50_bn` is the second version."""
    config = base.get_config(body)
    config.pixel_means = (103.53, 116.28, 123.675)
    config.resnets.stride_1x1 = False
    config.resnets.freeze_at = 2  # for fine-tuning, as torchvision does from trained weights
    if config.resnets.use_bn:
        config.fpn.rpn_num_convs = 2
    config.model.box_convention = "torchvision"
    config.test.diou_nms.enabled = False
    return config
