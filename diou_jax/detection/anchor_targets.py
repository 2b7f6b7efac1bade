"""The RPN's targets: which anchors are objects, and the deltas from them to the objects."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Key, Real

from diou_jax.boxes import encode
from diou_jax.detection.anchors import join
from diou_jax.detection.rules import AnchorRules
from diou_jax.detection.sampling import sample
from diou_jax.kernels.match import match
from diou_jax.structures import Anchors, Array, GroundTruth


@flax.struct.dataclass
class AnchorTargets:
    """The targets of all anchors of B images.

    Attributes:
      labels: int32 (B, A): 1 for an object, 0 for background, -1 for an anchor that is not sampled.
      deltas: float32 (B, A, 4), deltas to the box of the largest IoU; 0 where the label is not 1.
      sampled: int32 (B, S), the anchors whose label is not -1, ascending; A where there are fewer. None: the RPN
        computes all anchors.
    """

    labels: Array
    deltas: Array
    sampled: Array | None = None


@jax.named_scope("anchor_targets")
def anchor_targets(
    anchors: Anchors, gt: GroundTruth, keys: Key[jax.Array, "B"], *, size: Real[Array, "B 2"], rules: AnchorRules
) -> AnchorTargets:
    """Labels a sample of each image's anchors (Faster R-CNN, section 3.1.2; the original's ``_get_rpn_blobs``).

    An anchor is an object if its IoU with a box is at least `rules.positive_overlap`, or if it has the largest IoU of
    all anchors with some box. Otherwise it is background if its IoU with every box is below `rules.negative_overlap`.
    Crowd regions count as background.

    Unlike the original, a box that no anchor touches makes no anchor an object, background is drawn without replacement
    and never from objects, and in an image without boxes every anchor is background.

    Args:
      anchors: the anchors of B images.
      gt: ground truth in pixels of the network's input, G at least 1; no row needs to be valid.
      keys: (B,) random keys.
      size: (B, 2), height and width of the images before padding.
      rules: how many anchors are sampled, and which ones are eligible.
    """
    boxes, exists = join(anchors)
    eligible = exists & _inside(boxes, size, rules.straddle_thresh) if rules.straddle_thresh >= 0 else exists
    matches = match(jnp.asarray(boxes), gt.boxes, eligible=eligible, valid=gt.valid & ~gt.crowd)
    foreground = eligible & ((matches.overlap >= rules.positive_overlap) | matches.is_best)
    background = eligible & ~foreground & (matches.overlap < rules.negative_overlap)
    labels, sampled = jax.vmap(functools.partial(_label, rules=rules))(foreground, background, keys)
    deltas = encode(boxes, jnp.take_along_axis(gt.boxes, matches.box[..., None], 1))
    return AnchorTargets(labels, jnp.where((labels == 1)[..., None], deltas, 0.0), sampled)


def _inside(boxes, size, margin):
    """Mask (B, A) of the anchors that reach at most `margin` pixels out of their image, (B, 2) height and width."""
    height, width = size[:, :1], size[:, 1:]
    return (
        (boxes[..., 0] >= -margin)
        & (boxes[..., 1] >= -margin)
        & (boxes[..., 2] < width + margin)
        & (boxes[..., 3] < height + margin)
    )


def _label(foreground, background, key, *, rules):
    """The labels (A,) of one image, and its sampled anchors, ascending, filled up with A."""
    total = rules.batch_size_per_im
    index, is_object, drawn = sample(foreground, background, key, objects=int(total * rules.fg_fraction), total=total)
    nowhere = len(foreground)
    index = jnp.where(drawn, index, nowhere)
    labels = jnp.full(nowhere, -1, jnp.int32).at[index].set(is_object.astype(jnp.int32), mode="drop")
    return labels, jnp.sort(index)
