"""The long recipe: Faster R-CNN R-50-FPN from random weights, large-scale jitter, 400 epochs of COCO on 8 GPUs.

python main.py --config configs/lsj.py
python main.py --config configs/lsj.py --config.model.mask_on=True
python main.py --config configs/lsj.py --mode check --pictures seen     # the input of the training

It is torchvision's recipe of fasterrcnn_resnet50_fpn_v2 (github.com/pytorch/vision/pull/5763: 32 GPUs with two images
each), with batch norm over all devices; Detectron2's new_baselines have the same batch, jitter and length. Published AP
on COCO val2017, none of it measured here: torchvision 46.7, with masks 47.4 and 41.8 (pull 5773); Detectron2 with masks
47.4 and 42.5, after 100 epochs 44.6 and 40.3. docs/recipe.md has the sources of each setting, the differences and the
cost of a run.
"""

from diou_jax.configs import base


def get_config(body: str = "r50_bn"):
    """`base` with jitter, norm in neck and heads, 4conv1fc, and 400 epochs of 64 images."""
    config = base.get_config(body)
    config.dtype = "bfloat16"
    # For every body norm in neck and heads, and two convolutions in the RPN, as in torchvision and Detectron2.
    if not config.resnets.use_gn:
        config.fpn.use_bn = config.mrcnn.use_bn = config.fpn.mask_padding_train = True
        config.fast_rcnn.roi_box_head = "roi_Xconv1fc_bn_head"
    config.fpn.rpn_num_convs = 2
    # Ghiasi et al., 2021: factors 0.1 to 2.0 of a square of 1024. An object counts, however little of it is visible.
    config.train.jitter = (0.1, 2.0)
    config.train.jitter_size = 1024
    config.train.min_visible = 0.0
    # 400 epochs: 737500 x 64 images / 118000. torchvision's rate falls after epochs 352 and 384.
    config.train.ims_per_batch = 8
    config.solver.max_iter = 737500
    config.solver.steps = (0, 649000, 708000)
    config.solver.base_lr = 0.1
    config.solver.warm_up_iters = 1000
    config.solver.warm_up_factor = 0.001
    # torchvision decays everything alike, and biases have no rate of their own.
    config.solver.weight_decay = config.solver.weight_decay_gn = 4e-5
    config.solver.bias_weight_decay = True
    config.solver.bias_double_lr = False
    config.checkpoint.every = 10000
    return config
