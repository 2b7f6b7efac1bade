"""What the RPN learns from one image: which anchors are objects, and where the objects are."""

import flax.struct
import jax
import jax.numpy as jnp

from diou_jax.boxes import encode
from diou_jax.detector.sampling import draw
from diou_jax.overlaps import pairwise_iou


@flax.struct.dataclass
class AnchorTargets:
    """Of all anchors of an image.

    Attributes:
      labels: int32 (A,): 1 for an object, 0 for background, -1 for what is not sampled.
      deltas: float32 (A, 4) to the best box; meaningful where the label is 1.
    """

    labels: jax.Array
    deltas: jax.Array


def anchor_targets(
    anchors: jax.Array,
    exists: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    size: jax.Array,
    key: jax.Array,
    *,
    batch_size_per_im: int,
    fg_fraction: float,
    positive_overlap: float,
    negative_overlap: float,
    straddle_thresh: float,
) -> AnchorTargets:
    """Labels a sample of the anchors (Faster R-CNN, section 3.1.2; the original's ``_get_rpn_blobs``).

    An anchor is an object if its IoU with a box is at least `positive_overlap`, or if no anchor overlaps some box more;
    it is background if its IoU with every box is below `negative_overlap`. Crowd regions are background.

    Unlike the original, a box that no anchor touches makes none an object, background is drawn without replacement and
    never from objects, and an image without boxes is all background.

    Args:
      anchors: float32 (A, 4), pixels of the network's input.
      exists: bool (A,).
      boxes: float32 (G, 4), ground truth in the same pixels; G at least 1.
      valid: bool (G,), False for crowds and padding; may be False throughout.
      size: (2,), the image's height and width before padding.
      key: random key.
      batch_size_per_im: anchors sampled, at most.
      fg_fraction: the largest share of objects among them.
      positive_overlap, negative_overlap: see above.
      straddle_thresh: pixels by which a sampled anchor may leave the image; negative: all may be sampled.
    """
    height, width = size[0], size[1]
    inside = (
        (anchors[:, 0] >= -straddle_thresh)
        & (anchors[:, 1] >= -straddle_thresh)
        & (anchors[:, 2] < width + straddle_thresh)
        & (anchors[:, 3] < height + straddle_thresh)
    )
    eligible = exists & inside if straddle_thresh >= 0 else exists
    overlaps = jnp.where(eligible[:, None] & valid, pairwise_iou(anchors, boxes), 0.0)
    # The maximum is found again by equality, so both must see the same rounding: no fusion may compute it twice.
    overlaps = jax.lax.optimization_barrier(overlaps)
    best = overlaps.max(1)
    best_of_box = overlaps.max(0)
    is_best = ((overlaps == best_of_box) & (best_of_box > 0)).any(1)
    foreground = eligible & ((best >= positive_overlap) | is_best)
    background = eligible & ~foreground & (best < negative_overlap)

    fg_key, bg_key = jax.random.split(key)
    fg_index, fg_drawn = draw(foreground, int(batch_size_per_im * fg_fraction), fg_key)
    bg_index, bg_drawn = draw(background, batch_size_per_im, bg_key)
    bg_drawn &= jnp.arange(len(bg_index)) < batch_size_per_im - fg_drawn.sum()

    nowhere = len(anchors)
    labels = jnp.full(nowhere, -1, jnp.int32)
    labels = labels.at[jnp.where(bg_drawn, bg_index, nowhere)].set(0, mode="drop")
    labels = labels.at[jnp.where(fg_drawn, fg_index, nowhere)].set(1, mode="drop")
    deltas = encode(anchors, boxes[overlaps.argmax(1)])
    return AnchorTargets(labels, jnp.where((labels == 1)[:, None], deltas, 0.0))
