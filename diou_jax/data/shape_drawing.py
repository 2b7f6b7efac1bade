"""Draws the pictures of the embedded data set (`diou_jax.data.shapes`).

Shapes of six classes lie on textured backgrounds, from 8 pixels to most of the image, upright and rotated, compact and
elongated, partly covered. Some images have a crowd, some no shape at all. A ring is one part with a hole, a cross two
bars that overlap.
"""

import cv2
import numpy as np

from diou_jax.data.simplification import join_loops

CLASSES = ("ellipse", "rectangle", "triangle", "star", "cross", "ring")
MOST_OBJECTS = 5
SMALLEST, LARGEST = 8, 110  # longer side of a shape, pixels
SIZE_SKEW = 0.5  # 1 draws sizes log-uniformly; smaller values draw fewer tiny shapes
MOST_ELONGATED = 5.0
MOST_COVERED = 0.25  # share of a shape that others may hide
CONTRAST = 70  # least difference between a shape and the background, in the channel in which they differ most
SHARE_EMPTY = 0.05
SHARE_CROWD = 0.05
OVERSAMPLING = 4
CIRCLE = 48  # vertices


def draw(rng: np.random.Generator, side: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray, list | None]]]:
    """Draws a picture.

    Returns:
      The picture, uint8 BGR (side, side, 3). For each object its class, from 1; its mask, bool (side, side), which
      includes covered parts; and the parts of its outline, each (n, 2), or None for a crowd.
    """
    background = _background(rng, side)
    picture = background.copy()
    if rng.random() < SHARE_EMPTY:
        return _with_noise(picture, rng), []
    objects: list[tuple[int, np.ndarray, list[np.ndarray] | None]] = []
    hidden: list[np.ndarray] = []

    def place(label, longer, centre=None):
        """Draws a shape; returns its mask and outline, None if it would be too small or cover too much of another."""
        alpha, left, top, parts = _shape(rng, CLASSES[label - 1], longer, side, centre)
        full = np.zeros((side, side), np.float32)
        full[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
        mask = full > 0.5
        if mask.sum() < 0.2 * SMALLEST**2:
            return None
        covered = [h | (mask & m) for (_, m, _), h in zip(objects, hidden, strict=True)]
        if any(c.sum() > MOST_COVERED * m.sum() for c, (_, m, _) in zip(covered, objects, strict=True)):
            return None
        hidden[:] = covered
        paint = _paint(rng, picture[mask].mean(0), side)
        picture[:] = picture * (1 - full[..., None]) + paint * full[..., None]
        return mask, parts

    if rng.random() < SHARE_CROWD:
        label = int(rng.integers(1, len(CLASSES) + 1))
        centre = rng.uniform(0.25, 0.75, 2) * side
        members = [place(label, rng.uniform(SMALLEST, 14), centre + rng.normal(0, side / 10, 2)) for _ in range(14)]
        members = [member[0] for member in members if member is not None]
        if members:
            union = np.logical_or.reduce(members)
            objects.append((label, union, None))
            hidden.append(np.zeros_like(union))
    for _ in range(int(rng.integers(1, MOST_OBJECTS + 1))):
        label = int(rng.integers(1, len(CLASSES) + 1))
        for _ in range(8):
            placed = place(label, SMALLEST * (LARGEST / SMALLEST) ** (rng.random() ** SIZE_SKEW))
            if placed is not None:
                objects.append((label, *placed))
                hidden.append(np.zeros_like(placed[0]))
                break
    return _with_noise(picture, rng), objects


def _with_noise(picture, rng):
    return np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def _background(rng, side):
    """A background, float32 (side, side, 3): a colour with a gradient and one of several textures."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    picture = np.full((side, side, 3), rng.uniform(40, 215, 3), np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * x + np.sin(angle) * y
    picture += rng.uniform(-40, 40, 3).astype(np.float32) * across[..., None]
    texture = rng.integers(4)
    strength = rng.uniform(4, 14)
    if texture == 1:
        picture += strength * np.sin(2 * np.pi * rng.uniform(3, 12) * across)[..., None]
    elif texture == 2:
        cells = int(rng.integers(4, 16))
        blobs = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(blobs, (side, side), interpolation=cv2.INTER_CUBIC)
    elif texture == 3:
        picture += rng.normal(0, strength, picture.shape).astype(np.float32)
    return picture


def _paint(rng, behind, side):
    """A slightly shaded colour that stands out from the mean colour `behind`; float32 (side, side, 3)."""
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - behind).max() < CONTRAST:
        colour = rng.uniform(0, 255, 3)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    shade = rng.uniform(0, 50) * (np.cos(angle) * x + np.sin(angle) * y)
    return (colour + shade[..., None]).astype(np.float32)


def _outline(rng, kind):
    """The polygons of a shape within [-1, 1] squared (a second one is a hole), and the shape's largest elongation."""

    def circle(radius):
        turns = np.linspace(0, 2 * np.pi, CIRCLE, endpoint=False)
        return radius * np.stack([np.cos(turns), np.sin(turns)], 1)

    if kind == "ellipse":
        return [circle(1)], MOST_ELONGATED
    if kind == "rectangle":
        return [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)], MOST_ELONGATED
    if kind == "triangle":
        return [np.array([[0, -1], [1, 1], [-1, 1]], float)], 2.5
    if kind == "star":
        turns = np.linspace(0, 2 * np.pi, 10, endpoint=False) - np.pi / 2
        radius = np.where(np.arange(10) % 2, 0.42, 1.0)
        return [radius[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)], 1.3
    if kind == "cross":
        a = rng.uniform(0.28, 0.38)
        return [
            np.array(
                [
                    [-a, -1],
                    [a, -1],
                    [a, -a],
                    [1, -a],
                    [1, a],
                    [a, a],
                    [a, 1],
                    [-a, 1],
                    [-a, a],
                    [-1, a],
                    [-1, -a],
                    [-a, -a],
                ]
            )
        ], 1.6
    return [circle(1), circle(rng.uniform(0.5, 0.65))], 2.0


