"""Mask R-CNN R-50-FPN with the GIoU loss, 1x schedule on COCO 2017.

python main.py --config configs/mask.py
python main.py --config configs/mask.py:x101_32x8d
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    config = base.get_config(body)
    config.model.mask_on = True
    config.model.loss_type = "giou"
    config.model.loss_bbox_weight = 10.0
    return config
