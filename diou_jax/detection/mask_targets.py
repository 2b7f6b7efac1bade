"""The mask head's targets: the outline of an object, filled on the grid of each RoI."""

import flax.struct
import jax
import jax.numpy as jnp

from diou_jax.detection.polygon_filling import fill
from diou_jax.overlaps import pairwise_iou
from diou_jax.structures import Array, Batch, GroundTruth, Polygons, RoiSamples


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
def mask_targets(samples: RoiSamples, gt: GroundTruth, *, resolution: int, windows: Array | None = None) -> MaskTargets:
    """Fills an outline on the grid of each RoI with an object (the original's ``add_mask_rcnn_blobs``).

    As in the original, a RoI takes the outline whose box it overlaps most, whatever its class and whatever object its
    label comes from, and the grid begins at the RoI's corner and covers ``x2 - x1`` by ``y2 - y1`` pixels, at least
    one. Crowd regions have no outline: a RoI with the label of a crowd takes that of the nearest object. Unlike in the
    original, an object may have no outline. Its RoIs have no target then, and a minibatch without any is legal.

    Where an augmentation shows a part of the image, an outline ends with it: its box is that of the part, and cells
    beyond are empty.

    Args:
      samples: the RoIs.
      gt: ground truth in pixels of the original images.
      resolution: M, cells along each side of the grid.
      windows: float32 (B, 4), see `visible_windows`; None: the images are visible as a whole.
    """
    if gt.masks is None:
        shape = *samples.labels.shape, resolution, resolution
        return MaskTargets(jnp.zeros(shape, bool), jnp.zeros(shape[:2], bool))
    samples, gt = jax.lax.stop_gradient((samples, gt))
    if windows is None:
        windows = jnp.tile(jnp.array([-jnp.inf, -jnp.inf, jnp.inf, jnp.inf]), (len(samples.labels), 1))
    return jax.vmap(lambda one, truth, window: _of_image(one, truth, window, resolution))(samples, gt, windows)


def _of_image(samples, gt, window, resolution):
    outlined = (gt.masks.part >= 0).any(-1)
    eligible = gt.valid & ~gt.crowd & outlined
    overlap = jnp.where(eligible, pairwise_iou(samples.rois, _within(outline_boxes(gt.masks), window)), -1.0)
    nearest = overlap.argmax(1)
    known = outlined[samples.gt_index] | gt.crowd[samples.gt_index]
    exists = samples.valid & (samples.labels > 0) & known & eligible.any()
    corner = samples.rois[:, None, :2]
    side = jnp.maximum(samples.rois[:, None, 2:] - corner, 1.0)
    points = (gt.masks.points[nearest] - corner) * resolution / side
    filled = fill(points, gt.masks.part[nearest], resolution=resolution)
    centres = corner + (jnp.arange(resolution)[:, None] + 0.5) * side / resolution  # (S, M, 2)
    shown = (centres >= window[:2]) & (centres <= window[2:] + 1)
    filled &= shown[:, :, None, 1] & shown[:, None, :, 0]
    return MaskTargets(filled & exists[:, None, None], exists)


def visible_windows(batch: Batch) -> jax.Array:
    """The part of each image that the network sees: float32 (B, 4), x1, y1, x2, y2.

    They are inclusive pixels of the original image, mirrored if the image is, and infinite where the view ends with the
    image, so that whatever reaches beyond the image stays as it is.
    """
    scale, offset = batch.placement.scale, batch.placement.offset
    # As `View.cuts` has it: less than a pixel is rounding of the size.
    low = jnp.where(offset <= -1, -offset / scale, -jnp.inf)
    size = batch.image_size
    cut = scale * batch.original_size + offset >= size + 1
    high = jnp.where(cut, (size - offset) / scale - 1, jnp.inf)
    return jnp.concatenate([low[:, ::-1], high[:, ::-1]], -1)


def _within(boxes, window):
    """Boxes (N, 4) cut off at a window (4,); those outside become empty at its edge."""
    low, high = jnp.maximum(boxes[:, :2], window[:2]), jnp.minimum(boxes[:, 2:], window[2:])
    return jnp.concatenate([jnp.minimum(low, high + 1), high], -1)


def outline_boxes(outlines: Polygons) -> jax.Array:
    """The smallest box around all vertices of each object: float32 (..., 4), 0 without vertices."""
    exists = (outlines.part >= 0)[..., None]
    low = jnp.where(exists, outlines.points, jnp.inf).min(-2)
    high = jnp.where(exists, outlines.points, -jnp.inf).max(-2)
    return jnp.where(exists.any(-2), jnp.concatenate([low, high], -1), 0.0)
