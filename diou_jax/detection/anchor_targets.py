"""What the RPN learns: which anchors are objects, and where the objects are."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from diou_jax.boxes import encode
from diou_jax.detection.sampling import draw
from diou_jax.kernels.match import match


@flax.struct.dataclass
class AnchorTargets:
    """Of all anchors of B images.

    Attributes:
      labels: int32 (B, A): 1 for an object, 0 for background, -1 for what is not sampled.
      deltas: float32 (B, A, 4) to the best box; 0 where the label is not 1.
      sampled: int32 (B, S), the anchors whose label is not -1, in ascending order; A where there are fewer.
    """

    labels: jax.Array
    deltas: jax.Array
    sampled: jax.Array


def anchor_targets(
    anchors: jax.Array,
    exists: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    size: jax.Array,
    keys: jax.Array,
    *,
    batch_size_per_im: int,
    fg_fraction: float,
    positive_overlap: float,
    negative_overlap: float,
    straddle_thresh: float,
) -> AnchorTargets:
    """Labels a sample of each image's anchors (Faster R-CNN, section 3.1.2; the original's ``_get_rpn_blobs``).

    An anchor is an object if its IoU with a box is at least `positive_overlap`, or if no anchor overlaps some box more;
    it is background if its IoU with every box is below `negative_overlap`. Crowd regions are background.

    Unlike the original, a box that no anchor touches makes none an object, background is drawn without replacement and
    never from objects, and an image without boxes is all background.

    Args:
      anchors: float32 (A, 4), pixels of the network's input, or (B, A, 4) where each image has its own.
      exists: bool (B, A).
      boxes: float32 (B, G, 4), ground truth in the same pixels; G at least 1.
      valid: bool (B, G), False for crowds and padding; may be False throughout.
      size: (B, 2), the images' height and width before padding.
      keys: (B,) random keys.
      batch_size_per_im: anchors sampled of an image, at most.
      fg_fraction: the largest share of objects among them.
      positive_overlap, negative_overlap: see above.
      straddle_thresh: pixels by which a sampled anchor may leave the image; negative: all may be sampled.
    """
    height, width = size[:, :1], size[:, 1:]
    inside = (
        (anchors[..., 0] >= -straddle_thresh)
        & (anchors[..., 1] >= -straddle_thresh)
        & (anchors[..., 2] < width + straddle_thresh)
        & (anchors[..., 3] < height + straddle_thresh)
    )
    eligible = exists & inside if straddle_thresh >= 0 else exists
    matches = match(jnp.asarray(anchors), eligible, boxes, valid)
    foreground = eligible & ((matches.overlap >= positive_overlap) | matches.is_best)
    background = eligible & ~foreground & (matches.overlap < negative_overlap)
    labels, sampled = jax.vmap(
        functools.partial(_sample, objects=int(batch_size_per_im * fg_fraction), total=batch_size_per_im)
    )(foreground, background, keys)
    deltas = encode(anchors, jnp.take_along_axis(boxes, matches.box[..., None], 1))
    return AnchorTargets(labels, jnp.where((labels == 1)[..., None], deltas, 0.0), sampled)


def _sample(foreground, background, key, *, objects, total):
    """The labels (A,) of one image and the anchors that have one: up to `objects` of the foreground, `total` in all."""
    fg_key, bg_key = jax.random.split(key)
    fg_index, fg_drawn = draw(foreground, objects, fg_key)
    bg_index, bg_drawn = draw(background, total, bg_key)
    bg_drawn &= jnp.arange(len(bg_index)) < total - fg_drawn.sum()

    nowhere = len(foreground)
    fg_index, bg_index = jnp.where(fg_drawn, fg_index, nowhere), jnp.where(bg_drawn, bg_index, nowhere)
    labels = jnp.full(nowhere, -1, jnp.int32)
    labels = labels.at[bg_index].set(0, mode="drop").at[fg_index].set(1, mode="drop")
    return labels, jnp.sort(jnp.concatenate([fg_index, bg_index]))[:total]
