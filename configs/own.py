"""Own data: options that depend on the data and the devices are chosen when a run starts, and printed.

python main.py --config configs/own.py --config.data.root=FOLDER --workdir runs/own

These options are open: they have no value here (None). docs/own_data.md has the rule. Any of them can be given.
"""

from ml_collections import config_dict

from diou_jax.configs import base

OPEN = {
    "num_gpus": int,
    "pixel_means": tuple,
    "model.cls_agnostic_bbox_reg": bool,
    "model.bbox_reg_weights": tuple,
    "model.box_convention": str,
    "resnets.blocks": tuple,
    "resnets.num_groups": int,
    "resnets.width_per_group": int,
    "resnets.stem_width": int,
    "resnets.stride_1x1": bool,
    "resnets.freeze_at": int,
    "resnets.use_gn": bool,
    "resnets.use_bn": bool,
    "group_norm.num_groups": int,
    "group_norm.dim_per_gp": int,
    "group_norm.epsilon": float,
    "batch_norm.epsilon": float,
    "fpn.dim": int,
    "fpn.use_gn": bool,
    "fpn.use_bn": bool,
    "fpn.rpn_num_convs": int,
    "fpn.coarsest_stride": int,
    "fpn.rpn_anchor_start_size": int,
    "fpn.rpn_aspect_ratios": tuple,
    "fpn.roi_canonical_scale": int,
    "fpn.roi_canonical_level": int,
    "fpn.mask_padding_train": bool,
    "fast_rcnn.roi_box_head": str,
    "fast_rcnn.mlp_head_dim": int,
    "fast_rcnn.num_stacked_convs": int,
    "fast_rcnn.conv_head_dim": int,
    "fast_rcnn.roi_xform_resolution": int,
    "fast_rcnn.roi_xform_sampling_ratio": int,
    "mrcnn.num_convs": int,
    "mrcnn.use_gn": bool,
    "mrcnn.use_bn": bool,
    "mrcnn.dim_reduced": int,
    "mrcnn.cls_specific_mask": bool,
    "mrcnn.resolution": int,
    "mrcnn.roi_xform_resolution": int,
    "mrcnn.roi_xform_sampling_ratio": int,
    "train.scales": tuple,
    "train.max_size": int,
    "train.ims_per_batch": int,
    "train.batch_size_per_im": int,
    "train.fg_fraction": float,
    "train.rpn_batch_size_per_im": int,
    "train.rpn_pre_nms_top_n": int,
    "train.rpn_post_nms_top_n": int,
    "test.scale": int,
    "test.max_size": int,
    "test.ims_per_batch": int,
    "test.detections_per_im": int,
    "test.rpn_pre_nms_top_n": int,
    "test.rpn_post_nms_top_n": int,
    "solver.type": str,
    "solver.base_lr": float,
    "solver.steps": tuple,
    "solver.max_iter": int,
    "solver.bias_double_lr": bool,
    "solver.warm_up_iters": int,
    "solver.clip_norm": float,
    "data.buckets": tuple,
    "data.max_boxes": int,
    "data.threads": int,
    "checkpoint.every": int,
}


def get_config(body: str = ""):
    """The config with open options; a `body`, an entry of `base.BODIES`, sets the options of that body."""
    config = base.get_config(body or "r50")
    settled = {f"resnets.{name}" for name in base.BODIES[body]} if body else set()
    for name, kind in OPEN.items():
        if name not in settled:
            *groups, option = name.split(".")
            group = config
            for key in groups:
                group = group[key]
            del group[option]  # otherwise the field would keep the type of its value
            group[option] = config_dict.placeholder(kind)
    config.model.loss_type = "ciou"
    config.model.loss_bbox_weight = 12.0
    config.data.source = "own"
    config.data.root = ""
    # The original leaves out anchors that cross the image's border. In small images nearly all of the coarse levels do;
    # untrained, they crowd out the proposals of a test (docs/results.md has the numbers).
    config.train.rpn_straddle_thresh = -1
    config.train.datasets = ("train",)
    config.test.datasets = ("val",)
    return config
