"""The structures that hold arrays which belong together: ground truth, a batch, and the detector's results for it.

Masks and keypoints are None unless a head needs them. The first axis of every array is B, the images of a batch, except
where a docstring says otherwise.
"""

from typing import TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# On the host numpy's, on the devices and under jit JAX's.
Array: TypeAlias = jax.Array | np.ndarray


@flax.struct.dataclass
class Polygons:
    """The outlines of the objects of B images: G rows as in `GroundTruth`, P vertices each.

    An object consists of parts, closed polygons whose vertices follow each other. Inside a part the even-odd rule
    holds, so that a part may have holes; the object is the union of its parts.

    Attributes:
      points: float32 (B, G, P, 2), x and y of the vertices, continuous coordinates of the original image, in which
        pixel i spans [i, i + 1]; mirrored if the image is.
      part: int32 (B, G, P), number of the vertex's part, ascending from 0; -1 where there is no vertex. An object
        without vertices has no known mask.
    """

    points: Array
    part: Array


@flax.struct.dataclass
class GroundTruth:
    """The annotated objects of B images, G rows each.

    Attributes:
      boxes: float32 (B, G, 4), pixels.
      classes: int32 (B, G), 1 to K - 1.
      crowd: bool (B, G), True where the row is a region of many objects.
      valid: bool (B, G), True where the row is an object.
      masks: the objects' outlines, or None.
      keypoints: the objects' keypoints, or None.
    """

    boxes: Array
    classes: Array
    crowd: Array
    valid: Array
    masks: Polygons | None = None
    keypoints: Array | None = None


@flax.struct.dataclass
class Taps:
    """The pixels that linear interpolation blends along one axis of B images; N is the length of the output.

    Output i is ``(1 - weight[i]) * source[index[0, i]] + weight[i] * source[index[1, i]]``.

    Attributes:
      index: int32 (B, 2, N), the source pixels before and after each output.
      weight: float32 (B, N), weight of the latter.
    """

    index: Array
    weight: Array


@flax.struct.dataclass
class Placement:
    """Where B images lie in the network's input: one affine map for each image, axis by axis.

    An image is mirrored first, if at all. Then a point (y, x) of it lies at ``scale * (y, x) + offset``.

    Attributes:
      scale: float32 (B, 2), vertical and horizontal factor.
      offset: float32 (B, 2), vertical and horizontal shift, pixels of the network's input; negative for a crop.
      mirrored: bool (B,), whether left and right are exchanged.
    """

    scale: Array
    offset: Array
    mirrored: Array


@flax.struct.dataclass
class Batch:
    """A minibatch of images of one bucket with their ground truth.

    Pixels travel as the uint8 values of the file on the bucket's canvas. The device resizes them by linear
    interpolation with the taps of `rows` and `columns`. The taps are computed on the host in float64, as OpenCV does,
    so that the network's input equals the original's; the column taps of a mirrored image run backwards. H and W are
    the bucket's height and width, Hc and Wc those of the canvas.

    Attributes:
      image: (B, Hc, Wc, 3) uint8, BGR, undefined beyond the image.
      rows: taps of the H output rows among the canvas rows.
      columns: taps of the W output columns among the canvas columns.
      image_size: (B, 2) int32, height and width of the image in the network's input, before padding.
      padded_size: (B, 2) int32, height and width with the original's padding to multiples of 32; beyond them no anchor
        or feature exists.
      placement: the map from pixels of the file to pixels of the network's input.
      original_size: (B, 2) int32, height and width of the image in its file.
      gt: the ground truth; boxes in pixels of the original image, mirrored if the image is.
      index: (B,) int32, the image's row in its data set.
      present: (B,) bool, False for an image that only fills up the batch.
      proposals: proposals that were made before, or None if the RPN makes them; unlike elsewhere their boxes are in
        pixels of the original image, mirrored if the image is.
      aspect_ratio: (B,) float32, factor of the width by which the image was resized after decoding. Sizes, boxes and
        `placement` are then those of the resized image. None: it is as in its file.
    """

    image: Array
    rows: Taps
    columns: Taps
    image_size: Array
    padded_size: Array
    placement: Placement
    original_size: Array
    gt: GroundTruth
    index: Array
    present: Array
    proposals: "Proposals | None" = None
    aspect_ratio: Array | None = None


