"""The original's linear rule: learning rate and schedule follow the batch size that the devices give."""

import dataclasses
from collections.abc import Collection

from diou_jax.errors import UserError

# The options that follow the batch size, and their fields in `Schedule`.
OPTIONS = {
    "solver.base_lr": "base_lr",
    "solver.steps": "steps",
    "solver.max_iter": "max_iter",
    "fpn.rpn_collect_scale": "collect_scale",
}


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """The images of an iteration.

    Attributes:
      images: their number over all devices, a multiple of `devices`.
      devices: number of devices.
    """

    images: int
    devices: int

    @property
    def per_device(self) -> int:
        """The images of an iteration on one device."""
        return self.images // self.devices


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The options that follow the batch size: as a config has them, or adapted.

    Attributes:
      base_lr, steps, max_iter: options of SOLVER.
      collect_scale: FPN.RPN_COLLECT_SCALE.
    """

    base_lr: float
    steps: tuple[int, ...]
    max_iter: int
    collect_scale: float


@dataclasses.dataclass(frozen=True)
class BatchRule:
    """Batch size and schedule of a run.

    Attributes:
      batch: the run's batch size.
      schedule: the schedule for it.
      changes: a line for each adapted number, old -> new, and for each that the rule would change but that stays.
    """

    batch: BatchSize
    schedule: Schedule
    changes: tuple[str, ...] = ()


def divide(images: int, devices: int, *, resumed: bool = False) -> BatchSize:
    """The batch of `images` images on a number of devices.

    Raises:
      UserError: if the devices cannot share it; the advice to a resumed run, which keeps its batch, is another.
    """
    if images % devices:
        raise UserError(_indivisible(images, devices, resumed))
    return BatchSize(images, devices)


def adapt(
    written: Schedule,
    batch: BatchSize,
    *,
    written_for: BatchSize,
    iter_size: int = 1,
    scale_rate: bool = True,
    explicit: Collection[str] = (),
) -> BatchRule:
    """Adapts a schedule to another batch size.

    The learning rate is proportional to the images of an iteration, the number of steps inversely proportional to the
    images of an update, and the number of RoIs that a device keeps proportional to its images.

    Args:
      written: the config's schedule.
      batch: the run's batch size.
      written_for: the batch size for which the config was written.
      iter_size: iterations of an update; their gradients are summed.
      scale_rate: False pins the learning rate: the rule does not hold for Adam and AdamW, whose updates do not grow
        with the gradient.
      explicit: dotted names of options that were given by hand; those of the schedule stay.
    """
    ruled = _by_the_rule(written, batch, written_for, iter_size)
    kept, changes = {}, []
    if batch.images != written_for.images:
        changes.append(
            f"images per iteration: {written_for.images} -> {batch.images} ({batch.devices} x {batch.per_device})"
        )
    for option, field in OPTIONS.items():
        before, after = getattr(written, field), getattr(ruled, field)
        if before == after:
            continue
        if option in explicit:
            kept[field] = before
            changes.append(f"{option} stays {before}, as given; the linear rule gives {after}")
        elif field == "base_lr" and not scale_rate:
            kept[field] = before
            changes.append(f"{option} stays {before}: the linear rule holds for SGD only")
        else:
            changes.append(
                f"{option}: {before} -> {after} "
                f"(--config.{option}=... or --config.solver.scale_with_devices=False pins it)"
            )
    return BatchRule(batch, dataclasses.replace(ruled, **kept), tuple(changes))


def _by_the_rule(written, batch, written_for, iter_size) -> Schedule:
    def stretch(step):
        return int(step * written_for.images / (batch.images * iter_size) + 0.5)

    return Schedule(
        base_lr=written.base_lr * batch.images / written_for.images,
        steps=tuple(stretch(step) for step in written.steps),
        max_iter=max(stretch(written.max_iter), 1),
        collect_scale=written.collect_scale * batch.per_device / written_for.per_device,
    )


def _indivisible(images, devices, resumed):
    if not resumed:
        return (
            f"train.batch_size={images} cannot be divided among {devices} devices; "
            f"set it to {max(images // devices, 1) * devices}, or to 0 for train.ims_per_batch images on each"
        )
    fitting = [count for count in range(1, devices) if images % count == 0]
    visible = ",".join(map(str, range(fitting[-1])))
    return (
        f"the run keeps its batch of {images} images, which cannot be divided among {devices} devices; "
        f"go on with {' or '.join(map(str, fitting))}, for example CUDA_VISIBLE_DEVICES={visible} where they are GPUs, "
        "or start another run from its weights: another --workdir and --config.init.checkpoint with this one"
    )
