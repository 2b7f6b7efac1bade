"""A column of image ids, which are integers or texts."""

from collections.abc import Sequence

import numpy as np


def id_column(image_ids: Sequence[int | str]) -> np.ndarray:
    """Ids as an int64 array if all of them are integers of 64 bits, else unchanged in an object array."""
    if all(isinstance(i, (int, np.integer)) and -(2**63) <= i < 2**63 for i in image_ids):
        return np.asarray(image_ids, np.int64)
    column = np.empty(len(image_ids), object)
    column[:] = image_ids
    return column
