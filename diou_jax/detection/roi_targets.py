"""What the box head learns from one image: a sample of RoIs with their classes and boxes."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from diou_jax.boxes import area, encode
from diou_jax.detection.sampling import draw
from diou_jax.overlaps import pairwise_iou


@flax.struct.dataclass
class SampledRois:
    """S RoIs of an image, those with objects first.

    Attributes:
      rois: float32 (S, 4), pixels of the original image.
      labels: int32 (S,), classes; 0 for background.
      deltas: float32 (S, 4), to the matched box; 0 for background.
      valid: bool (S,).
    """

    rois: jax.Array
    labels: jax.Array
    deltas: jax.Array
    valid: jax.Array


def sample_rois(
    proposals: jax.Array,
    valid: jax.Array,
    boxes: jax.Array,
    classes: jax.Array,
    crowd: jax.Array,
    valid_boxes: jax.Array,
    key: jax.Array,
    *,
    batch_size_per_im: int,
    fg_fraction: float,
    fg_thresh: float,
    bg_thresh_hi: float,
    bg_thresh_lo: float,
    crowd_filter_thresh: float,
    reg_weights: Sequence[float],
) -> SampledRois:
    """Draws RoIs among the ground truth and the proposals (Fast R-CNN, section 2.3; the original's ``_sample_rois``).

    All overlaps are measured at the original image's scale. A proposal that matches a crowd region best is an object of
    the crowd's class, as in the original's end-to-end training; a crowd region itself is never drawn.

    Args:
      proposals: float32 (R, 4), pixels of the original image.
      valid: bool (R,).
      boxes: float32 (G, 4), ground truth, pixels of the original image; G at least 1.
      classes: int32 (G,).
      crowd: bool (G,).
      valid_boxes: bool (G,), may be False throughout.
      key: random key.
      batch_size_per_im: S.
      fg_fraction: the largest share of objects.
      fg_thresh: IoU from which on a RoI is an object.
      bg_thresh_hi, bg_thresh_lo: IoU below the first and from the second on is background.
      crowd_filter_thresh: proposals of whose area a larger share lies in a crowd region are not drawn; 0: all may be.
      reg_weights: of the deltas.
    """
    count = len(boxes)
    candidates = jnp.concatenate([boxes, proposals])
    overlaps = jnp.where(valid_boxes, pairwise_iou(candidates, boxes), 0.0)
    overlap, match = overlaps.max(1), overlaps.argmax(1)
    # A ground truth is its own match, also where another one covers the same pixels.
    itself = jnp.arange(len(candidates)) < count
    match = jnp.where(itself, jnp.arange(len(candidates)), match)
    eligible = jnp.concatenate([valid_boxes & ~crowd, valid])
    if crowd_filter_thresh > 0:
        inside = _share_inside(candidates, boxes)
        inside = jnp.where(valid_boxes & crowd, inside, 0.0).max(1, initial=0.0)
        eligible &= itself | (inside <= crowd_filter_thresh)

    foreground = eligible & (overlap >= fg_thresh)
    background = eligible & (overlap < bg_thresh_hi) & (overlap >= bg_thresh_lo)
    fg_key, bg_key = jax.random.split(key)
    fg_index, fg_drawn = draw(foreground, round(batch_size_per_im * fg_fraction), fg_key)
    bg_index, bg_drawn = draw(background, batch_size_per_im, bg_key)

    # Row i is the i-th object while there is one, then the next of the background.
    objects = fg_drawn.sum()
    row = jnp.arange(batch_size_per_im)
    is_object = row < objects
    place = jnp.where(is_object, row, row - objects + len(fg_index))
    index = jnp.concatenate([fg_index, bg_index]).at[place].get(mode="fill", fill_value=0)
    drawn = jnp.concatenate([fg_drawn, bg_drawn]).at[place].get(mode="fill", fill_value=False)

    rois = jnp.where(drawn[:, None], candidates[index], 0.0)
    match = match[index]
    labels = jnp.where(is_object, classes[match], 0)
    deltas = jnp.where(is_object[:, None], encode(rois, boxes[match], weights=reg_weights), 0.0)
    return SampledRois(*jax.lax.stop_gradient((rois, labels, deltas, drawn)))


def _share_inside(a, b):
    """The share of each box of `a` (N, 4) that lies in each of `b` (M, 4): (N, M), inclusive pixels."""
    low = jnp.maximum(a[:, None, :2], b[None, :, :2])
    high = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = jnp.maximum(high - low + 1, 0).prod(-1)
    return shared / jnp.maximum(area(a), 1.0)[:, None]
