"""The detections of a whole test set on the host, with masks as run lengths: probabilities would take gigabytes."""

import dataclasses
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jax.experimental import multihost_utils

from diou_jax import masks
from diou_jax.masks import Rle
from diou_jax.structures import Array, Detections

# Number of images whose masks may wait for a thread; then detection waits for pasting.
WAITING = 64


@dataclasses.dataclass(frozen=True)
class Found:
    """The D detections in one image, best first.

    Attributes:
      boxes: float32 (D, 4), pixels of the original image.
      scores: float32 (D,).
      classes: int32 (D,), 1 to K - 1.
      rles: D masks, or None if the detector has no masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rles: Sequence[Rle] | None = None


NOTHING = Found(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), classes=np.zeros(0, np.int32))


class Collector:
    """Takes the detections of batches to the host and pastes their masks in threads; a context manager.

    Each process pastes the masks of its own images. The processes exchange run lengths, once, at the end.
    """

    def __init__(self, *, mask_threshold: float):
        """Makes a collector without detections; `mask_threshold` is MRCNN.THRESH_BINARIZE."""
        self._mask_threshold = mask_threshold
        self._found: dict[int, Found] = {}
        self._pasted: dict[int, Future] = {}
        self._waiting: deque[Future] = deque()
        self._pool = ThreadPoolExecutor(masks.THREADS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown(cancel_futures=True)

    def add(self, rows: Array, present: Array, sizes: Array, *, detections: Detections) -> int:
        """Adds a batch of this process, and waits for its N devices.

        Args:
          rows: int (N, B), rows of the images in their data set.
          present: bool (N, B), False for images that only fill up the batch.
          sizes: int (N, B, 2), height and width of the images in their files.
          detections: those of the batch, with leading axes N and B.

        Returns:
          The number of images that are present in the batches of all processes.
        """
        rows, present, sizes, detections = jax.tree.map(
            lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), (rows, present, sizes, detections)
        )
        if detections.masks is not None:
            for slot in np.flatnonzero(present).tolist():
                self._paste(int(rows[slot]), jax.tree.map(lambda x, slot=slot: x[slot], detections), sizes[slot])
        columns = detections.boxes, detections.scores, detections.classes, detections.valid
        if jax.process_count() > 1:
            rows, present, columns = multihost_utils.process_allgather((rows, present, columns), tiled=True)
        for slot in np.flatnonzero(present).tolist():
            boxes, scores, classes, valid = (np.asarray(column[slot]) for column in columns)
            self._found[int(rows[slot])] = Found(boxes[valid], scores[valid], classes[valid])
        return int(present.sum())

    def _paste(self, row, one, size):
        height, width = size.tolist()
        self._pasted[row] = self._pool.submit(
            masks.encode,
            one.masks[one.valid],
            one.boxes[one.valid],
            height=height,
            width=width,
            threshold=self._mask_threshold,
        )
        self._waiting.append(self._pasted[row])
        if len(self._waiting) > WAITING:
            self._waiting.popleft().result()

    def all(self) -> dict[int, Found]:
        """The detections in the images of all processes, by the image's row in its data set."""
        rles = _of_all_processes({row: future.result() for row, future in self._pasted.items()})
        return {row: dataclasses.replace(found, rles=rles.get(row)) for row, found in self._found.items()}


def _of_all_processes(rles: dict[int, list[Rle]]) -> dict[int, list[Rle]]:
    """The masks of all processes, by row."""
    if jax.process_count() == 1:
        return rles
    content = np.frombuffer(json.dumps(list(rles.items())).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(content)]), tiled=True)
    padded = np.zeros((1, lengths.max()), np.uint8)
    padded[0, : len(content)] = content
    parts = multihost_utils.process_allgather(padded, tiled=True)
    texts = (part[:length].tobytes() for part, length in zip(parts, lengths, strict=True))
    return dict(pair for text in texts for pair in json.loads(text))
