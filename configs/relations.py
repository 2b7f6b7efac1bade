"""Options whose values contradict each other."""

from collections.abc import Collection

from ml_collections import ConfigDict


def problems(config: ConfigDict, explicit: Collection[str] = ()) -> list[str]:
    """Messages on options whose values contradict each other."""
    train, solver, found = config.train, config.solver, []
    for low, high in (("bg_thresh_lo", "bg_thresh_hi"), ("rpn_negative_overlap", "rpn_positive_overlap")):
        if train[low] > train[high]:
            found.append(f"train.{low}={train[low]!r}: it must not exceed train.{high}={train[high]!r}")
    for name in ("weight_decay", "weight_decay_gn"):
        if solver.base_lr * solver[name] > 1:
            found.append(
                f"solver.base_lr={solver.base_lr!r} and solver.{name}={solver[name]!r}: "
                "with a product above 1 weights grow where they should decay"
            )
    if solver.steps and solver.steps[0] != 0:
        found.append(f"solver.steps={solver.steps!r}: it must begin with 0, as the rate falls at each but the first")
    # The warm-up of a config, unless given by hand, may exceed a run that is shortened for a test.
    if "solver.warm_up_iters" in explicit and solver.warm_up_iters > solver.max_iter:
        most = f"solver.max_iter={solver.max_iter}"
        found.append(f"solver.warm_up_iters={solver.warm_up_iters}: it must not exceed {most}")
    if config.train.early_stopping.patience and not (config.test.every and config.checkpoint.best):
        found.append(
            f"train.early_stopping.patience={config.train.early_stopping.patience}: it counts evaluations, so "
            "test.every must be positive and checkpoint.best must name a metric"
        )
    for part in ("resnets", "fpn", "mrcnn"):
        if config[part].use_gn and config[part].use_bn:
            found.append(f"{part}.use_bn=True: it must be False with {part}.use_gn=True, as a layer has one norm")
    mrcnn = config.mrcnn
    if config.model.mask_on and mrcnn.resolution != 2 * mrcnn.roi_xform_resolution:
        found.append(
            f"mrcnn.resolution={mrcnn.resolution}: it must be twice "
            f"mrcnn.roi_xform_resolution={mrcnn.roi_xform_resolution}"
        )
    if config.test.mask_aug.enabled and not config.model.mask_on:
        found.append("test.mask_aug.enabled=True: only a detector with model.mask_on=True has masks")
    for group in ("bbox_aug", "mask_aug"):
        if config.test[group].enabled and (config.model.rpn_only or not config.model.faster_rcnn):
            found.append(f"test.{group}.enabled=True: a pass needs an RPN that makes its proposals, and a box head")
    if len(train.jitter) not in (0, 2):
        found.append(f"train.jitter={train.jitter!r}: it must be a smallest and a largest factor, or ()")
    tile, overlap = config.predict.tile, config.predict.tile_overlap
    if 0 < tile <= overlap:
        found.append(f"predict.tile_overlap={overlap}: it must be smaller than predict.tile={tile}")
    if tile and (config.test.bbox_aug.enabled or config.test.mask_aug.enabled):
        found.append(f"predict.tile={tile}: it must be 0 with test.bbox_aug.enabled or test.mask_aug.enabled")
    if 0 < config.data.max_vertices < 3:
        found.append(f"data.max_vertices={config.data.max_vertices}: it must be 0, or 3 and more, as in a triangle")
    found += _proposal_problems(config)
    if config.model.rpn_only and config.model.mask_on:
        found.append("model.mask_on=True: it must be False with model.rpn_only=True, which has no RoI head")
    if config.fpn.coarsest_stride % 32:
        stride = config.fpn.coarsest_stride
        found.append(f"fpn.coarsest_stride={stride}: it must be a multiple of 32, the stride of P5")
    for bucket in config.data.buckets:
        if any(side % config.fpn.coarsest_stride for side in bucket):
            stride = config.fpn.coarsest_stride
            found.append(f"data.buckets={bucket!r}: height and width must be multiples of fpn.coarsest_stride={stride}")
    return found


def _proposal_problems(config) -> list[str]:
    """Messages on files of proposals, which Fast R-CNN alone reads."""
    if config.model.rpn_only and not config.model.faster_rcnn:
        return ["model.faster_rcnn=False: it must be True with model.rpn_only=True, which trains the RPN"]
    found = []
    for part in ("train", "test"):
        files, names = config[part].proposal_files, config[part].datasets
        if files and config.model.faster_rcnn:
            found.append(
                f"{part}.proposal_files={files!r}: the RPN makes the proposals; with model.faster_rcnn=False they come "
                "from files"
            )
        elif files and len(files) != len(names):
            found.append(f"{part}.proposal_files={files!r}: it must have a file for each of {part}.datasets={names!r}")
    return found
