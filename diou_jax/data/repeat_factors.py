"""Repeat factors: how often an epoch has an image, so that rare classes are seen more often.

References:
  Gupta et al., LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR 2019, section 4.1.
"""

import numpy as np

from diou_jax.data.dataset import Records


def repeat_factors(records: Records, *, threshold: float, keep: np.ndarray) -> np.ndarray:
    """The repeat factor of each image, at least 1: float64 (N,).

    A class c that occurs in the share f of the images has the factor ``max(1, sqrt(threshold / f))``, and an image the
    largest factor of its classes. Crowds do not count, as nothing is learnt from them.

    Args:
      records: the annotations of N images.
      threshold: the share of images below which a class is rare; 0 gives every image the factor 1.
      keep: (N,) bool, the images that are trained on; the others neither count nor matter.
    """
    image = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    counts = ~records.crowd & keep[image]
    image, classes = image[counts], records.classes[counts]
    factors = np.ones(len(records))
    pairs = np.unique(np.stack([image, classes], 1), axis=0)
    images_of_class = np.bincount(pairs[:, 1]) if len(pairs) else np.zeros(0, int)
    share = np.maximum(images_of_class, 1) / max(keep.sum(), 1)
    np.maximum.at(factors, pairs[:, 0], np.sqrt(threshold / share)[pairs[:, 1]])
    return factors
