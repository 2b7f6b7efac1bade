"""The original's linear rule: learning rate and schedule follow the batch size that the devices give."""

import dataclasses
from collections.abc import Collection

from diou_jax.errors import UserError

# The options that follow the batch size, and their fields in `BatchRule`.
OPTIONS = {
    "solver.base_lr": "base_lr",
    "solver.steps": "steps",
    "solver.max_iter": "max_iter",
    "fpn.rpn_collect_scale": "collect_scale",
}


@dataclasses.dataclass(frozen=True)
class BatchRule:
    """Batch size and schedule of a run.

    Attributes:
      batch_size: images per iteration over all devices.
      images_per_device: images per iteration on one device.
      base_lr, steps, max_iter: the adapted options of SOLVER.
      collect_scale: FPN.RPN_COLLECT_SCALE, adapted.
      changes: a line for each adapted number, old -> new, and for each that the rule would change but that stays.
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
    scale_rate: bool = True,
    explicit: Collection[str] = (),
    going_on: bool = False,
) -> BatchRule:
    """Adapts a config that was written for ``num_gpus * ims_per_batch`` images per iteration.

    The learning rate is proportional to the images of an iteration, the number of steps inversely proportional to the
    images of an update, and the number of RoIs that a device keeps proportional to its images.

    Args:
      devices: number of devices.
      num_gpus, ims_per_batch: NUM_GPUS and TRAIN.IMS_PER_BATCH for which the config was written.
      batch_size: images of an iteration over all devices; 0 means ``devices * ims_per_batch``.
      iter_size: iterations of an update; their gradients are summed.
      base_lr, steps, max_iter, collect_scale: values of the config.
      scale_with_devices: False pins these four.
      scale_rate: False pins the learning rate: the rule does not hold for Adam, whose updates do not grow with the
        gradient.
      explicit: dotted names of options that were given by hand; those of these four stay.
      going_on: whether `batch_size` is that of a run that is resumed, which cannot change it.

    Raises:
      UserError: if the batch cannot be divided among the devices.
    """
    actual = batch_size or devices * ims_per_batch
    if actual % devices:
        raise UserError(_indivisible(actual, devices, going_on))
    written_for = num_gpus * ims_per_batch
    per_device = actual // devices
    result = BatchRule(actual, per_device, base_lr, tuple(steps), max_iter, collect_scale, ())
    if not scale_with_devices:
        return result

    def stretch(step):
        return int(step * written_for / (actual * iter_size) + 0.5)

    written = {option: getattr(result, field) for option, field in OPTIONS.items()}
    ruled = {
        "solver.base_lr": base_lr * actual / written_for,
        "solver.steps": tuple(stretch(step) for step in steps),
        "solver.max_iter": max(stretch(max_iter), 1),
        "fpn.rpn_collect_scale": collect_scale * per_device / ims_per_batch,
    }
    changes = (
        [] if actual == written_for else [f"images per iteration: {written_for} -> {actual} ({devices} x {per_device})"]
    )
    for option in OPTIONS:
        if ruled[option] == written[option]:
            continue
        if option in explicit:
            changes.append(f"{option} stays {written[option]}, as given; the linear rule gives {ruled[option]}")
            ruled[option] = written[option]
        elif option == "solver.base_lr" and not scale_rate:
            changes.append(f"{option} stays {base_lr}: the linear rule holds for SGD only")
            ruled[option] = written[option]
        else:
            changes.append(
                f"{option}: {written[option]} -> {ruled[option]} "
                f"(--config.{option}=... or --config.solver.scale_with_devices=False pins it)"
            )
    fields = {OPTIONS[option]: value for option, value in ruled.items()}
    return dataclasses.replace(result, **fields, changes=tuple(changes))


def _indivisible(batch_size, devices, going_on):
    if not going_on:
        return (
            f"train.batch_size={batch_size} cannot be divided among {devices} devices; "
            f"set it to {max(batch_size // devices, 1) * devices}, or to 0 for train.ims_per_batch images on each"
        )
    fitting = [count for count in range(1, devices) if batch_size % count == 0]
    visible = ",".join(map(str, range(fitting[-1])))
    return (
        f"the run keeps its batch of {batch_size} images, which cannot be divided among {devices} devices; "
        f"go on with {' or '.join(map(str, fitting))}, for example CUDA_VISIBLE_DEVICES={visible} where they are GPUs, "
        "or start another run from its weights: another --workdir and --config.init.checkpoint with this one"
    )
