"""The original's linear rule: rate and schedule follow the batch that the devices at hand make."""

import dataclasses

from diou_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class BatchRule:
    """What a run uses.

    Attributes:
      batch_size: images per iteration over all devices.
      images_per_device: of one iteration.
      base_lr, steps, max_iter: SOLVER's, adapted.
      collect_scale: FPN.RPN_COLLECT_SCALE, adapted.
      changes: one line for each number that was adapted, old -> new.
    """

    batch_size: int
    images_per_device: int
    base_lr: float
    steps: tuple[int, ...]
    max_iter: int
    collect_scale: float
    changes: tuple[str, ...]


def adapt(
    *,
    devices: int,
    num_gpus: int,
    ims_per_batch: int,
    batch_size: int,
    iter_size: int,
    base_lr: float,
    steps: tuple[int, ...],
    max_iter: int,
    collect_scale: float,
    scale_with_devices: bool,
) -> BatchRule:
    """Adapts a config written for ``num_gpus * ims_per_batch`` images an iteration.

    The rate is proportional to the images of an iteration, the number of steps inversely to those of an update, and the
    RoIs that a device's minibatch keeps are proportional to its images.

    Args:
      devices: that take part.
      num_gpus, ims_per_batch: NUM_GPUS and TRAIN.IMS_PER_BATCH that the config was written for.
      batch_size: images of an iteration over all devices; 0 for ``devices * ims_per_batch``.
      iter_size: iterations of an update; their gradients are summed.
      base_lr, steps, max_iter, collect_scale: as the config has them.
      scale_with_devices: False pins these four.

    Raises:
      UserError: the batch cannot be divided among the devices.
    """
    actual = batch_size or devices * ims_per_batch
    if actual % devices:
        raise UserError(
            f"train.batch_size={actual} cannot be divided among {devices} devices; "
            f"set it to {max(actual // devices, 1) * devices}, or to 0 for train.ims_per_batch images on each"
        )
    written_for = num_gpus * ims_per_batch
    per_device = actual // devices
    result = BatchRule(actual, per_device, base_lr, tuple(steps), max_iter, collect_scale, ())
    if not scale_with_devices:
        return result

    def stretch(step):
        return int(step * written_for / (actual * iter_size) + 0.5)

    adapted = dataclasses.replace(
        result,
        base_lr=base_lr * actual / written_for,
        steps=tuple(stretch(step) for step in steps),
        max_iter=stretch(max_iter),
        collect_scale=collect_scale * per_device / ims_per_batch,
    )
    names = {"base_lr": "solver", "steps": "solver", "max_iter": "solver", "collect_scale": "fpn.rpn"}
    changes = [
        f"{section}{'_' if section == 'fpn.rpn' else '.'}{name}: {getattr(result, name)} -> {getattr(adapted, name)}"
        for name, section in names.items()
        if getattr(result, name) != getattr(adapted, name)
    ]
    if actual != written_for:
        changes.insert(0, f"images per iteration: {written_for} -> {actual} ({devices} x {per_device})")
    return dataclasses.replace(adapted, changes=tuple(changes))
