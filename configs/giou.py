"""Faster R-CNN R-50-FPN with the GIoU loss, 1x schedule on COCO 2017.

python main.py --config configs/giou.py --workdir runs/giou
python main.py --config configs/giou.py:r101 --workdir runs/giou_r101
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    config = base.get_config(body)
    config.model.loss_type = "giou"
    config.model.loss_bbox_weight = 12.0
    return config
