"""Every option: its one default, the values that it may have, and its meaning.

Faster R-CNN R-50-FPN, smooth L1, 1x schedule on COCO 2017. The options are the original's in lower case; the defaults
are those of its R-50-FPN configs where these differ from its global defaults. The other files in this folder change
what they name and nothing else.

A new option is one entry of `OPTIONS` and its use: the check before a run, the error's words and docs/options.md follow
from the entry (``python -m diou_jax.options.page`` writes the page). What two options say together is in `relations`.
"""

from collections.abc import Collection
from typing import Any

import ml_collections

from diou_jax.errors import UserError
from diou_jax.options import kinds
from diou_jax.options.kinds import Choice, Flag, Option, Real, Several, Text, Whole

BODIES: dict[str, dict[str, Any]] = {
    "r50": {"blocks": (3, 4, 6, 3)},
    "r101": {"blocks": (3, 4, 23, 3)},
    "x101_32x8d": {"blocks": (3, 4, 23, 3), "num_groups": 32, "width_per_group": 8, "stride_1x1": False},
    "x101_64x4d": {"blocks": (3, 4, 23, 3), "num_groups": 64, "width_per_group": 4, "stride_1x1": False},
    "r50_gn": {"blocks": (3, 4, 6, 3), "use_gn": True, "stride_1x1": False, "freeze_at": 0},
    "r101_gn": {"blocks": (3, 4, 23, 3), "use_gn": True, "stride_1x1": False, "freeze_at": 0},
}
LOSSES = ("smooth_l1", "sl1", "iou", "giou", "diou", "ciou")
VOTES = ("ID", "TEMP_AVG", "AVG", "IOU_AVG", "GENERALIZED_AVG", "QUASI_SUM")