def _shape(rng, kind, longer, side, centre):
    """A shape's coverage, float32 (h, w) in [0, 1], its left and top corner in the picture, and its outline there."""
    polygons, most = _outline(rng, kind)
    # The shorter side is limited: thin shapes of a few pixels would consist of their edges only.
    shorter = max(longer / (1 + (most - 1) * rng.random() ** 2), min(longer, 6.0))
    size = np.array([longer, shorter]) if rng.random() < 0.5 else np.array([shorter, longer])
    angle = rng.uniform(0, np.pi) if rng.random() < 0.5 else 0.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    polygons = [(polygon * size / 2) @ turn.T for polygon in polygons]
    low, high = polygons[0].min(0), polygons[0].max(0)
    # A shape stays in the picture; if it is larger than the picture, it is cut off.
    room = np.maximum(side - (high - low) - 2, 0)
    corner = 1 + rng.uniform(0, 1, 2) * room if centre is None else centre + low
    corner = np.clip(corner, 1, np.maximum(side - (high - low) - 1, 1))

    left, top = np.floor(corner).astype(int)
    right, bottom = np.minimum(np.ceil(corner + high - low).astype(int) + 1, side)
    fine = np.zeros(((bottom - top) * OVERSAMPLING, (right - left) * OVERSAMPLING), np.uint8)
    for polygon, value in zip(polygons, (255, 0)):
        points = (polygon - low + corner - [left, top]) * OVERSAMPLING - 0.5
        # Four fractional bits place the corners at sixteenths of a cell.
        cv2.fillPoly(fine, [np.round(points * 16).astype(np.int32)], value, cv2.LINE_8, 4)
    coarse = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    parts = _parts(kind, [polygon - low + corner for polygon in polygons])
    return coarse.astype(np.float32) / 255, left, top, parts


def _parts(kind, polygons):
    """The outline that is written for a shape of one polygon, or of two if it has a hole."""
    if kind == "cross":
        (corners,) = polygons
        return [_grown(corners[[0, 1, 6, 7]]), _grown(corners[[3, 4, 9, 10]])]
    # A circle keeps every other vertex: its area becomes one per cent smaller, and mask targets take half the time.
    return [join_loops([_grown(polygon[::2] if len(polygon) == CIRCLE else polygon) for polygon in polygons])]


def _grown(polygon):
    """A polygon whose sides lie half a cell of the oversampled grid further out, since OpenCV fills the border, too."""
    ahead = np.roll(polygon, -1, 0)
    sides = ahead - polygon
    turn = np.sign((polygon[:, 0] * ahead[:, 1] - polygon[:, 1] * ahead[:, 0]).sum())
    after = turn * np.stack([sides[:, 1], -sides[:, 0]], 1) / np.linalg.norm(sides, axis=1, keepdims=True)
    before = np.roll(after, 1, 0)
    # At a sharp corner the sides would meet far away.
    along = np.maximum(1 + (after * before).sum(1, keepdims=True), 0.25)
    return polygon + 0.5 / OVERSAMPLING * (after + before) / along
