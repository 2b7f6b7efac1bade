"""Faster R-CNN R-50-FPN with the IoU loss, 1x schedule on COCO 2017.

python main.py --config configs/iou.py
python main.py --config configs/iou.py:r101
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    config = base.get_config(body)
    config.model.loss_type = "iou"
    config.model.loss_bbox_weight = 12.0
    return config
