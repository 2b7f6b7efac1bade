"""Mask R-CNN R-50-FPN with GroupNorm from random weights, as the original's scratch schedule has it on COCO 2017.

python main.py --config configs/mask_gn.py
python main.py --config configs/mask_gn.py:r101_gn --config.resnets.freeze_at=0

As in the original, the stem and res2 keep their random weights; `resnets.freeze_at=0` trains them, too.
"""

from diou_jax.configs import base


def get_config(body: str = "r50_gn"):
    config = base.get_config(body)
    config.model.mask_on = True
    config.resnets.freeze_at = 2
    config.solver.max_iter = 270000
    config.solver.steps = (0, 210000, 250000)
    return config
