"""Every option: its default, the values that it may have, and its meaning.

The defaults train Faster R-CNN R-50-FPN with smooth L1 and the 1x schedule on COCO 2017. Options have the original's
names in lower case and the defaults of its R-50-FPN configs, else its global defaults. The other files in this folder
change single options.

A new option is one entry in `OPTIONS` and its use. The check before a run, error messages and docs/options.md follow
from the entry (``python -m diou_jax.options.page`` writes the page). `relations.py` checks options against each other.
"""

from collections.abc import Collection
from typing import Any

import ml_collections

from diou_jax import option_kinds
from diou_jax.configs import relations
from diou_jax.errors import UserError
from diou_jax.option_kinds import Choice, Flag, Option, Real, Several, Text, WhichCheckpoint, Whole

BODIES: dict[str, dict[str, Any]] = {
    "r50": {"blocks": (3, 4, 6, 3)},
    "r101": {"blocks": (3, 4, 23, 3)},
    "x101_32x8d": {"blocks": (3, 4, 23, 3), "num_groups": 32, "width_per_group": 8, "stride_1x1": False},
    "x101_64x4d": {"blocks": (3, 4, 23, 3), "num_groups": 64, "width_per_group": 4, "stride_1x1": False},
    "r50_gn": {"blocks": (3, 4, 6, 3), "use_gn": True, "stride_1x1": False, "freeze_at": 0},
    "r101_gn": {"blocks": (3, 4, 23, 3), "use_gn": True, "stride_1x1": False, "freeze_at": 0},
    "r50_bn": {"blocks": (3, 4, 6, 3), "use_bn": True, "stride_1x1": False, "freeze_at": 0},
    "r101_bn": {"blocks": (3, 4, 23, 3), "use_bn": True, "stride_1x1": False, "freeze_at": 0},
}
BOX_HEADS = ("roi_2mlp_head", "roi_Xconv1fc_head", "roi_Xconv1fc_gn_head", "roi_Xconv1fc_bn_head")
LOSSES = ("smooth_l1", "sl1", "iou", "giou", "diou", "ciou")
MASK_HEURISTICS = ("SOFT_AVG", "SOFT_MAX", "LOGIT_AVG")
VOTES = ("ID", "TEMP_AVG", "AVG", "IOU_AVG", "GENERALIZED_AVG", "QUASI_SUM")

