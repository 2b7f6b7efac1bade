import cv2
import numpy as np
import pytest

from diou_jax.data.shape_drawing import CLASSES, MOST_COVERED, draw


@pytest.fixture(scope="module")
def many():
    """Pictures with the class, the mask and the crowd flag of each object."""
    rng = np.random.default_rng(0)
    pictures = [draw(rng, 128) for _ in range(250)]
    return [(picture, [(label, mask, parts is None) for label, mask, parts in found]) for picture, found in pictures]


def test_there_is_something_of_everything(many):
    objects = [[entry for entry in found if not entry[2]] for _, found in many]
    crowds = [entry for _, found in many for entry in found if entry[2]]
    assert 2 <= sum(not found for _, found in many) <= 40, "images without objects"
    assert 2 <= len(crowds) <= 40
    sides = []
    for found in objects:
        for _, mask, _ in found:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            sides.append((rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
    sides = np.array(sides)
    assert sides.min() >= 4 and sides.max(1).min() <= 10 and sides.max() > 100
    assert (sides.max(1) > 3 * sides.min(1)).sum() > 10, "elongated ones"
    overlapping = sum(bool((a[1] & b[1]).any()) for found in objects for i, a in enumerate(found) for b in found[:i])
    assert overlapping > 10
    assert {label for found in objects for label, _, _ in found} == set(range(1, len(CLASSES) + 1))


def test_shapes_stand_out_and_stay_visible(many):
    for picture, found in many:
        assert picture.dtype == np.uint8 and picture.shape == (128, 128, 3)
        for number, (_, mask, crowd) in enumerate(found):
            later = [other for _, other, _ in found[number + 1 :]]
            hidden = np.logical_or.reduce([mask & other for other in later]) if later else np.zeros_like(mask)
            assert crowd or hidden.sum() <= MOST_COVERED * mask.sum()
            if not crowd and not later and mask.sum() > 100:
                ring = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~mask
                core = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
                if core.sum() > 30 and not any((other & ring).any() for _, other, _ in found[:number]):
                    contrast = np.abs(picture[core].mean(0) - picture[ring].mean(0)).max()
                    assert contrast > 25
