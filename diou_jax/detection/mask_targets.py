"""The mask head's targets: objects' outlines, filled on the grid of each RoI as COCO fills polygons."""

import flax.struct

from diou_jax.structures import Array, GroundTruth, RoiSamples


@flax.struct.dataclass
class MaskTargets:
    """The targets of S RoIs of each image.

    Attributes:
      masks: bool (B, S, M, M), the cells that belong to the object.
      exists: bool (B, S), whether the RoI has a target.
    """

    masks: Array
    exists: Array


def mask_targets(samples: RoiSamples, gt: GroundTruth, *, resolution: int) -> MaskTargets:
    raise NotImplementedError
