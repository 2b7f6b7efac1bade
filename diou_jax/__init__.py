"""Faster R-CNN with FPN and the IoU family of box losses, in JAX.

Shapes in every docstring use one legend of letters:

    B  images in a batch            G  ground-truth boxes of an image (padded)
    A  anchors of an image          R  regions of interest (RoIs) of an image
    K  classes, background first    L  pyramid levels, fine to coarse
    C  channels                     H, W  height and width
    S  RoIs sampled for training    D  final detections of an image
    N  any number of boxes

Boxes are float32 ``[x1, y1, x2, y2]`` in pixels; the convention is stated in `diou_jax.boxes`.
Arrays have static shapes; a ``valid`` mask is False for rows that only fill the shape.
"""

__version__ = "0.1.0"

__all__ = ["Detector"]


def __getattr__(name: str):
    """Imports `Detector` at its first use, since data workers import this package and need no network."""
    if name == "Detector":
        from diou_jax.prediction.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
