"""Faster R-CNN R-50-FPN with the GIoU loss in the box head and in the RPN, 1x schedule on COCO 2017.

python main.py --config configs/rpn_giou.py
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    config = base.get_config(body)
    config.model.loss_type = "giou"
    config.model.loss_bbox_weight = 12.0
    config.model.rpn_loss_type = "giou"
    return config
