"""What crosses from the host to the device."""

import flax.struct
import jax


@flax.struct.dataclass
class Batch:
    """A minibatch of images of one bucket with their ground truth; every leaf leads with B.

    Pixels travel as the file's own uint8 values on a canvas that many images share. The device resizes them, by the
    linear interpolation that the `rows` and `columns` taps spell out: output row i is
    ``(1 - row_weight[i]) * image[rows[0, i]] + row_weight[i] * image[rows[1, i]]``. The taps are computed on the host
    in float64, as OpenCV does, so that the network's input equals the original's; a mirrored image is one whose column
    taps run backwards. H and W are the bucket's size, Hc and Wc the canvas'.

    Attributes:
      image: (B, Hc, Wc, 3) uint8, BGR, undefined beyond the image.
      rows: (B, 2, H) int32, canvas rows above and below each output row.
      row_weight: (B, H) float32, weight of the second.
      columns: (B, 2, W) int32, likewise.
      column_weight: (B, W) float32.
      size: (B, 2) int32, height and width of the resized image, before padding.
      extent: (B, 2) int32, height and width that the original's padding would give it (a multiple of 32); beyond them
        nothing exists.
      scale: (B,) float32, resized over original size.
      original_size: (B, 2) int32, height and width of the image in its file.
      boxes: (B, G, 4) float32, ground truth in pixels of the original image, mirrored with it.
      classes: (B, G) int32, 1 to K - 1.
      crowd: (B, G) bool.
      valid: (B, G) bool, True where the row is a box.
      index: (B,) int32, the image's row in its data set.
      present: (B,) bool, False for an image that only fills the batch up.
    """

    image: jax.Array
    rows: jax.Array
    row_weight: jax.Array
    columns: jax.Array
    column_weight: jax.Array
    size: jax.Array
    extent: jax.Array
    scale: jax.Array
    original_size: jax.Array
    boxes: jax.Array
    classes: jax.Array
    crowd: jax.Array
    valid: jax.Array
    index: jax.Array
    present: jax.Array