# fmt: off
OPTIONS = (
    Option("num_gpus", 8, Whole(1),
           "number of devices for which `solver.base_lr`, `solver.steps` and `solver.max_iter` are written; a run "
           "always uses all devices", there="1"),
    Option("rng_seed", 3, Whole(0, 2**31 - 1),
           "seed of weights, order of the data and sampling; everything random follows from it and the step",
           there="17"),
    Option("dtype", "float32", Choice(("float32", "bfloat16")),
           "dtype of the network's arithmetic; parameters are float32", original=None),
    Option("pixel_means", (102.9801, 115.9465, 122.7717), Several(Real(), length=3),
           "means of blue, green and red, subtracted from images with values 0 to 255"),
    Option("init.checkpoint", "", Text(),
           "workdir of another run, or weight file, from which a new run starts; classes are matched by name, the "
           "rows of others are initialised randomly, and the log lists them", original=None, free=True),
    Option("init.which", "last", WhichCheckpoint(),
           "the checkpoint of that workdir", original=None, free=True),
    Option("model.loss_type", "smooth_l1", Choice(LOSSES),
           "box loss of the box head; `sl1` is `smooth_l1`"),
    Option("model.loss_bbox_weight", 1.0, Real(0),
           "weight of the box loss of the box head; 12 in the configs of the four IoU losses"),
    Option("model.rpn_loss_type", "smooth_l1", Choice(LOSSES),
           "box loss of the RPN; the original has a config that sets it, but no such option"),
    Option("model.rpn_loss_bbox_weight", 1.0, Real(0), "weight of the box loss of the RPN"),
    Option("model.cls_agnostic_bbox_reg", False, Flag(), "one box per RoI instead of one per class"),
    Option("model.bbox_reg_weights", (10.0, 10.0, 5.0, 5.0), Several(Real(0, above=True), length=4),
           "weights of the box head's deltas of x, y, width and height"),
    Option("model.box_convention", "detectron", Choice(("detectron", "torchvision")),
           "`torchvision`, for weights that torchvision trained: boxes are scaled and pooled by their edges, proposals "
           "are clipped to the image, anchors have whole coordinates and are centred on corners of cells",
           original=None),
    Option("model.mask_on", False, Flag(), "Mask R-CNN: a head that predicts a mask for each object"),
    Option("model.faster_rcnn", True, Flag(),
           "whether an RPN makes the proposals; `False`, Fast R-CNN: they come from `train.proposal_files` and "
           "`test.proposal_files`", there="False"),
    Option("model.rpn_only", False, Flag(),
           "train the RPN without a RoI head; an evaluation measures the recall of its proposals and writes them to a "
           "file"),
    Option("resnets.blocks", (3, 4, 6, 3), Several(Whole(1), length=4),
           "bottlenecks in res2 to res5; the body named after the colon of `--config` sets this and its other "
           "`resnets` options", original="MODEL.CONV_BODY"),
    Option("resnets.num_groups", 1, Whole(1), "groups of the 3×3 convolutions; more than one is ResNeXt"),
    Option("resnets.width_per_group", 64, Whole(1),
           "channels per group of res2's bottlenecks; each stage doubles them"),
    Option("resnets.stem_width", 64, Whole(1), "channels of the 7×7 convolution", original=None),
    Option("resnets.stride_1x1", True, Flag(),
           "whether the first 1×1 convolution of a stage has its stride, instead of the 3×3"),
    Option("resnets.freeze_at", 2, Whole(0, 5), "res1 to res*this* keep their weights; 0 trains everything"),
    Option("resnets.use_gn", False, Flag(), "GroupNorm, for training from scratch, instead of frozen affine layers"),
    Option("resnets.use_bn", False, Flag(),
           "batch norm that learns, with statistics over the images of all devices, instead of frozen affine layers; "
           "stages that `resnets.freeze_at` freezes keep theirs", original=None),
    Option("resnets.imagenet_pretrained_weights", "", Text(),
           "weight file from which the backbone of a new run starts: torch's, safetensors or Detectron's; empty: "
           "random weights", free=True),
    Option("resnets.imagenet_style", "auto", Choice(("auto", "caffe", "torchvision")),
           "style of `resnets.imagenet_pretrained_weights`: `caffe` (BGR minus means, stride in the 1×1) or "
           "`torchvision` (RGB of unit variance, stride in the 3×3); `auto` recognises it by batch-norm statistics "
           "and refuses a file that has none. torchvision's needs `resnets.stride_1x1=False` and "
           "`pixel_means=(103.53,116.28,123.675)`; the rest is folded into its first convolution",
           original=None, free=True),
    Option("group_norm.num_groups", 32, Whole(1),
           "groups of channels; reduced to the next smaller number that divides the channels into groups of at least "
           "two"),
    Option("group_norm.dim_per_gp", -1, Whole(-1),
           "channels per group; if positive, it replaces `group_norm.num_groups`"),
    Option("group_norm.epsilon", 1e-5, Real(0, above=True), "added to the variance"),
    Option("batch_norm.momentum", 0.1, Real(0, 1), "weight of a batch in the running statistics", original=None),
    Option("batch_norm.epsilon", 1e-5, Real(0, above=True), "added to the variance", original=None),
    Option("fpn.dim", 256, Whole(1), "channels of every pyramid level"),
    Option("fpn.use_gn", False, Flag(), "GroupNorm after the pyramid's convolutions; on for the `_gn` bodies"),
    Option("fpn.use_bn", False, Flag(),
           "batch norm after the pyramid's convolutions, as `resnets.use_bn`; on for the `_bn` bodies", original=None),
    Option("fpn.coarsest_stride", 32, Whole(32), "images are padded to a multiple of this number of pixels"),
    Option("fpn.rpn_anchor_start_size", 32, Whole(1), "side of P2's anchors in pixels, doubled at each level"),
    Option("fpn.rpn_aspect_ratios", (0.5, 1.0, 2.0), Several(Real(0, above=True), least=1),
           "height over width of the anchors"),
    Option("fpn.rpn_num_convs", 1, Whole(1), "3×3 convolutions of the RPN; torchvision's `_v2` models have two",
           original=None),
    Option("fpn.rpn_collect_scale", 1.0, Real(0, above=True),
           "proposals that a device's minibatch keeps over all levels, as a multiple of `train.rpn_post_nms_top_n`; "
           "follows the images per device"),
    Option("fpn.roi_canonical_scale", 224, Whole(1),
           "side in pixels of a RoI that is pooled from `fpn.roi_canonical_level`"),
    Option("fpn.roi_canonical_level", 4, Whole(0), "level for RoIs of side `fpn.roi_canonical_scale`"),
    Option("fpn.mask_padding", True, Flag(),
           "in tests, hold activations beyond an image's own padding at zero, so that its detections do not depend on "
           "its bucket", original=None),
    Option("fpn.mask_padding_train", False, Flag(), "as `fpn.mask_padding`, in training", original=None),
    Option("fast_rcnn.roi_box_head", "roi_2mlp_head", Choice(BOX_HEADS),
           "the box head: `roi_2mlp_head` has two fully connected layers, `roi_Xconv1fc_head` 3×3 convolutions and one "
           "such layer, `roi_Xconv1fc_gn_head` GroupNorm as well, for the `_gn` bodies, and `roi_Xconv1fc_bn_head` "
           "batch norm", there='""'),
    Option("fast_rcnn.mlp_head_dim", 1024, Whole(1), "units of the box head's fully connected layers"),
    Option("fast_rcnn.num_stacked_convs", 4, Whole(1), "convolutions of `roi_Xconv1fc_head` and its kin"),
    Option("fast_rcnn.conv_head_dim", 256, Whole(1), "channels of these convolutions"),
    Option("fast_rcnn.roi_xform_resolution", 7, Whole(1), "bins of RoIAlign per axis", there="14"),
    Option("fast_rcnn.roi_xform_sampling_ratio", 2, Whole(0),
           "samples per bin and axis; 0 takes as many as the bin has pixels", there="0"),
    Option("mrcnn.resolution", 28, Whole(2, 32), "cells of a predicted mask along each side", there="14"),
    Option("mrcnn.roi_xform_resolution", 14, Whole(1), "bins of RoIAlign per axis for masks", there="7"),
    Option("mrcnn.roi_xform_sampling_ratio", 2, Whole(0), "as `fast_rcnn.roi_xform_sampling_ratio`, for masks",
           there="0"),
    Option("mrcnn.dim_reduced", 256, Whole(1), "channels of the mask head"),
    Option("mrcnn.num_convs", 4, Whole(0), "3×3 convolutions of the mask head", original="MRCNN.ROI_MASK_HEAD"),
    Option("mrcnn.use_gn", False, Flag(),
           "GroupNorm after the mask head's 3×3 convolutions; on for the `_gn` bodies",
           original="MRCNN.ROI_MASK_HEAD"),
    Option("mrcnn.use_bn", False, Flag(), "batch norm there, as `resnets.use_bn`; on for the `_bn` bodies",
           original=None),
    Option("mrcnn.cls_specific_mask", True, Flag(), "one mask per class instead of one for all"),
    Option("mrcnn.weight_loss_mask", 1.0, Real(0), "weight of the mask loss"),
    Option("mrcnn.thresh_binarize", 0.5, Real(0, 1), "pixels with a higher probability belong to a mask", free=True),
    Option("train.datasets", ("coco_2017_train",), Several(Text(empty=False), least=1),
           "training sets; several are joined", there="()"),
    Option("train.scales", (800,), Several(Whole(1), least=1),
           "lengths of the shorter side in pixels, one of which is drawn for each image", there="(600,)"),
    Option("train.max_size", 1333, Whole(1), "limit of the longer side in pixels", there="1000"),
    Option("train.jitter", (), Several(Real(0, above=True), rising=True),
           "large-scale jitter in place of `train.scales` and `train.max_size`: the smallest and the largest factor of "
           "an image, where 1 is the largest size that fits into the square; (0.1, 2.0) in the literature; (): off",
           original=None),
    Option("train.jitter_size", 1024, Whole(32),
           "side in pixels of the square to which `train.jitter` cuts an image, at a random place", original=None),
    Option("train.iou_crop", 0.0, Real(0, 1),
           "probability of a crop as in SSD: a random part that holds the centre of an object and overlaps it enough",
           original=None),
    Option("train.photometric", 0.0, Real(0, 1),
           "probability of each of a random brightness, contrast, saturation and hue, in the ranges of SSD",
           original=None),
    Option("train.min_visible", 0.1, Real(0, 1),
           "share of its box that an object must keep in a part of its image; with less it is left out. Boxes are cut "
           "off where the part ends", original=None),
    Option("train.ims_per_batch", 2, Whole(1),
           "images per device and iteration, for which `solver.base_lr` is written; `train.batch_size` is another "
           "number of images, which the learning rate follows"),
    Option("train.batch_size", 0, Whole(0),
           "images per iteration over all devices; 0 means `train.ims_per_batch` on each device, whereas the original "
           "keeps `NUM_GPUS` × `TRAIN.IMS_PER_BATCH` of its config", original="--bs"),
    Option("train.use_flipped", True, Flag(), "whether an epoch has each image also mirrored"),
    Option("train.drop_empty", True, Flag(),
           "leave out images without a box, or with crowds only, as the original always does", original=None),
    Option("train.gt_min_area", -1.0, Real(),
           "objects with a smaller area in the json are left out of the ground truth", there="-1"),
    Option("train.batch_size_per_im", 512, Whole(1), "RoIs sampled per image", there="64"),
    Option("train.fg_fraction", 0.25, Real(0, 1), "largest share of objects among sampled RoIs"),
    Option("train.fg_thresh", 0.5, Real(0, 1), "IoU from which on a RoI is an object"),
    Option("train.bg_thresh_hi", 0.5, Real(0, 1), "a RoI is background if its IoU is below this …"),
    Option("train.bg_thresh_lo", 0.0, Real(0, 1), "… and at least this"),
    Option("train.crowd_filter_thresh", 0.0, Real(0, 1),
           "RoIs are not sampled if a larger share of their area lies in a crowd region; 0: off, as the original's "
           "end-to-end training ignores its 0.7, which acts on proposals from files only", there="0.7"),
    Option("train.proposal_files", (), Several(Text(empty=False)),
           "for `model.faster_rcnn=False`: files of proposals, one for each of `train.datasets`; an evaluation with "
           "`model.rpn_only` writes them, and Detectron's `rpn_proposals.pkl` are read", free=True),
    Option("train.proposal_limit", 2000, Whole(1),
           "proposals of an image that are taken from a file, best first; the original takes all", original=None),
    Option("train.rpn_batch_size_per_im", 256, Whole(1), "anchors sampled per image"),
    Option("train.rpn_fg_fraction", 0.5, Real(0, 1), "largest share of objects among sampled anchors"),
    Option("train.rpn_positive_overlap", 0.7, Real(0, 1), "IoU from which on an anchor is an object"),
    Option("train.rpn_negative_overlap", 0.3, Real(0, 1), "IoU below which an anchor is background"),
    Option("train.rpn_straddle_thresh", 0, Whole(-(2**31)),
           "pixels by which a sampled anchor may reach out of the image; negative: no limit"),
    Option("train.rpn_nms_thresh", 0.7, Real(0, 1), "IoU at which a proposal suppresses another"),
    Option("train.rpn_pre_nms_top_n", 2000, Whole(1), "anchors per level that enter suppression", there="12000"),
    Option("train.rpn_post_nms_top_n", 2000, Whole(1), "proposals kept per level, and of all levels"),
    Option("train.rpn_min_size", 0, Whole(0), "smallest side of a proposal, pixels of the original image"),
    Option("train.max_bad_steps", 20, Whole(1),
           "skipped updates in a row (loss or gradient not finite) after which the run goes back to its last "
           "checkpoint", original=None, free=True),
    Option("train.max_rollbacks", 2, Whole(0),
           "times that a run goes back before it stops, names the tensor and writes the batch to a file",
           original=None, free=True),
    Option("train.early_stopping.patience", 0, Whole(0),
           "evaluations in a row (`test.every`) in which the metric of `checkpoint.best` has not improved and after "
           "which the run ends as a finished one; 0: it never ends early", original=None, free=True),
    Option("train.early_stopping.min_delta", 0.0, Real(0),
           "a metric has improved if it is better than its best value by more than this", original=None, free=True),
    Option("test.datasets", ("coco_2017_val",), Several(Text(empty=False)),
           "test sets; each is evaluated separately", there="()", free=True),
    Option("test.proposal_files", (), Several(Text(empty=False)),
           "as `train.proposal_files`, one for each of `test.datasets`", free=True),
    Option("test.proposal_limit", 2000, Whole(1),
           "proposals of an image that are taken from a file, best first", free=True),
    Option("test.losses", 0, Whole(0),
           "images of each test set, spread over those with an object, on which an evaluation also computes the losses "
           "of training (`val/loss`, ...); 0: none", original=None, free=True),
    Option("test.max_dets", 100, Whole(11),
           "detections per class and image that COCOeval counts; the name of the AR statistic contains this number",
           original=None, free=True),
    Option("test.compare_nms", True, Flag(),
           "an evaluation also applies greedy NMS and DIoU-NMS to the same candidates, and counts the detections that "
           "only one of both keeps, rightly or wrongly; see [comparing.md](comparing.md)",
           original=None, free=True),
    Option("test.every", 0, Whole(0),
           "training steps between evaluations; 0: only at the end", original=None, free=True),
    Option("test.ema", True, Flag(),
           "with `solver.ema_decay`: evaluate, predict and export the averaged weights; `False`: those that the "
           "optimiser changes", original=None, free=True),
    Option("test.scale", 800, Whole(1), "length of the shorter side in pixels", there="600", free=True),
    Option("test.max_size", 1333, Whole(1), "limit of the longer side in pixels", there="1000", free=True),
    Option("test.ims_per_batch", 1, Whole(1),
           "images per device and call; detections do not depend on it", original=None, free=True),
    Option("test.score_thresh", 0.05, Real(0, 1), "detections have higher scores than this", free=True),
    Option("test.nms", 0.5, Real(0, 1),
           "overlap at which a detection suppresses another of its class", there="0.3", free=True),
    Option("test.diou_nms.enabled", True, Flag(),
           "suppression by DIoU instead of IoU; on in every config of the original, for any loss", free=True),
    Option("test.diou_nms.beta1", 1.0, Real(0, above=True, infinite=True),
           "exponent of DIoU's distance penalty; values below 1 suppress less; `inf`: no penalty, as in greedy NMS",
           free=True),
    Option("test.soft_nms.enabled", False, Flag(),
           "soft-NMS: lower the scores of overlapping boxes instead of removing them; replaces `test.diou_nms.enabled`",
           free=True),
    Option("test.soft_nms.method", "linear", Choice(("linear", "gaussian", "hard")),
           "factor of the score. `linear`: 1 - overlap, above `test.nms`; `gaussian`: exp(-overlap²/sigma); `hard`: 0, "
           "above `test.nms`", free=True),
    Option("test.soft_nms.sigma", 0.5, Real(0, above=True), "sigma of the method `gaussian`", free=True),
    Option("test.soft_nms.beta1", 0.8, Real(0, above=True, infinite=True),
           "exponent of the distance penalty in soft-NMS, a constant in the original; `inf`: no penalty",
           original=None, free=True),
    Option("test.bbox_vote.enabled", False, Flag(),
           "box voting: a detection becomes the mean of the boxes of its class that overlap it, weighted by score",
           free=True),
    Option("test.bbox_vote.vote_th", 0.8, Real(0, 1), "IoU from which on a box votes", free=True),
    Option("test.bbox_vote.scoring_method", "ID", Choice(VOTES),
           "score after voting. `ID`: unchanged; the other methods compute it from the votes' scores before soft-NMS, "
           "see `diou_jax/detection/box_vote.py`", free=True),
    Option("test.bbox_vote.scoring_method_beta", 1.0, Real(0, above=True),
           "temperature of `TEMP_AVG`, exponent of `GENERALIZED_AVG` and `QUASI_SUM`; the original ignores it",
           free=True),
    Option("test.bbox_aug.enabled", False, Flag(),
           "augmented testing: the boxes of several passes over each image are united before suppression. The "
           "following options add passes, in this order, before the usual one; each has proposals of its own",
           free=True),
    Option("test.bbox_aug.h_flip", False, Flag(), "a pass over the mirrored image", free=True),
    Option("test.bbox_aug.scales", (), Several(Whole(1)),
           "a pass for each of these lengths of the shorter side in pixels …", free=True),
    Option("test.bbox_aug.max_size", 4000, Whole(1), "… with this limit of the longer side", free=True),
    Option("test.bbox_aug.scale_h_flip", False, Flag(), "each of these passes over the mirrored image, too",
           free=True),
    Option("test.bbox_aug.aspect_ratios", (), Several(Real(0, above=True)),
           "a pass for each of these factors of the width", free=True),
    Option("test.bbox_aug.aspect_ratio_h_flip", False, Flag(), "each of these passes over the mirrored image, too",
           free=True),
    Option("test.mask_aug.enabled", False, Flag(),
           "augmented testing of masks: the masks of the final boxes are combined from several passes; the usual pass "
           "comes first, the others as in `test.bbox_aug.enabled`", free=True),
    Option("test.mask_aug.heur", "SOFT_AVG", Choice(MASK_HEURISTICS),
           "how masks are combined. `SOFT_AVG`: mean of the probabilities, `SOFT_MAX`: the largest, `LOGIT_AVG`: "
           "probability of the mean logit", free=True),
    Option("test.mask_aug.h_flip", False, Flag(), "as `test.bbox_aug.h_flip`", free=True),
    Option("test.mask_aug.scales", (), Several(Whole(1)), "as `test.bbox_aug.scales`", free=True),
    Option("test.mask_aug.max_size", 4000, Whole(1), "as `test.bbox_aug.max_size`", free=True),
    Option("test.mask_aug.scale_h_flip", False, Flag(), "as `test.bbox_aug.scale_h_flip`", free=True),
    Option("test.mask_aug.aspect_ratios", (), Several(Real(0, above=True)), "as `test.bbox_aug.aspect_ratios`",
           free=True),
    Option("test.mask_aug.aspect_ratio_h_flip", False, Flag(), "as `test.bbox_aug.aspect_ratio_h_flip`", free=True),
    Option("test.detections_per_im", 100, Whole(1), "largest number of detections per image, over all classes",
           free=True),
    Option("test.rpn_nms_thresh", 0.7, Real(0, 1), "as `train.rpn_nms_thresh`", free=True),
    Option("test.rpn_pre_nms_top_n", 1000, Whole(1), "as `train.rpn_pre_nms_top_n`", there="12000", free=True),
    Option("test.rpn_post_nms_top_n", 1000, Whole(1),
           "as `train.rpn_post_nms_top_n`, for each image", there="2000", free=True),
    Option("test.rpn_min_size", 0, Whole(0), "as `train.rpn_min_size`", free=True),
    Option("predict.tile", 0, Whole(0),
           "side in pixels of the tiles that `--mode predict` and `Detector` divide larger images into; 0: none, see "
           "[prediction.md](prediction.md)", original=None, free=True),
    Option("predict.tile_overlap", 128, Whole(0),
           "smallest overlap of neighbouring tiles, pixels; objects of up to three quarters of it are whole in a tile",
           original=None, free=True),
    Option("predict.tile_whole", True, Flag(),
           "whether the whole image is one more view beside its tiles, for objects larger than the overlap",
           original=None, free=True),
    Option("solver.type", "SGD", Choice(("SGD", "Adam", "AdamW")),
           "the optimiser; `AdamW` decays weights by themselves, not through the gradient's moments"),
    Option("solver.base_lr", 0.02, Real(0, 1e6), "learning rate after the warm-up", there="0.001"),
    Option("solver.lr_policy", "steps_with_decay", Choice(("steps_with_decay", "cosine", "linear")),
           "how the learning rate falls after the warm-up: by `solver.gamma` at each of `solver.steps`, or to 0 at "
           "`solver.max_iter` along half a cosine or a line, which do not read `solver.steps`; the original always has "
           "the first policy", there='"step"'),
    Option("solver.gamma", 0.1, Real(0, 1), "factor of the learning rate at each of `solver.steps`"),
    Option("solver.steps", (0, 60000, 80000), Several(Whole(0), rising=True),
           "iterations at which the learning rate falls; the first one is ignored", there="()", free=True),
    Option("solver.max_iter", 90000, Whole(1), "number of iterations", there="40000", free=True),
    Option("solver.momentum", 0.9, Real(0, 1), "momentum of SGD"),
    Option("solver.weight_decay", 0.0001, Real(0, 1), "weight decay of weights", there="0.0005"),
    Option("solver.weight_decay_gn", 0.0, Real(0, 1), "weight decay of GroupNorm's scales"),
    Option("solver.bias_double_lr", True, Flag(), "biases have twice the learning rate"),
    Option("solver.bias_weight_decay", False, Flag(), "biases decay as weights do"),
    Option("solver.backbone_lr", 1.0, Real(0), "factor of the backbone's learning rate", original=None),
    Option("solver.layer_decay", 1.0, Real(0, 1, above=True),
           "factor of the learning rate from a stage of the backbone to the stage below it; res5 has "
           "`solver.backbone_lr`, res4 this times as much, and so on down to the stem", original=None),
    Option("solver.warm_up_iters", 500, Whole(0), "number of iterations of warm-up"),
    Option("solver.warm_up_factor", 1 / 3, Real(0, 1), "factor of the learning rate at the start of the warm-up"),
    Option("solver.warm_up_method", "linear", Choice(("linear", "constant")),
           "whether the factor rises linearly to 1 or stays constant during the warm-up"),
    Option("solver.scale_momentum", True, Flag(),
           "scale the momentum buffers with the learning rate when it jumps …"),
    Option("solver.scale_momentum_threshold", 1.1, Real(0, above=True), "… by more than this factor"),
    Option("solver.iter_size", 1, Whole(1),
           "iterations whose gradients are summed for one update", original="--iter_size"),
    Option("solver.clip_norm", 0.0, Real(0), "limit of the gradient's global norm; 0: no limit", original=None),
    Option("solver.ema_decay", 0.0, Real(0, 1, below=True),
           "share that the exponential moving average of the weights keeps at each update, such as 0.9998; 0: no "
           "average. Evaluation, prediction and export use the average, see [training.md](training.md)",
           original=None),
    Option("solver.scale_with_devices", True, Flag(),
           "the original's linear rule: learning rate, steps, length and `fpn.rpn_collect_scale` follow the batch size "
           "that the devices give; False pins them", original=None),
    Option("data.source", "coco", Choice(("coco", "own", "tfds", "shapes")),
           "`coco`: json and images; `own`: files of any layout, which are searched, see [own_data.md](own_data.md); "
           "`tfds`: a prepared `coco/2017`; `shapes`: drawn at first use", original=None),
    Option("data.root", "data/coco", Text(),
           "folder with `annotations/` and `images/`", original="DATA_DIR", free=True),
    Option("data.train_annotations", "", Text(),
           "for `own`: json of the training set; empty: it is searched", original=None, free=True),
    Option("data.train_images", "", Text(),
           "for `own`: folder to which file names in the json are relative; empty: it is searched",
           original=None, free=True),
    Option("data.val_annotations", "", Text(),
           "json to evaluate against; empty: for `own` it is searched, for `tfds` it lies beside the records",
           original=None, free=True),
    Option("data.val_images", "", Text(), "for `own`: as `data.train_images`, for validation", original=None,
           free=True),
    Option("data.val_share", 0.2, Real(0, 1, above=True, below=True),
           "for `own`: share of validation images if one json holds all images", original=None),
    Option("data.split_seed", 0, Whole(0), "for `own`: seed of the choice of validation images", original=None),
    Option("data.buckets", (), Several(Several(Whole(1), length=2)),
           "shapes of the network's input, ((height, width), …); empty: chosen by scale and limit of size",
           original=None),
    Option("data.repeat_threshold", 0.0, Real(0, 1),
           "repeat images with rare classes: a class in the share f of the training images below this threshold t has "
           "the factor √(t / f), and an epoch has an image as often as the largest factor of its classes says (LVIS); "
           "0: off", original=None),
    Option("data.max_boxes", 128, Whole(1), "ground-truth boxes per image; the largest are kept", original=None),
    Option("data.max_vertices", 0, Whole(0, 4096),
           "vertices of an object's outline, which is simplified to fewer if it has more; 0: as many as the largest "
           "outline of the training set has, at most 256", original=None),
    Option("data.threads", 4, Whole(1),
           "threads that read and decode, in each process that reads", original="DATA_LOADER.NUM_THREADS", free=True),
    Option("data.workers", 0, Whole(0),
           "additional processes that read and decode; 0: threads of the run itself do", original=None, free=True),
    Option("data.timeout", 300.0, Real(0),
           "seconds without a batch after which the run ends and names the missing files; it warns every 30 s; 0: it "
           "never ends", original=None, free=True),
    Option("data.prefetch", 2, Whole(0), "batches placed on the device in advance", original=None, free=True),
    Option("data.on_bad_image", "skip", Choice(("skip", "error")),
           "`skip` names an unreadable image in the log and takes another; in evaluation it has no detections. `error` "
           "ends the run", original=None),
    Option("checkpoint.every", 2500, Whole(1),
           "iterations between checkpoints; the original divides its number by `NUM_GPUS`",
           original="TRAIN.SNAPSHOT_ITERS", there="20000", free=True),
    Option("checkpoint.keep", 3, Whole(1), "number of newest checkpoints that are kept", original=None, free=True),
    Option("checkpoint.best", "auto", Text(),
           "with `test.every`: metric by which the best checkpoint is kept besides; `METRIC` or `DATASET:METRIC` as in "
           "metrics.jsonl, such as `AP50` or `val/loss`; `auto`: box AP of the first test set, for an RPN alone its "
           "recall; empty: none is kept", original=None, free=True),
    Option("checkpoint.lock", True, Flag(),
           "lock the workdir against other training runs; `False` for a file system without locks",
           original=None, free=True),
    Option("checkpoint.on_error", "error", Choice(("error", "warn")),
           "reaction to a checkpoint that cannot be written: `error` ends the run, `warn` logs a line",
           original=None, free=True),
    Option("log.every", 20, Whole(1), "iterations between lines of the log", original="--disp_interval", free=True),
    Option("log.images", 8, Whole(0),
           "pictures of detections beside ground truth at each evaluation", original=None, free=True),
    Option("log.report", True, Flag(),
           "pages for a browser: `report.html` after each evaluation, and `index.html`, the page of the run, which is "
           "written anew at each evaluation", original=None, free=True),
    Option("log.wandb", "", Text(),
           "project of Weights & Biases that also gets metrics, config and pictures; empty: none. It needs the extra "
           "`wandb`, see [training.md](training.md)", original=None, free=True),
    Option("log.mlflow", "", Text(),
           "tracking URI of MLflow, such as `http://host:5000` or `sqlite:///mlflow.db`, that also gets them; empty: "
           "none. It needs the extra `mlflow`", original=None, free=True),
    Option("log.compilation_cache", "~/.cache/diou_jax", Text(),
           "folder in which compiled programs are kept; empty: none", original=None, free=True),
)
# fmt: on


def get_config(body: str = "r50") -> ml_collections.ConfigDict:
    """All options with their defaults; `body` names an entry of `BODIES`."""
    if body not in BODIES:
        raise ValueError(f"unknown body {body!r} after the config's colon; there are {', '.join(BODIES)}")
    config = option_kinds.make_config(OPTIONS)
    config.resnets.update(BODIES[body])
    for norm in ("gn", "bn"):
        option = f"use_{norm}"
        config.fpn[option] = config.mrcnn[option] = config.resnets[option]
        if config.resnets[option]:
            config.fpn.mask_padding_train = True
            config.fast_rcnn.roi_box_head = f"roi_Xconv1fc_{norm}_head"
    return config


def check(config: ml_collections.ConfigDict, explicit: Collection[str] = ()) -> None:
    """Raises a UserError for a value that is invalid by itself or together with another option's.

    Args:
      config: a config with all options.
      explicit: names of options that were given by hand for this run.
    """
    option_kinds.check_values(config, OPTIONS)
    for problem in relations.problems(config, explicit):
        raise UserError(problem)