# fmt: off
OPTIONS = (
    Option("num_gpus", 8, Whole(1),
           "devices that `solver.base_lr`, `solver.steps` and `solver.max_iter` are written for; how many take part "
           "is not an option, all do", there="1"),
    Option("rng_seed", 3, Whole(0, 2**31 - 1),
           "weights, order of the data, sampling: everything random follows from it and the step", there="17"),
    Option("dtype", "float32", Choice(("float32", "bfloat16")),
           "of the network's arithmetic: `float32` or `bfloat16`; parameters are float32", original=None),
    Option("pixel_means", (102.9801, 115.9465, 122.7717), Several(Real(), length=3),
           "of blue, green and red, subtracted from images of 0 to 255"),
    Option("init.checkpoint", "", Text(),
           "workdir of another run, or weight file, that a new run starts from; classes are matched by name, the "
           "others start anew and are named", original=None, free=True),
    Option("model.loss_type", "smooth_l1", Choice(LOSSES),
           "box loss of the head: `smooth_l1` (also `sl1`), `iou`, `giou`, `diou`, `ciou`"),
    Option("model.loss_bbox_weight", 1.0, Real(0), "its weight; 12 in the files of the four IoU losses"),
    Option("model.rpn_loss_type", "smooth_l1", Choice(LOSSES),
           "box loss of the RPN, same names; the original has a file that sets it, but no such option"),
    Option("model.rpn_loss_bbox_weight", 1.0, Real(0), "its weight"),
    Option("model.cls_agnostic_bbox_reg", False, Flag(), "one box per RoI instead of one per class"),
    Option("model.bbox_reg_weights", (10.0, 10.0, 5.0, 5.0), Several(Real(0, above=True), length=4),
           "scale of the head's x, y, width and height deltas"),
    Option("model.box_convention", "detectron", Choice(("detectron", "torchvision")),
           "or `torchvision`: boxes are scaled and pooled by their edges, proposals end at the image, anchors have "
           "whole coordinates and are centred on a cell's corner; for weights that torchvision trained", original=None),
    Option("resnets.blocks", (3, 4, 6, 3), Several(Whole(1), length=4),
           "bottlenecks in res2 to res5; the argument after the colon of `--config` sets it together with the other "
           "`resnets` options of a body", original="MODEL.CONV_BODY"),
    Option("resnets.num_groups", 1, Whole(1), "groups of the 3×3 convolutions; more than one is ResNeXt"),
    Option("resnets.width_per_group", 64, Whole(1),
           "res2's bottleneck has this many channels per group; each stage doubles it"),
    Option("resnets.stem_width", 64, Whole(1), "channels of the 7×7 convolution", original=None),
    Option("resnets.stride_1x1", True, Flag(), "a stage's stride sits on its first 1×1 convolution, else on its 3×3"),
    Option("resnets.freeze_at", 2, Whole(0, 5), "res1 to res*this* keep their weights; 0 trains everything"),
    Option("resnets.use_gn", False, Flag(), "GroupNorm, for training from scratch, instead of frozen affine layers"),
    Option("resnets.imagenet_pretrained_weights", "", Text(),
           "weight file that the body of a new run starts from: torch's, safetensors or Detectron's; empty: random "
           "weights", free=True),
    Option("resnets.imagenet_style", "auto", Choice(("auto", "caffe", "torchvision")),
           "of that file: `caffe` (BGR less means, stride on the 1×1) or `torchvision` (RGB of unit variance, stride "
           "on the 3×3); `auto` tells by its batch-norm statistics. torchvision's takes `resnets.stride_1x1=False` "
           "and `pixel_means=(103.53,116.28,123.675)`; the rest is folded into its first convolution",
           original=None, free=True),
    Option("group_norm.num_groups", 32, Whole(1),
           "groups of channels; where it does not divide them, or leaves a group one channel, the next smaller number"
           " that does neither"),
    Option("group_norm.dim_per_gp", -1, Whole(-1), "channels per group; decides where positive"),
    Option("group_norm.epsilon", 1e-5, Real(0, above=True), "added to the variance"),
    Option("fpn.dim", 256, Whole(1), "channels of every pyramid level"),
    Option("fpn.use_gn", False, Flag(), "GroupNorm behind the pyramid's convolutions; on with the `_gn` bodies"),
    Option("fpn.coarsest_stride", 32, Whole(32), "images are padded to a multiple of it"),
    Option("fpn.rpn_anchor_start_size", 32, Whole(1), "side of P2's anchors in pixels, doubled at each level"),
    Option("fpn.rpn_aspect_ratios", (0.5, 1.0, 2.0), Several(Real(0, above=True), least=1),
           "height over width of the anchors"),
    Option("fpn.rpn_collect_scale", 1.0, Real(0, above=True),
           "RoIs that all levels of a device's minibatch keep together, over `train.rpn_post_nms_top_n`; follows the "
           "images per device"),
    Option("fpn.roi_canonical_scale", 224, Whole(1), "a RoI of this side in pixels …"),
    Option("fpn.roi_canonical_level", 4, Whole(0), "… is pooled from this level"),
    Option("fpn.mask_padding", True, Flag(),
           "at test, nothing exists beyond an image's own padding: its detections do not depend on its bucket",
           original=None),
    Option("fpn.mask_padding_train", False, Flag(), "the same in training", original=None),
    Option("fast_rcnn.mlp_head_dim", 1024, Whole(1), "units of the head's two layers"),
    Option("fast_rcnn.roi_xform_resolution", 7, Whole(1), "bins of RoIAlign per axis", there="14"),
    Option("fast_rcnn.roi_xform_sampling_ratio", 2, Whole(0),
           "samples per bin and axis; 0 takes as many as the bin has pixels", there="0"),
    Option("train.datasets", ("coco_2017_train",), Several(Text(empty=False), least=1),
           "several are read as one", there="()"),
    Option("train.scales", (800,), Several(Whole(1), least=1),
           "shorter side in pixels; one is drawn for each image", there="(600,)"),
    Option("train.max_size", 1333, Whole(1), "limit of the longer side", there="1000"),
    Option("train.ims_per_batch", 2, Whole(1), "images per device and iteration"),
    Option("train.batch_size", 0, Whole(0),
           "images per iteration over all devices; 0 is `train.ims_per_batch` on each device, where the original "
           "keeps `NUM_GPUS` × `TRAIN.IMS_PER_BATCH` of its file", original="--bs"),
    Option("train.use_flipped", True, Flag(), "each image also mirrored"),
    Option("train.drop_empty", True, Flag(),
           "leaves out images without a box, or with crowds only, as the original always does", original=None),
    Option("train.gt_min_area", -1.0, Real(), "ground truth of a smaller area, by its json, is left out", there="-1"),
    Option("train.batch_size_per_im", 512, Whole(1), "RoIs sampled per image", there="64"),
    Option("train.fg_fraction", 0.25, Real(0, 1), "the largest share of objects among them"),
    Option("train.fg_thresh", 0.5, Real(0, 1), "IoU from which on a RoI is an object"),
    Option("train.bg_thresh_hi", 0.5, Real(0, 1), "IoU below which a RoI is background …"),
    Option("train.bg_thresh_lo", 0.0, Real(0, 1), "… if it is not below this"),
    Option("train.crowd_filter_thresh", 0.0, Real(0, 1),
           "RoIs of which a larger share lies in a crowd region are not sampled; 0: off. The original's end-to-end "
           "training ignores its 0.7, too", there="0.7"),
    Option("train.rpn_batch_size_per_im", 256, Whole(1), "anchors sampled per image"),
    Option("train.rpn_fg_fraction", 0.5, Real(0, 1), "the largest share of objects among them"),
    Option("train.rpn_positive_overlap", 0.7, Real(0, 1), "IoU from which on an anchor is an object"),
    Option("train.rpn_negative_overlap", 0.3, Real(0, 1), "IoU below which it is background"),
    Option("train.rpn_straddle_thresh", 0, Whole(-(2**31)),
           "pixels by which a sampled anchor may leave the image; negative: all may be sampled"),
    Option("train.rpn_nms_thresh", 0.7, Real(0, 1), "IoU at which a proposal suppresses another"),
    Option("train.rpn_pre_nms_top_n", 2000, Whole(1), "anchors per level that enter suppression", there="12000"),
    Option("train.rpn_post_nms_top_n", 2000, Whole(1), "proposals kept per level, and of all levels"),
    Option("train.rpn_min_size", 0, Whole(0), "smallest side of a proposal, pixels of the original image"),
    Option("train.max_bad_steps", 20, Whole(1),
           "updates in a row that were skipped, loss or gradient not finite, before the run goes back to its last "
           "checkpoint", original=None, free=True),
    Option("train.max_rollbacks", 2, Whole(0),
           "how often it does before it stops with the tensor's name and a file that holds the batch",
           original=None, free=True),
    Option("test.datasets", ("coco_2017_val",), Several(Text(empty=False)),
           "each is evaluated by itself, under its name", there="()", free=True),
    Option("test.max_dets", 100, Whole(11),
           "detections of a class that COCOeval counts in an image, more than 10; the AR line is named after it",
           original=None, free=True),
    Option("test.every", 0, Whole(0),
           "steps of training between evaluations; 0: only at the end", original=None, free=True),
    Option("test.scale", 800, Whole(1), "shorter side in pixels", there="600", free=True),
    Option("test.max_size", 1333, Whole(1), "limit of the longer side", there="1000", free=True),
    Option("test.ims_per_batch", 1, Whole(1),
           "images per device and call; detections do not depend on it", original=None, free=True),
    Option("test.score_thresh", 0.05, Real(0, 1), "only higher scores count", free=True),
    Option("test.nms", 0.5, Real(0, 1),
           "overlap at which a detection suppresses another of its class", there="0.3", free=True),
    Option("test.diou_nms.enabled", True, Flag(),
           "overlap by DIoU instead of IoU; on in every config of the original, whatever the loss", free=True),
    Option("test.diou_nms.beta1", 1.0, Real(0, above=True),
           "exponent of its distance penalty; below 1 suppresses less", free=True),
    Option("test.soft_nms.enabled", False, Flag(),
           "overlapping boxes lose score rather than their place; goes before `test.diou_nms.enabled`", free=True),
    Option("test.soft_nms.method", "linear", Choice(("linear", "gaussian", "hard")),
           "by 1 - overlap from `test.nms` on; or `gaussian`: by exp(-overlap²/sigma), or `hard`: by 0", free=True),
    Option("test.soft_nms.sigma", 0.5, Real(0, above=True), "of `gaussian`", free=True),
    Option("test.soft_nms.beta1", 0.8, Real(0, above=True, infinite=True),
           "exponent of the distance penalty in soft-NMS, a constant in the original; `inf`: no penalty",
           original=None, free=True),
    Option("test.bbox_vote.enabled", False, Flag(),
           "a detection moves to the mean of its class's candidates that agree with it, weighted by score", free=True),
    Option("test.bbox_vote.vote_th", 0.8, Real(0, 1), "IoU from which on a box agrees", free=True),
    Option("test.bbox_vote.scoring_method", "ID", Choice(VOTES),
           "the score stays; or becomes `AVG`, `IOU_AVG`, `TEMP_AVG`, `GENERALIZED_AVG` or `QUASI_SUM` of the votes, "
           "which forget what soft-NMS took; see `diou_jax/detection/box_vote.py`", free=True),
    Option("test.bbox_vote.scoring_method_beta", 1.0, Real(0, above=True),
           "temperature or exponent of the last three; the original does not pass it on", free=True),
    Option("test.detections_per_im", 100, Whole(1), "over all classes", free=True),
    Option("test.rpn_nms_thresh", 0.7, Real(0, 1), "as in training", free=True),
    Option("test.rpn_pre_nms_top_n", 1000, Whole(1), "as in training", there="12000", free=True),
    Option("test.rpn_post_nms_top_n", 1000, Whole(1), "as in training, for each image", there="2000", free=True),
    Option("test.rpn_min_size", 0, Whole(0), "as in training", free=True),
    Option("solver.type", "SGD", Choice(("SGD", "Adam")), "or `Adam`"),
    Option("solver.base_lr", 0.02, Real(0, 1e6), "rate after the warm-up", there="0.001"),
    Option("solver.gamma", 0.1, Real(0, 1), "what the rate is multiplied by …"),
    Option("solver.steps", (0, 60000, 80000), Several(Whole(0), rising=True),
           "… at each of these but the first", there="()", free=True),
    Option("solver.max_iter", 90000, Whole(1), "iterations in all", there="40000", free=True),
    Option("solver.momentum", 0.9, Real(0, 1), "of SGD"),
    Option("solver.weight_decay", 0.0001, Real(0, 1), "of weights", there="0.0005"),
    Option("solver.weight_decay_gn", 0.0, Real(0, 1), "of GroupNorm's parameters"),
    Option("solver.bias_double_lr", True, Flag(), "biases take twice the rate"),
    Option("solver.bias_weight_decay", False, Flag(), "biases decay, too"),
    Option("solver.warm_up_iters", 500, Whole(0), "iterations of warm-up"),
    Option("solver.warm_up_factor", 1 / 3, Real(0, 1), "share of the rate at its start"),
    Option("solver.warm_up_method", "linear", Choice(("linear", "constant")), "or `constant`"),
    Option("solver.scale_momentum", True, Flag(), "the momentum buffers are scaled with the rate when it jumps …"),
    Option("solver.scale_momentum_threshold", 1.1, Real(0, above=True), "… by more than this factor"),
    Option("solver.iter_size", 1, Whole(1),
           "iterations whose gradients are summed for one update", original="--iter_size"),
    Option("solver.clip_norm", 0.0, Real(0), "limit of the gradient's global norm; 0: none", original=None),
    Option("solver.scale_with_devices", True, Flag(),
           "the original's linear rule: rate, steps, length and collect scale follow the batch that the devices make;"
           " False pins them", original=None),
    Option("data.source", "coco", Choice(("coco", "own", "tfds", "shapes")),
           "`coco`: json and images; `own`: found by themselves, see [own_data.md](own_data.md); `tfds`: a prepared "
           "`coco/2017`; `shapes`: drawn on first use", original=None),
    Option("data.root", "data/coco", Text(),
           "folder that holds `annotations/` and `images/`", original="DATA_DIR", free=True),
    Option("data.train_annotations", "", Text(),
           "of `own`: json of the training set; empty: found", original=None, free=True),
    Option("data.train_images", "", Text(),
           "of `own`: folder that its file names start from; empty: found", original=None, free=True),
    Option("data.val_annotations", "", Text(),
           "json to evaluate by: of `own`, empty: found; of `tfds`, empty: the one beside the records",
           original=None, free=True),
    Option("data.val_images", "", Text(), "of `own`: as `data.train_images`", original=None, free=True),
    Option("data.val_share", 0.2, Real(0, 1, above=True, below=True),
           "of `own`: part of the images that validates where one json holds all", original=None),
    Option("data.split_seed", 0, Whole(0), "of `own`: which part", original=None),
    Option("data.buckets", (), Several(Several(Whole(1), length=2)),
           "shapes of the network's input, ((height, width), …); empty: chosen by scale and limit", original=None),
    Option("data.max_boxes", 128, Whole(1), "ground-truth boxes per image; the largest are kept", original=None),
    Option("data.threads", 4, Whole(1),
           "threads that read and decode, in each process that does so", original="DATA_LOADER.NUM_THREADS", free=True),
    Option("data.workers", 0, Whole(0),
           "processes that read and decode, where this one cannot keep up", original=None, free=True),
    Option("data.timeout", 300.0, Real(0),
           "seconds without a batch after which the run ends, naming the files it waits for; it warns every 30; 0: "
           "never ends", original=None, free=True),
    Option("data.prefetch", 2, Whole(0), "batches that wait on the device", original=None, free=True),
    Option("data.on_bad_image", "skip", Choice(("skip", "error")),
           "names it in the log, counts it and takes another; in evaluation it has no detections. `error` ends the "
           "run", original=None),
    Option("checkpoint.every", 2500, Whole(1),
           "iterations between checkpoints; the original divides by `NUM_GPUS`",
           original="TRAIN.SNAPSHOT_ITERS", there="20000", free=True),
    Option("checkpoint.keep", 3, Whole(1), "newest checkpoints that stay", original=None, free=True),
    Option("checkpoint.lock", True, Flag(),
           "keeps other training runs out of the workdir; `False` where its file system has no locks",
           original=None, free=True),
    Option("checkpoint.on_error", "error", Choice(("error", "warn")),
           "what a checkpoint that cannot be written does: `error` ends the run, `warn` is a line in the log",
           original=None, free=True),
    Option("log.every", 20, Whole(1), "iterations between lines of the log", original="--disp_interval", free=True),
    Option("log.images", 8, Whole(0),
           "pictures of detections beside ground truth at each evaluation", original=None, free=True),
    Option("log.compilation_cache", "~/.cache/diou_jax", Text(),
           "compiled steps are kept here; empty: nowhere", original=None, free=True),
)
# fmt: on


