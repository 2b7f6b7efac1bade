"""A trained detector as a Python callable."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import overload

import jax
import numpy as np
from ml_collections import ConfigDict

from diou_jax import masks
from diou_jax.checkpoint.checkpoints import LAST, Checkpoints
from diou_jax.configs import base
from diou_jax.data.augmentation import longest_sides
from diou_jax.data.buckets import Bucket, default_shapes
from diou_jax.data.packing import blank, example, pack
from diou_jax.data.passes import pack_passes
from diou_jax.data.view import View
from diou_jax.detection.rules import Thresholds
from diou_jax.errors import UserError
from diou_jax.masks import Rle
from diou_jax.options import build
from diou_jax.options.initial_weights import weight_source
from diou_jax.programs import Programs
from diou_jax.structures import AugmentedBatch, Batch, Detections
from diou_jax.weights.sources import import_tensors
from diou_jax.workdir.run_config import CONFIG_FILE, restore_config


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
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int]
    rles: tuple[Rle, ...] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def masks(self) -> np.ndarray | None:
        """The masks, bool (M, H, W), made anew at each call; None if the detector has no masks."""
        height, width = self.size
        return None if self.rles is None else masks.decode(self.rles, height=height, width=width)


class Detector:
    """Detects objects in images of any size; the first image of each bucket costs a compilation.

    Attributes:
      class_names: K names, background first.
      category_ids: K category ids of the training data set, by class.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables: dict,
        class_names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
    ):
        """Builds the config's network with its variables; the detector runs on the first device."""
        base.check(config)
        if config.model.rpn_only:
            raise UserError(
                "model.rpn_only=True: this network proposes boxes without classes and detects nothing; --mode eval "
                "writes its proposals for the images of test.datasets"
            )
        if not config.model.faster_rcnn:
            raise UserError(
                "model.faster_rcnn=False: this network makes no proposals; --mode eval detects in the images for which "
                "test.proposal_files holds some"
            )
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids or range(len(self.class_names)))
        self._detector = build.detector(config, len(self.class_names))
        variables = self._detector.network.folded(variables)
        self._variables = jax.device_put(variables, jax.local_devices()[0])
        self._stride, self._batch_size = config.fpn.coarsest_stride, config.test.ims_per_batch
        self._mask_threshold = config.mrcnn.thresh_binarize
        several = build.passes(config)
        self._augmented = several is not None
        self._passes = several.distinct if several else (build.usual_pass(config),)
        # Given shapes are those of the usual pass, which is the first.
        self._shapes = [
            sorted(given or default_shapes(*longest_sides(one.augmentations), stride=self._stride), key=np.prod)
            for one, given in itertools.zip_longest(self._passes, [tuple(config.data.buckets)])
        ]
        self._run: Callable[..., Detections] = jax.jit(self._detector.detect)
        if self._augmented:
            self._run = build.staged_detection(config, self._detector, lambda title, f: Programs(title, jax.jit(f)))

    @classmethod
    def from_checkpoint(
        cls, folder: str | os.PathLike, config: ConfigDict | None = None, *, checkpoint: str = LAST
    ) -> "Detector":
        """A detector from a checkpoint of a work folder.

        Args:
          folder: a run's ``--workdir``.
          config: replaces the run's own config, which lies in that folder.
          checkpoint: "last", "best" (of those that were evaluated during training) or the step of one.

        Raises:
          UserError: if there is no such checkpoint, or it belongs to another network.
        """
        with Checkpoints(folder, which=checkpoint, create=False) as checkpoints:
            metadata = checkpoints.metadata()
            config = restore_config(folder) if config is None else config
            if config is None:
                raise UserError(f"{pathlib.Path(folder) / CONFIG_FILE} is no config of a run; pass a config")
            base.check(config)
            network = build.network(config, len(metadata["class_names"]))
            variables = checkpoints.restore_variables(network.variable_shapes(), averaged=config.test.ema)
        return cls(config, variables, metadata["class_names"], category_ids=metadata["category_ids"])

    @classmethod
    def from_file(cls, path: str | os.PathLike, config: ConfigDict) -> "Detector":
        """A detector from another repository's weight file; raises UserError if the file does not fit `config`."""
        source = weight_source(config, path)
        if not source.is_detector:
            raise UserError(f"{path} holds {source.kind}, which has no heads to detect with")
        class_names, category_ids = build.class_table(config, source.num_classes)
        shapes = build.network(config, len(class_names)).variable_shapes()
        variables, _ = import_tensors(source, shapes)
        return cls(config, variables, class_names, category_ids=category_ids)

    @overload
    def __call__(
        self, images: Sequence[np.ndarray], *, score_threshold: float | None = None, nms: float | None = None
    ) -> list[Result]: ...

    @overload
    def __call__(
        self, images: np.ndarray, *, score_threshold: float | None = None, nms: float | None = None
    ) -> Result | list[Result]: ...

    def __call__(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        *,
        score_threshold: float | None = None,
        nms: float | None = None,
    ) -> Result | list[Result]:
        """Detects in one image or in a list of images.

        Args:
          images: uint8 (H, W, 3), BGR, as OpenCV reads them; or a sequence of such images of any sizes.
          score_threshold: detections have higher scores; by default the config's ``test.score_thresh``.
          nms: overlap at which a detection suppresses another of its class; by default ``test.nms``. A new threshold
            needs no compilation.

        Returns:
          A result for one image, a list for a sequence; the result of an image does not depend on the others.

        Raises:
          UserError: if an entry is not such an image; the message names it.
        """
        single = images if isinstance(images, np.ndarray) and images.ndim == 3 else None
        images = list(images) if single is None else [single]
        for number, image in enumerate(images):
            _check(image, number)
        default = self._detector.thresholds
        thresholds = Thresholds(
            score=np.float32(default.score if score_threshold is None else score_threshold),
            nms=np.float32(default.nms if nms is None else nms),
        )
        results: dict[int, Result] = {}
        waiting = None
        for rows, batch in self._batches(images):
            found = rows, self._run(self._variables, batch, thresholds), [images[row].shape[:2] for row in rows]
            # The device computes this batch while the host unpacks the one before.
            if waiting is not None:
                results |= self._unpack(*waiting)
            waiting = found
        if waiting is not None:
            results |= self._unpack(*waiting)
        return results[0] if single is not None else [results[row] for row in range(len(images))]

    def _batches(self, images) -> Iterator[tuple[list[int], Batch | AugmentedBatch]]:
        """Batches, each with the rows of `images` that it holds; their buckets agree in all passes."""
        by_buckets: dict[tuple[Bucket, ...], list[int]] = {}
        for row, image in enumerate(images):
            views = (one.view(image.shape[:2]) for one in self._passes)
            by_buckets.setdefault(tuple(map(self._bucket, views, self._shapes)), []).append(row)
        for buckets, members in by_buckets.items():
            for start in range(0, len(members), self._batch_size):
                rows = members[start : start + self._batch_size]
                examples = [
                    [
                        example(one.resize(images[row]), one.view(images[row].shape[:2]), bucket, stride=self._stride)
                        for one, bucket in zip(self._passes, buckets, strict=True)
                    ]
                    for row in rows
                ]
                blanks = [blank(bucket, stride=self._stride) for bucket in buckets]
                examples += [blanks] * (self._batch_size - len(rows))
                if self._augmented:
                    yield rows, pack_passes(examples, self._passes, buckets)
                else:
                    yield rows, pack([one for (one,) in examples], buckets[0])

    def _bucket(self, view: View, shapes) -> Bucket:
        """The smallest bucket that holds a view; each shape has only two canvases, so that few programs suffice."""
        (height, width), size = view.source, view.size
        fitting = [shape for shape in shapes if size[0] <= shape[0] and size[1] <= shape[1]]
        if not fitting:
            raise UserError(f"data.buckets: none holds an image of {width}x{height} pixels")
        shape = fitting[0]
        fits = height <= shape[0] and width <= shape[1]
        return Bucket(*shape, *(side * (1 if fits else 2) for side in shape))

    def _unpack(self, rows, found, sizes) -> dict[int, Result]:
        """The results of a batch by the rows of their images, which have `sizes`."""
        found = jax.device_get(found)

        def result(slot):
            valid, (height, width) = found.valid[slot], sizes[slot]
            boxes, scores, classes = (column[slot][valid] for column in (found.boxes, found.scores, found.classes))
            names = tuple(self.class_names[number] for number in classes)
            rles = None
            if found.masks is not None:
                probabilities, threshold = found.masks[slot][valid], self._mask_threshold
                rles = tuple(masks.encode(probabilities, boxes, height=height, width=width, threshold=threshold))
            return Result(boxes, scores, classes, names, (height, width), rles)

        with ThreadPoolExecutor(masks.THREADS) as pool:
            return dict(zip(rows, pool.map(result, range(len(rows))), strict=True))


def _check(image, number):
    kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"image {number} is {kind}; it must be a uint8 array (height, width, 3), blue first")
    if 0 in image.shape:
        raise UserError(f"image {number} is {kind}: it has no pixels")
