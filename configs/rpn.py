"""The RPN alone on the R-50-FPN backbone, 1x schedule on COCO 2017.

python main.py --config configs/rpn.py
python main.py --config configs/rpn.py:r101

An evaluation prints the average recall of the proposals and writes them to rpn_proposals_<data set>.npz.
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    config = base.get_config(body)
    config.model.rpn_only = True
    config.test.rpn_post_nms_top_n = 2000
    return config
