"""Faster R-CNN R-50-FPN with the DIoU loss, 1x schedule on COCO 2017.

python main.py --config configs/diou.py
python main.py --config configs/diou.py:r101
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    config = base.get_config(body)
    config.model.loss_type = "diou"
    config.model.loss_bbox_weight = 12.0
    return config