def get_config(body: str = "r50") -> ml_collections.ConfigDict:
    """All options with their defaults; `body` names an entry of `BODIES`."""
    if body not in BODIES:
        raise ValueError(f"unknown body {body!r} after the config's colon; there are {', '.join(BODIES)}")
    config = kinds.make_config(OPTIONS)
    config.resnets.update(BODIES[body])
    config.fpn.use_gn = config.fpn.mask_padding_train = config.resnets.use_gn
    return config


def check(config: ml_collections.ConfigDict, explicit: Collection[str] = ()) -> None:
    """Raises UserError for an option's value that has no meaning, alone or beside another's.

    Args:
      config: with all options.
      explicit: names of those that the user gave for this run.
    """
    kinds.check(config, OPTIONS)
    for problem in relations(config, explicit):
        raise UserError(problem)


def relations(config: ml_collections.ConfigDict, explicit: Collection[str] = ()) -> list[str]:
    """What is wrong between options, each of which may have its value."""
    train, solver, problems = config.train, config.solver, []
    for low, high in (("bg_thresh_lo", "bg_thresh_hi"), ("rpn_negative_overlap", "rpn_positive_overlap")):
        if train[low] > train[high]:
            problems.append(f"train.{low}={train[low]!r}: it must not exceed train.{high}={train[high]!r}")
    for name in ("weight_decay", "weight_decay_gn"):
        if solver.base_lr * solver[name] > 1:
            problems.append(
                f"solver.base_lr={solver.base_lr!r} and solver.{name}={solver[name]!r}: "
                "with a product above 1 weights grow where they should decay"
            )
    if solver.steps and solver.steps[0] != 0:
        problems.append(f"solver.steps={solver.steps!r}: it must begin with 0, as the rate falls at each but the first")
    # A config's own warm-up may be longer than a run that is cut short for a try.
    if "solver.warm_up_iters" in explicit and solver.warm_up_iters > solver.max_iter:
        most = f"solver.max_iter={solver.max_iter}"
        problems.append(f"solver.warm_up_iters={solver.warm_up_iters}: it must not exceed {most}")
    if config.fpn.coarsest_stride % 32:
        stride = config.fpn.coarsest_stride
        problems.append(f"fpn.coarsest_stride={stride}: it must be a multiple of 32, the stride of P5")
    for bucket in config.data.buckets:
        if any(side % config.fpn.coarsest_stride for side in bucket):
            stride = config.fpn.coarsest_stride
            problems.append(
                f"data.buckets={bucket!r}: height and width must be multiples of fpn.coarsest_stride={stride}"
            )
    return problems
