"""The original's linear rule: rate and schedule follow the batch that the devices at hand make."""

import dataclasses
from collections.abc import Collection

from diou_jax.errors import UserError

# The options that follow the batch, and their fields of `BatchRule`.
OPTIONS = {
    "solver.base_lr": "base_lr",
    "solver.steps": "steps",
    "solver.max_iter": "max_iter",
    "fpn.rpn_collect_scale": "collect_scale",
}


@dataclasses.dataclass(frozen=True)
class BatchRule:
    """What a run uses.

    Attributes:
      batch_size: images per iteration over all devices.
      images_per_device: of one iteration.
      base_lr, steps, max_iter: SOLVER's, adapted.
      collect_scale: FPN.RPN_COLLECT_SCALE, adapted.
      changes: a line for each number that was adapted, old -> new, and for each that was not though the rule says so.
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
      scale_rate: False pins the rate: Adam's updates do not grow with the gradient, so the rule does not hold for it.
      explicit: dotted names of options that somebody meant as they are; of these four they stay.
      going_on: whether `batch_size` is that of a run that has been going on, and cannot change.

    Raises:
      UserError: the batch cannot be divided among the devices.
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
            changes.append(f"{option} stays {written[option]}, as given; by the linear rule it were {ruled[option]}")
            ruled[option] = written[option]
        elif option == "solver.base_lr" and not scale_rate:
            changes.append(f"{option} stays {base_lr}: the linear rule is SGD's")
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
        f"the run's batch of {batch_size} images stays what it was and cannot be divided among {devices} devices; "
        f"go on with {' or '.join(map(str, fitting))}, for example CUDA_VISIBLE_DEVICES={visible} where they are GPUs, "
        "or start another run from its weights: another --workdir and --config.init.checkpoint with this one"
    )