@flax.struct.dataclass
class AugmentedBatch:
    """The same B images in each of V passes of augmented testing; a pass has its own bucket.

    Attributes:
      views: V batches, that of the unchanged images first.
    """

    views: tuple[Batch, ...]

    @property
    def index(self) -> Array:
        """(B,) int32, the images' rows in their data set."""
        return self.views[0].index

    @property
    def present(self) -> Array:
        """(B,) bool, False for images that only fill up the batch."""
        return self.views[0].present

    @property
    def original_size(self) -> Array:
        """(B, 2) int32, heights and widths of the images in their files."""
        return self.views[0].original_size


@flax.struct.dataclass
class Anchors:
    """The anchors of B images on each of L levels, fine to coarse; N is the number of anchors of a level.

    Attributes:
      boxes: per level float32 (N, 4), pixels of the network's input, or (B, N, 4) where each image has its own.
      exists: per level bool (B, N), False where the anchor's cell lies beyond the image's padded size.
    """

    boxes: list[Array]
    exists: list[Array]


@flax.struct.dataclass
class Proposals:
    """Boxes that may hold an object, by descending score.

    Attributes:
      boxes: float32 (B, R, 4), pixels of the network's input.
      scores: float32 (B, R), objectness probabilities; 0 where not valid.
      valid: bool (B, R).
    """

    boxes: Array
    scores: Array
    valid: Array


@flax.struct.dataclass
class RoiSamples:
    """The S RoIs of each image that the heads learn from, those with objects first.

    Attributes:
      rois: float32 (B, S, 4), pixels of the original image; 0 where not valid.
      input_rois: float32 (B, S, 4), `rois` in pixels of the network's input.
      labels: int32 (B, S), classes; 0 for background.
      gt_index: int32 (B, S), the ground truth row of the RoI's object; an arbitrary row for background.
      valid: bool (B, S).
    """

    rois: Array
    input_rois: Array
    labels: Array
    gt_index: Array
    valid: Array


@flax.struct.dataclass
class Candidates:
    """Boxes and scores of every class but the background, before suppression.

    Attributes:
      boxes: float32 (B, K - 1, R, 4), pixels of the original image.
      scores: float32 (B, K - 1, R), probabilities.
      valid: bool (B, 1, R).
    """

    boxes: Array
    scores: Array
    valid: Array


@flax.struct.dataclass
class Detections:
    """D detections of each image, best first.

    Attributes:
      boxes: float32 (B, D, 4), pixels of the original image.
      scores: float32 (B, D); 0 where not valid.
      classes: int32 (B, D), 1 to K - 1; 0 where not valid.
      valid: bool (B, D).
      masks: float32 (B, D, M, M), probability that a cell of the detection's box belongs to the object of its class, or
        None.
      keypoints: the detections' keypoints, or None.
    """

    boxes: Array
    scores: Array
    classes: Array
    valid: Array
    masks: Array | None = None
    keypoints: Array | None = None


def blank_batch(images: int, height: int, width: int) -> Batch:
    """A batch of `images` black images without objects, for tracing and compilation, where only shapes matter."""
    size = jnp.tile(jnp.array([[height, width]], jnp.int32), (images, 1))
    nothing = jnp.zeros((images, 1), bool)
    return Batch(
        image=jnp.zeros((images, height, width, 3), jnp.uint8),
        rows=Taps(jnp.zeros((images, 2, height), jnp.int32), jnp.zeros((images, height))),
        columns=Taps(jnp.zeros((images, 2, width), jnp.int32), jnp.zeros((images, width))),
        image_size=size,
        padded_size=size,
        placement=Placement(jnp.ones((images, 2)), jnp.zeros((images, 2)), jnp.zeros(images, bool)),
        original_size=size,
        gt=GroundTruth(jnp.zeros((images, 1, 4)), jnp.zeros((images, 1), jnp.int32), crowd=nothing, valid=nothing),
        index=jnp.zeros(images, jnp.int32),
        present=jnp.ones(images, bool),
    )
