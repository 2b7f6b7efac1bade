"""Every option, its one default and its meaning: Faster R-CNN R-50-FPN, smooth L1, 1x schedule on COCO 2017.

The options are the original's in lower case (docs/options.md lists both names); `data`, `checkpoint` and `log` are
ours. The other files in this folder change what they name and nothing else. The defaults are those of the original's
R-50-FPN configs where these differ from its global defaults.
"""

import ml_collections

BODIES = {
    "r50": {"blocks": (3, 4, 6, 3)},
    "r101": {"blocks": (3, 4, 23, 3)},
    "x101_32x8d": {"blocks": (3, 4, 23, 3), "num_groups": 32, "width_per_group": 8, "stride_1x1": False},
    "x101_64x4d": {"blocks": (3, 4, 23, 3), "num_groups": 64, "width_per_group": 4, "stride_1x1": False},
    "r50_gn": {"blocks": (3, 4, 6, 3), "use_gn": True, "stride_1x1": False, "freeze_at": 0},
    "r101_gn": {"blocks": (3, 4, 23, 3), "use_gn": True, "stride_1x1": False, "freeze_at": 0},
}


def get_config(body: str = "r50") -> ml_collections.ConfigDict:
    """All options with their defaults; `body` names an entry of `BODIES`."""
    if body not in BODIES:
        raise ValueError(f"unknown body {body!r} after the config's colon; there are {', '.join(BODIES)}")
    config = ml_collections.ConfigDict()
    config.num_gpus = 8  # devices that base_lr, steps and max_iter below are meant for
    config.rng_seed = 3  # weights, data order, sampling: everything random follows from it and the step
    config.dtype = "float32"  # of the network's arithmetic: float32 or bfloat16; parameters are always float32

    config.pixel_means = (102.9801, 115.9465, 122.7717)  # of blue, green, red, subtracted from images of 0 to 255

    init = config.init = ml_collections.ConfigDict()  # where a run starts from; without effect where it resumes
    init.checkpoint = ""  # workdir of another run, or weight file, to start from; classes are matched by name

    model = config.model = ml_collections.ConfigDict()
    model.loss_type = "smooth_l1"  # box head: smooth_l1 (sl1), iou, giou, diou, ciou
    model.loss_bbox_weight = 1.0
    model.rpn_loss_type = "smooth_l1"  # RPN: the same names
    model.rpn_loss_bbox_weight = 1.0
    model.cls_agnostic_bbox_reg = False  # one box per RoI instead of one per class
    model.bbox_reg_weights = (10.0, 10.0, 5.0, 5.0)  # scale of the box head's x, y, w, h deltas

    model.box_convention = "detectron"  # or torchvision: how boxes are scaled and pooled, and where anchors lie

    resnets = config.resnets = ml_collections.ConfigDict()
    resnets.blocks = (3, 4, 6, 3)  # bottlenecks in res2 to res5
    resnets.num_groups = 1  # ResNeXt's cardinality
    resnets.width_per_group = 64  # res2's bottleneck width is num_groups times this; each stage doubles it
    resnets.stem_width = 64  # channels of the 7x7 convolution
    resnets.stride_1x1 = True  # a stage's stride sits on its first 1x1 convolution, else on its 3x3
    resnets.freeze_at = 2  # res1 to res<this> keep their weights; 0 trains everything
    resnets.use_gn = False  # GroupNorm, trained from scratch, instead of frozen affine layers
    resnets.imagenet_pretrained_weights = ""  # weight file for the body of a run that starts
    resnets.imagenet_style = "auto"  # of that file: caffe or torchvision; auto tells by its statistics
    resnets.update(BODIES[body])

    group_norm = config.group_norm = ml_collections.ConfigDict()
    group_norm.num_groups = 32
    group_norm.dim_per_gp = -1  # channels per group; where positive it decides instead of num_groups
    group_norm.epsilon = 1e-5

    fpn = config.fpn = ml_collections.ConfigDict()
    fpn.dim = 256  # channels of every pyramid level
    fpn.use_gn = resnets.use_gn
    fpn.coarsest_stride = 32  # images are padded to a multiple of it
    fpn.rpn_anchor_start_size = 32  # anchor size on P2, doubled at each level
    fpn.rpn_aspect_ratios = (0.5, 1.0, 2.0)  # height over width
    fpn.rpn_collect_scale = 1.0  # times rpn_post_nms_top_n: RoIs that all levels of a device's minibatch keep together
    fpn.roi_canonical_scale = 224  # a RoI of this size ...
    fpn.roi_canonical_level = 4  # ... is pooled from this level
    fpn.mask_padding = True  # at test: nothing exists beyond an image's own padding, whatever the bucket
    fpn.mask_padding_train = resnets.use_gn  # in training; without GroupNorm the padding hardly matters there

    fast_rcnn = config.fast_rcnn = ml_collections.ConfigDict()
    fast_rcnn.mlp_head_dim = 1024
    fast_rcnn.roi_xform_resolution = 7
    fast_rcnn.roi_xform_sampling_ratio = 2  # samples per bin and axis; 0 takes as many as the bin has pixels

    train = config.train = ml_collections.ConfigDict()
    train.datasets = ("coco_2017_train",)  # several are read as one
    train.scales = (800,)  # shorter side in pixels, one drawn per image
    train.max_size = 1333  # limit of the longer side
    train.ims_per_batch = 2  # images per device and iteration
    train.batch_size = 0  # images per iteration over all devices; 0: ims_per_batch times the devices
    train.use_flipped = True  # each image also mirrored
    train.drop_empty = True  # leave out images without a box, as the original does
    train.gt_min_area = -1.0  # smaller ground truth (by its json area) is left out
    train.batch_size_per_im = 512  # RoIs sampled per image
    train.fg_fraction = 0.25
    train.fg_thresh = 0.5
    train.bg_thresh_hi = 0.5
    train.bg_thresh_lo = 0.0
    train.crowd_filter_thresh = 0.0  # RoIs whose share inside a crowd exceeds it are not sampled; 0: off, as end to end
    train.rpn_batch_size_per_im = 256  # anchors sampled per image
    train.rpn_fg_fraction = 0.5
    train.rpn_positive_overlap = 0.7
    train.rpn_negative_overlap = 0.3
    train.rpn_straddle_thresh = 0  # pixels by which a sampled anchor may leave the image
    train.rpn_nms_thresh = 0.7
    train.rpn_pre_nms_top_n = 2000  # per level
    train.rpn_post_nms_top_n = 2000  # per level, and over all levels
    train.rpn_min_size = 0

    train.max_bad_steps = 20  # updates in a row that are not finite before the run goes back to its last checkpoint
    train.max_rollbacks = 2  # how often it does, before it stops

    test = config.test = ml_collections.ConfigDict()
    test.datasets = ("coco_2017_val",)  # each is evaluated by itself, under its name
    test.max_dets = 100  # detections of a class that COCOeval counts in an image, more than 10
    test.every = 0  # steps of training between evaluations; 0: only at the end
    test.scale = 800
    test.max_size = 1333
    test.ims_per_batch = 1  # images per device and call
    test.score_thresh = 0.05
    test.nms = 0.5
    test.diou_nms = ml_collections.ConfigDict()
    test.diou_nms.enabled = True  # as in every config of the original, whatever the loss
    test.diou_nms.beta1 = 1.0
    test.soft_nms = ml_collections.ConfigDict()
    test.soft_nms.enabled = False  # in place of both greedy kinds
    test.soft_nms.method = "linear"  # or gaussian, hard
    test.soft_nms.sigma = 0.5  # of gaussian
    test.soft_nms.beta1 = 0.8  # exponent of the distance penalty; inf: none
    test.bbox_vote = ml_collections.ConfigDict()
    test.bbox_vote.enabled = False
    test.bbox_vote.vote_th = 0.8
    test.bbox_vote.scoring_method = "ID"  # or TEMP_AVG, AVG, IOU_AVG, GENERALIZED_AVG, QUASI_SUM
    test.bbox_vote.scoring_method_beta = 1.0
    test.detections_per_im = 100
    test.rpn_nms_thresh = 0.7
    test.rpn_pre_nms_top_n = 1000
    test.rpn_post_nms_top_n = 1000
    test.rpn_min_size = 0

    solver = config.solver = ml_collections.ConfigDict()
    solver.type = "SGD"  # or Adam
    solver.base_lr = 0.02
    solver.gamma = 0.1
    solver.steps = (0, 60000, 80000)  # the rate is multiplied by gamma at each but the first
    solver.max_iter = 90000
    solver.momentum = 0.9
    solver.weight_decay = 0.0001
    solver.weight_decay_gn = 0.0
    solver.bias_double_lr = True
    solver.bias_weight_decay = False
    solver.warm_up_iters = 500
    solver.warm_up_factor = 1.0 / 3.0
    solver.warm_up_method = "linear"  # or constant
    solver.scale_momentum = True  # scale the momentum buffers with the rate when it jumps
    solver.scale_momentum_threshold = 1.1
    solver.iter_size = 1  # minibatches whose gradients are summed for one update
    solver.clip_norm = 0.0  # limit of the gradient's global norm; 0: none, as the original
    solver.scale_with_devices = True  # the linear rule: rate, steps and collect scale follow the number of devices

    data = config.data = ml_collections.ConfigDict()
    data.source = "coco"  # coco: json and images; own: found by themselves; tfds: coco/2017; shapes: drawn on first use
    data.root = "data/coco"
    data.train_annotations = ""  # own: json of the training set; empty: found below root
    data.train_images = ""  # own: folder that its file names start from; empty: found
    data.val_annotations = ""  # json to evaluate by: own, empty: found; tfds, empty: the one beside the records
    data.val_images = ""  # own: as train_images
    data.val_share = 0.2  # own: part of the images that validates where one json holds all; above 0, below 1
    data.split_seed = 0  # own: which part; 0 or more
    data.buckets = ()  # ((height, width), ...) of the network's input; empty: chosen from scale and max_size
    data.max_boxes = 128  # ground-truth boxes per image; the largest are kept
    data.threads = 4  # that read and decode in this process
    data.workers = 0  # processes that do so instead, where one process cannot keep up
    data.timeout = 300.0  # seconds without a batch after which the run ends; it warns long before; 0: never
    data.prefetch = 2  # batches that wait on the device
    data.on_bad_image = "skip"  # count it, log it, take another; or error

    checkpoint = config.checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 2500  # steps
    checkpoint.keep = 3
    checkpoint.lock = True  # keep other training runs out of the workdir; False where its file system has no locks
    checkpoint.on_error = "error"  # or warn: what a checkpoint that cannot be written means

    log = config.log = ml_collections.ConfigDict()
    log.every = 20  # steps between lines of metrics
    log.images = 8  # pictures of detections beside ground truth at each evaluation
    log.compilation_cache = "~/.cache/diou_jax"  # compiled steps are kept here; empty: nowhere
    return config
