"""Detection in the tiles of a large image; the candidates of all tiles are united before suppression.

Suppressing within each tile first would be simpler, but soft-NMS would lower scores twice and boxes would vote twice,
so that an image in tiles would have other detections than the same image in one piece.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.detection.rules import Thresholds
from diou_jax.prediction.batching import Batcher, Group
from diou_jax.prediction.on_devices import Compiled, OnDevices
from diou_jax.prediction.tiles import Tile, TileRules, divide
from diou_jax.structures import Candidates, Detections

# Rows of a class that enter suppression: a power of two between these, so that few programs suffice. A class with more
# candidates in one image keeps the best.
FEWEST, MOST = 64, 4096


class TiledDetection:
    """Detects in images that are larger than a tile.

    The tiles of all images have one size and so one program; the suppression is a program of its own. Masks are made
    for the final boxes: the tiles that hold some go through the backbone again, so that no tile's maps wait in memory.
    """

    def __init__(self, detector: FasterRCNN, run: OnDevices, *, batcher: Batcher, rules: TileRules):
        """Prepares the programs.

        Args:
          detector: network and rules.
          run: the network's variables.
          batcher: makes batches of tiles.
          rules: how images are divided.
        """
        assert detector.heads, "proposals need no tiles"
        head = detector.heads[0]
        self._rules, self._batcher = rules, batcher

        def candidates(variables, batch, thresholds):
            del thresholds  # they are applied on the host
            return detector.candidates(variables, detector.test_pyramid(variables, batch), batch)

        def masks(variables, inputs, thresholds):
            batch, found = inputs
            pyramid = detector.test_pyramid(variables, batch)
            return detector.describe(variables, pyramid, batch, found=found, thresholds=thresholds).masks

        self._candidates = run.compiled(candidates)
        self._suppress = jax.jit(lambda united, thresholds: head.suppress(united, thresholds=thresholds))
        self._masks = run.compiled(masks)
        self._has_masks = len(detector.heads) > 1

    def tiles(self, size: tuple[int, int]) -> list[Tile]:
        """The views of an image of this height and width; a single one means that it needs no tiles."""
        return divide(size, self._rules)

    def __call__(self, image: np.ndarray, thresholds: Thresholds) -> Detections:
        """The detections in an image, uint8 (H, W, 3) BGR, as numpy arrays (D, ...) in pixels of the image."""
        tiles = self.tiles((image.shape[0], image.shape[1]))
        crops = list(enumerate(tile.crop(image) for tile in tiles))
        parts: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for group, found in self._through(self._candidates, self._batcher.groups(crops), thresholds):
            for slot, row in enumerate(group.rows):
                parts[row] = self._reported(jax.tree.map(lambda x, slot=slot: x[slot], found), tiles[row], thresholds)
        united = unite([parts[row] for row in range(len(tiles))], classes=np.shape(thresholds.score)[0])
        found = jax.device_get(self._suppress(united, thresholds))
        found = jax.tree.map(lambda x: x[0], found)
        return self._with_masks(found, tiles, crops, thresholds) if self._has_masks else found

    def _reported(self, found: Candidates, tile: Tile, thresholds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes (n,), boxes (n, 4) in pixels of the image and scores (n,) of a tile's candidates that count."""
        wanted = found.valid & (found.scores > thresholds.score)
        classes, rois = np.nonzero(wanted)
        boxes = np.asarray(found.boxes)[classes, rois] + np.array(tile.offset, np.float32)
        counts = tile.reports(boxes, drop_cut=self._rules.whole and not tile.whole)
        return classes[counts], boxes[counts], np.asarray(found.scores)[classes, rois][counts]

    def _with_masks(self, found: Detections, tiles: list[Tile], crops, thresholds: Thresholds) -> Detections:
        """Detections with masks, each from the tile that has most of the image around its box."""
        margins = np.stack([tile.margin(np.asarray(found.boxes)) for tile in tiles])
        best = np.where(found.valid, margins.argmax(0), -1)
        mine = {row: np.flatnonzero(best == row) for row in np.unique(best[best >= 0]).tolist()}

        def with_boxes(group):
            seen = [_rows(found, mine[row], offset=tiles[row].offset) for row in group.rows]
            blanks = group.batch.index.size - len(seen)
            seen += [_rows(found, np.zeros(0, int), offset=(0, 0, 0, 0))] * blanks
            columns = jax.tree.map(lambda *rows: np.stack(rows), *seen)
            return group.batch, jax.tree.map(lambda x: x.reshape(*group.batch.index.shape, *x.shape[1:]), columns)

        masks = np.zeros((len(found.valid), 1, 1), np.float32)
        groups = self._batcher.groups(crops[row] for row in mine)
        for group, made in self._through(self._masks, groups, thresholds, inputs=with_boxes):
            for slot, row in enumerate(group.rows):
                if masks.shape[1:] != made.shape[2:]:
                    masks = np.zeros((len(found.valid), *made.shape[2:]), np.float32)
                masks[mine[row]] = made[slot, : len(mine[row])]
        return dataclasses.replace(found, masks=masks)

    def _through(self, function: Compiled, groups: Iterable[Group], thresholds, *, inputs=lambda group: group.batch):
        """Each group with the function's result, numpy arrays (B, ...); the host works while the devices do."""
        waiting = None
        for group in groups:
            started = group, function(inputs(group), thresholds, devices=group.devices)
            if waiting is not None:
                yield waiting[0], to_host(waiting[1], devices=waiting[0].devices)
            waiting = started
        if waiting is not None:
            yield waiting[0], to_host(waiting[1], devices=waiting[0].devices)


def to_host(tree: Any, *, devices: int) -> Any:
    """A program's result as numpy arrays (B, ...), without an axis of devices."""
    tree = jax.device_get(tree)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree) if devices > 1 else tree


def unite(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], *, classes: int) -> Candidates:
    """The candidates of all views of one image as the arrays that suppression takes, (1, K - 1, N, ...).

    Args:
      parts: classes (n,) from 0 without the background, boxes (n, 4) and scores (n,) of each view.
      classes: K - 1.
    """
    labels, boxes, scores = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    # By class; within a class in the order of the views, which decides between equal scores.
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=classes)
    if counts.max(initial=0) > MOST:
        ranked = np.lexsort((-scores, labels))
        place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = np.zeros(len(labels), bool)
        chosen[ranked[place < MOST]] = True
        order, counts = order[chosen[order]], np.minimum(counts, MOST)
    labels, boxes, scores = labels[order], boxes[order], scores[order]
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = FEWEST
    while rows < counts.max(initial=0):
        rows *= 2
    united = Candidates(
        np.zeros((1, classes, rows, 4), np.float32),
        np.zeros((1, classes, rows), np.float32),
        np.zeros((1, classes, rows), bool),
    )
    united.boxes[0, labels, place] = boxes
    united.scores[0, labels, place] = scores
    united.valid[0, labels, place] = True
    return united


def _rows(found: Detections, rows: np.ndarray, *, offset: tuple[int, int, int, int]) -> Detections:
    """The detections in `rows`, in pixels of the tile at `offset`, padded to as many as there were."""

    def pick(x):
        picked = np.zeros_like(x)
        picked[: len(rows)] = x[rows]
        return picked

    boxes = pick(found.boxes)
    boxes[: len(rows)] -= np.array(offset, np.float32)
    return Detections(boxes, pick(found.scores), pick(found.classes), pick(found.valid))
