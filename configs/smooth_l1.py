"""Faster R-CNN R-50-FPN with the smooth L1 loss, the baseline, 1x schedule on COCO 2017.

python main.py --config configs/smooth_l1.py
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    return base.get_config(body)
