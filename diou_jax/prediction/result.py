"""The detections in one image, in the forms in which other programs take them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from diou_jax import masks
from diou_jax.errors import UserError
from diou_jax.evaluation import coco_results
from diou_jax.masks import Rle
from diou_jax.prediction.pixels import Image, to_pixels
from diou_jax.reporting import visualize

if TYPE_CHECKING:
    import pandas
    import supervision


@dataclasses.dataclass(frozen=True)
class Result:
    """The M detections in one image, best first.

    Attributes:
      boxes: float32 (M, 4), inclusive pixels of the image.
      scores: float32 (M,).
      classes: int32 (M,), from 1.
      names: M names of classes.
      size: height and width of the image in pixels.
      rles: M masks in COCO's run lengths, or None if the detector has no masks.
      category_ids: M category ids of the training data set.
      device: the device that computed them, such as "cpu:0" or "gpu:3".
      seconds: time that the batch of this image took on its devices, until the host had its detections, divided by the
        number of images in the batch. The first batch of a shape includes the compilation.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int]
    rles: tuple[Rle, ...] | None = None
    category_ids: tuple[int, ...] = ()
    device: str = ""
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def masks(self) -> np.ndarray | None:
        """The masks, bool (M, H, W), made anew at each call; None if the detector has no masks."""
        height, width = self.size
        return None if self.rles is None else masks.decode(self.rles, height=height, width=width)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """The detections as COCO's results, plain Python values that json can write.

        Args:
          image_id: id of the image in the annotation file that the results belong to.

        Returns:
          For each detection ``image_id``, ``category_id``, ``bbox`` (x, y, width, height; both border pixels count),
          ``score`` and, if the detector has masks, ``segmentation``.
        """
        ids = dict(zip(self.classes.tolist(), self.category_ids, strict=True))
        about: dict[str, Any] = {"image_id": image_id, "category_ids": ids}
        results = coco_results.to_results(self.boxes, self.scores, self.classes.tolist(), **about)
        if self.rles is None:
            return results
        return [result | {"segmentation": rle} for result, rle in zip(results, self.rles, strict=True)]

    def to_pandas(self) -> pandas.DataFrame:
        """The detections as a table, a row each: x1, y1, x2, y2 (inclusive pixels), score, class, name, category_id.

        If the detector has masks, the column ``rle`` has their run lengths. Raises UserError without pandas.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas needs pandas: pip install 'diou-jax[pandas]'") from None
        columns = dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T))
        columns |= {"score": self.scores, "class": self.classes}
        table = pandas.DataFrame(columns).assign(name=list(self.names), category_id=list(self.category_ids))
        return table if self.rles is None else table.assign(rle=list(self.rles))

    def to_supervision(self) -> supervision.Detections:
        """The detections as ``supervision.Detections``.

        Boxes end at the far edge of their last pixel there, so that x2 and y2 are larger by one than in `boxes`.
        ``class_id`` counts from 0 without the background, as in supervision's data sets; the names are in
        ``data["class_name"]``. Raises UserError without supervision.
        """
        try:
            import supervision
        except ImportError:
            raise UserError("to_supervision needs supervision: pip install 'diou-jax[supervision]'") from None
        return supervision.Detections(
            xyxy=self.boxes + np.array([0, 0, 1, 1], np.float32),
            mask=self.masks,
            confidence=self.scores,
            class_id=self.classes.astype(int) - 1,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(
        self, image: Image, *, color: str = "bgr", score_threshold: float = 0.0, enlarge: bool = False
    ) -> np.ndarray:
        """Draws boxes, masks and labels into a copy of the image.

        Args:
          image: the image of this result, in any form that `Detector` takes.
          color: "bgr" or "rgb", the order of colours of an array, and of the picture.
          score_threshold: detections with higher scores are drawn.
          enlarge: whether small images are enlarged and large ones reduced, so that labels are legible on a screen; the
            picture then has another size than the image.

        Returns:
          The picture, uint8 (H, W, 3).

        Raises:
          UserError: if the image is none, or has another size than that of this result.
        """
        pixels = to_pixels(image, "the image", color=color)
        if pixels.shape[:2] != tuple(self.size):
            height, width = self.size
            raise UserError(
                f"the image has {pixels.shape[1]}x{pixels.shape[0]} pixels, but these are detections in an image of "
                f"{width}x{height}"
            )
        shown = np.flatnonzero(self.scores > score_threshold).tolist()
        rles = None if self.rles is None else [self.rles[row] for row in shown]
        objects = visualize.Objects(self.boxes[shown], self.classes[shown], scores=self.scores[shown], rles=rles)
        names = dict(zip(self.classes.tolist(), self.names, strict=True))
        picture = visualize.draw(pixels, objects, class_names=names, fit=enlarge)
        return np.ascontiguousarray(picture[..., ::-1]) if color == "rgb" else picture
