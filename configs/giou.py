"""Faster R-CNN R-50-FPN with the GIoU loss, 1x schedule on COCO 2017.

python main.py --config configs/giou.py
python main.py --config configs/giou.py:r101
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    config = base.get_config(body)
    config.model.loss_type = "giou"
    config.model.loss_bbox_weight = 12.0
    return config
