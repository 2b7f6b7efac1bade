"""The RoIs that the heads learn from: a sample of each image's proposals and ground truth, matched to the objects."""

import functools

import jax
import jax.numpy as jnp

from diou_jax.boxes import area, to_input, to_original
from diou_jax.detection.rules import RoiRules
from diou_jax.detection.sampling import sample
from diou_jax.overlaps import pairwise_iou
from diou_jax.structures import GroundTruth, Placement, Proposals, RoiSamples


@jax.named_scope("roi_sampling")
def sample_rois(
    proposals: Proposals,
    gt: GroundTruth,
    keys: jax.Array,
    *,
    placement: Placement,
    rules: RoiRules,
    edges: bool = False,
) -> RoiSamples:
    """Draws RoIs among the ground truth and the proposals (Fast R-CNN, section 2.3; the original's ``_sample_rois``).

    All overlaps are measured in pixels of the original image. A proposal whose largest IoU is with a crowd region is an
    object of the crowd's class, as in the original's end-to-end training; a crowd region itself is never drawn. No
    gradient passes.

    Args:
      proposals: the proposals of B images.
      gt: ground truth in pixels of the original images, G at least 1; no row needs to be valid.
      keys: (B,) random keys.
      placement: the maps of the images.
      rules: how many RoIs are drawn, and which ones are eligible.
      edges: how boxes are mapped, see `boxes.to_original`.
    """
    proposals, gt = jax.lax.stop_gradient((proposals, gt))
    boxes = to_original(proposals.boxes, placement, edges=edges)
    draw = jax.vmap(functools.partial(_sample_image, rules=rules))
    rois, labels, gt_index, valid = draw(boxes, proposals.valid, gt, keys)
    return RoiSamples(rois, to_input(rois, placement, edges=edges), labels, gt_index, valid)


def _sample_image(boxes, valid, gt, key, *, rules):
    count = len(gt.boxes)
    candidates = jnp.concatenate([gt.boxes, boxes])
    overlap, match = _match(candidates, gt)
    row = jnp.arange(len(candidates))
    itself = row < count
    # A ground truth box matches itself, even if another one has the same coordinates.
    match = jnp.where(itself, row, match)
    eligible = jnp.concatenate([gt.valid & ~gt.crowd, valid])
    if rules.crowd_filter_thresh > 0:
        eligible &= itself | (_share_in_crowds(candidates, gt) <= rules.crowd_filter_thresh)
    foreground = eligible & (overlap >= rules.fg_thresh)
    background = eligible & (overlap < rules.bg_thresh_hi) & (overlap >= rules.bg_thresh_lo)
    total = rules.batch_size_per_im
    drawn = sample(foreground, background, key, objects=round(total * rules.fg_fraction), total=total)
    match = match[drawn.rows]
    rois = jnp.where(drawn.drawn[:, None], candidates[drawn.rows], 0.0)
    return rois, jnp.where(drawn.is_object, gt.classes[match], 0), match, drawn.drawn


def _match(boxes, gt):
    """The largest IoU of each box (N, 4) with an object of the image, and the row of that object."""
    overlaps = jnp.where(gt.valid, pairwise_iou(boxes, gt.boxes), 0.0)
    return overlaps.max(1), overlaps.argmax(1).astype(jnp.int32)


def _share_in_crowds(boxes, gt):
    """The largest share of each box's area that lies in one crowd region; boxes (N, 4) in inclusive pixels."""
    low = jnp.maximum(boxes[:, None, :2], gt.boxes[None, :, :2])
    high = jnp.minimum(boxes[:, None, 2:], gt.boxes[None, :, 2:])
    shared = jnp.maximum(high - low + 1, 0).prod(-1)
    share = shared / jnp.maximum(area(boxes), 1.0)[:, None]
    return jnp.where(gt.valid & gt.crowd, share, 0.0).max(1, initial=0.0)
