"""The mask head's targets: the outline of an object, filled on the grid of each RoI."""

import flax.struct
import jax
import jax.numpy as jnp

from diou_jax.detection.polygon_filling import fill
from diou_jax.overlaps import pairwise_iou
from diou_jax.structures import Array, GroundTruth, Polygons, RoiSamples


@flax.struct.dataclass
class MaskTargets:
    """The targets of S RoIs of each image.

    Attributes:
      masks: bool (B, S, M, M), the cells that belong to the object.
      exists: bool (B, S), whether the RoI has a target.
    """

    masks: Array
    exists: Array


@jax.named_scope("mask_targets")
def mask_targets(samples: RoiSamples, gt: GroundTruth, *, resolution: int) -> MaskTargets:
    """Fills an outline on the grid of each RoI with an object (the original's ``add_mask_rcnn_blobs``).

    As in the original, a RoI takes the outline whose box it overlaps most, whatever its class and whatever object its
    label comes from, and the grid begins at the RoI's corner and covers ``x2 - x1`` by ``y2 - y1`` pixels, at least
    one. Crowd regions have no outline: a RoI with the label of a crowd takes that of the nearest object. Unlike in the
    original, an object may have no outline. Its RoIs have no target then, and a minibatch without any is legal.

    Args:
      samples: the RoIs.
      gt: ground truth in pixels of the original images.
      resolution: M, cells along each side of the grid.
    """
    if gt.masks is None:
        shape = *samples.labels.shape, resolution, resolution
        return MaskTargets(jnp.zeros(shape, bool), jnp.zeros(shape[:2], bool))
    samples, gt = jax.lax.stop_gradient((samples, gt))
    return jax.vmap(lambda one, truth: _of_image(one, truth, resolution))(samples, gt)


def _of_image(samples, gt, resolution):
    outlined = (gt.masks.part >= 0).any(-1)
    eligible = gt.valid & ~gt.crowd & outlined
    overlap = jnp.where(eligible, pairwise_iou(samples.rois, outline_boxes(gt.masks)), -1.0)
    nearest = overlap.argmax(1)
    known = outlined[samples.gt_index] | gt.crowd[samples.gt_index]
    exists = samples.valid & (samples.labels > 0) & known & eligible.any()
    corner = samples.rois[:, None, :2]
    side = jnp.maximum(samples.rois[:, None, 2:] - corner, 1.0)
    points = (gt.masks.points[nearest] - corner) * resolution / side
    filled = fill(points, gt.masks.part[nearest], resolution=resolution)
    return MaskTargets(filled & exists[:, None, None], exists)


def outline_boxes(outlines: Polygons) -> jax.Array:
    """The smallest box around all vertices of each object: float32 (..., 4), 0 without vertices."""
    exists = (outlines.part >= 0)[..., None]
    low = jnp.where(exists, outlines.points, jnp.inf).min(-2)
    high = jnp.where(exists, outlines.points, -jnp.inf).max(-2)
    return jnp.where(exists.any(-2), jnp.concatenate([low, high], -1), 0.0)
