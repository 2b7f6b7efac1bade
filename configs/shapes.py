"""A small detector on the embedded data set, from random weights, with the CIoU loss.

    python main.py --config configs/shapes.py

The run trains and evaluates within five minutes on two CPU cores.
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    config = base.get_config(body)
    config.num_gpus = 1
    config.model.loss_type = "ciou"
    config.model.loss_bbox_weight = 12.0

    config.resnets.blocks = (1, 1, 1, 1)
    config.resnets.width_per_group = 16
    config.resnets.stem_width = 16
    config.resnets.stride_1x1 = False
    config.resnets.use_gn = True
    config.resnets.freeze_at = 0
    config.group_norm.num_groups = 8
    config.fpn.dim = 48
    config.fpn.use_gn = False
    config.fpn.rpn_anchor_start_size = 12
    config.fpn.roi_canonical_scale = 128
    config.fast_rcnn.mlp_head_dim = 128

    config.train.datasets = ("train",)
    config.train.scales = (128,)
    config.train.max_size = 128
    config.train.ims_per_batch = 8
    config.train.batch_size_per_im = 48
    config.train.fg_fraction = 0.5
    config.train.rpn_batch_size_per_im = 128
    config.train.rpn_pre_nms_top_n = 256
    config.train.rpn_post_nms_top_n = 800
    config.test.datasets = ("val",)
    config.test.scale = 128
    config.test.max_size = 128
    config.test.ims_per_batch = 20
    config.test.rpn_pre_nms_top_n = 256
    config.test.rpn_post_nms_top_n = 100

    config.solver.type = "Adam"
    config.solver.base_lr = 0.002
    config.solver.bias_double_lr = False
    config.solver.steps = (0, 1200, 1680)
    config.solver.max_iter = 1850
    config.solver.warm_up_iters = 50
    config.solver.clip_norm = 10.0

    config.data.source = "shapes"
    config.data.root = "data/shapes"
    config.data.max_boxes = 16
    config.data.threads = 1
    config.checkpoint.every = 500
    return config
