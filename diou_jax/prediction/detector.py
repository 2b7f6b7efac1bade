"""A trained detector as a Python callable."""

import itertools
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast, overload

import jax
import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from diou_jax import masks
from diou_jax.checkpoint.checkpoints import LAST, Checkpoints
from diou_jax.compilation import recall_kernels
from diou_jax.configs import base
from diou_jax.detection.rules import Thresholds
from diou_jax.errors import UserError
from diou_jax.options import build
from diou_jax.options.initial_weights import weight_source
from diou_jax.prediction.batching import Batcher, Group
from diou_jax.prediction.on_devices import OnDevices
from diou_jax.prediction.pixels import Image, is_image, to_pixels
from diou_jax.prediction.result import Result as Result
from diou_jax.prediction.thresholds import overlap_threshold, score_thresholds
from diou_jax.prediction.tiled import TiledDetection, to_host
from diou_jax.prediction.tiles import TileRules
from diou_jax.structures import Detections
from diou_jax.weights.sources import import_tensors
from diou_jax.workdir.run_config import CONFIG_FILE, restore_config


class Detector:
    """Detects objects in images of any size; the first image of each bucket costs a compilation.

    Nothing in a detector changes after it is made, so that several threads may call it at the same time.

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
        """Builds the config's network with its variables on all local devices."""
        base.check(config)
        recall_kernels(config.log.compilation_cache)
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
        self._mask_threshold = config.mrcnn.thresh_binarize
        several = build.passes(config)
        self._batcher = Batcher(
            several.distinct if several else (build.usual_pass(config),),
            shapes=config.data.buckets,
            stride=config.fpn.coarsest_stride,
            per_device=config.test.ims_per_batch,
            augmented=several is not None,
        )
        run = OnDevices(self._detector.network.folded(variables))
        self._devices = [f"{device.platform}:{device.id}" for device in run.devices]
        if several is None:
            self._detect = run.compiled(self._detector.detect)
        else:
            self._detect = run.augmented(lambda compiled: build.staged_detection(config, self._detector, compiled))
        self._run, self._variables = self._detect.one, run.first
        self._tiled = None
        if config.predict.tile:
            self._tiled = TiledDetection(
                self._detector,
                run,
                batcher=self._batcher,
                rules=TileRules(config.predict.tile, config.predict.tile_overlap, config.predict.tile_whole),
            )

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
        base.check(config)
        source = weight_source(config, path)
        if not source.is_detector:
            raise UserError(f"{path} holds {source.kind}, which has no heads to detect with")
        class_names, category_ids = build.class_table(config, source)
        shapes = build.network(config, len(class_names)).variable_shapes()
        variables, _ = import_tensors(source, shapes)
        return cls(config, variables, class_names, category_ids=category_ids)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a text is an iterable of texts, too
        self,
        images: str | os.PathLike | PIL.Image.Image,
        *,
        color: str = "bgr",
        score_threshold: float | Mapping[str, float] | None = None,
        nms: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        images: np.ndarray | jax.Array,
        *,
        color: str = "bgr",
        score_threshold: float | Mapping[str, float] | None = None,
        nms: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> Any: ...

    @overload
    def __call__(
        self,
        images: Iterable[Image],
        *,
        color: str = "bgr",
        score_threshold: float | Mapping[str, float] | None = None,
        nms: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> list[Result]: ...

    def __call__(
        self,
        images: Image | Iterable[Image],
        *,
        color: str = "bgr",
        score_threshold: float | Mapping[str, float] | None = None,
        nms: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> Any:
        """Detects in one image or in several.

        An image by itself runs on the first device, at the cost of one image. Several are shared by all local devices.

        Args:
          images: one image, or any iterable of images, which may be of several kinds and of any sizes. An image is the
            path of a file; uint8 (H, W, 3) or (H, W, 4), by default blue first, as OpenCV reads them; (H, W) or
            (H, W, 1), grey levels; such an array of floats from 0 to 1; or Pillow's image. `to_pixels` in
            `diou_jax.prediction.pixels` has the details.
          color: "bgr" or "rgb", the order of the channels of arrays.
          score_threshold: detections have higher scores: a number, or numbers by name of class; by default, and for
            classes without a number, the config's ``test.score_thresh``.
          nms: overlap at which a detection suppresses another of its class; by default ``test.nms``. New thresholds and
            classes need no compilation.
          classes: names of the classes to detect; by default all.

        Returns:
          A `Result` for one image, a list of them for several, in their order. The result of an image does not depend
          on the others, except that scores and boxes of batches of another size may differ by rounding.

        Raises:
          UserError: if an entry is no such image or a name no class; the message names it.
        """
        wanted: dict[str, Any] = {"score_threshold": score_threshold, "nms": nms, "classes": classes}
        if is_image(images):
            return next(self.stream([cast(Image, images)], color=color, **wanted))
        return list(self.stream(cast(Iterable[Image], images), color=color, **wanted))

    def stream(
        self,
        images: Iterable[Image],
        *,
        color: str = "bgr",
        score_threshold: float | Mapping[str, float] | None = None,
        nms: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> Iterator[Result]:
        """The results of images one after the other, with few of them in memory, for videos and endless iterators.

        Images are taken from the iterator up to two batches ahead of the results, and further where their sizes differ:
        an image waits for others of its shape while `batching.WAITING` images, or a whole batch if that is more, come
        after it. Arguments and errors are those of a call.
        """
        if not isinstance(images, Iterable):
            raise UserError(f"images is {type(images).__name__}; it must be an image or an iterable of images")
        default = self._detector.thresholds
        scores = score_thresholds(score_threshold, self.class_names, default=float(default.score), classes=classes)
        thresholds = Thresholds(scores, overlap_threshold(nms, default=float(default.nms)))
        pixels = (to_pixels(image, f"image {number}", color=color) for number, image in enumerate(images))
        return self._results(pixels, thresholds)

    def _results(self, images: Iterable[np.ndarray], thresholds: Thresholds) -> Iterator[Result]:
        done: dict[int, Result] = {}

        def untiled():
            # An image in tiles fills batches by itself; the others wait for their batch.
            for row, image in enumerate(images):
                if self._tiled is not None and len(self._tiled.tiles(image.shape[:2])) > 1:
                    done[row] = self._in_tiles(image, thresholds)
                    yield row, None
                else:
                    yield row, image

        waiting, following = None, 0
        ready = 0.0
        for group in itertools.chain(self._batcher.groups(untiled()), [None]):
            started = None
            if group is not None and group.rows:
                begun = time.perf_counter()
                started = group, begun, self._detect(group.batch, thresholds, devices=group.devices)
            # The devices compute this batch while the host unpacks the one before.
            if waiting is not None:
                results, ready = self._unpack(*waiting, ready)
                done |= results
            waiting = started
            while following in done:
                yield done.pop(following)
                following += 1

    def _in_tiles(self, image: np.ndarray, thresholds: Thresholds) -> Result:
        assert self._tiled is not None
        begun = time.perf_counter()
        found = self._tiled(image, thresholds)
        seconds = time.perf_counter() - begun
        return self._result(found, image.shape[:2], device=",".join(self._devices), seconds=seconds)

    def _unpack(self, group: Group, begun: float, found: Any, before: float) -> tuple[dict[int, Result], float]:
        """The results of a batch by the numbers of its images, and the time when the host had them.

        The devices cannot have begun before `before`, the time when the host had the batch before.
        """
        found = to_host(found, devices=group.devices)
        ready = time.perf_counter()
        seconds = (ready - max(begun, before)) / len(group.rows)
        each = len(found.valid) // group.devices

        def result(slot):
            one = jax.tree.map(lambda x: x[slot], found)
            return self._result(one, group.sizes[slot], device=self._devices[slot // each], seconds=seconds)

        slots = range(len(group.rows))
        if found.masks is None:
            return dict(zip(group.rows, map(result, slots), strict=True)), ready
        with ThreadPoolExecutor(masks.THREADS) as pool:
            return dict(zip(group.rows, pool.map(result, slots), strict=True)), ready

    def _result(self, found: Detections, size: tuple[int, int], *, device: str, seconds: float) -> Result:
        """The result of one image from its detections (D, ...)."""
        valid, (height, width) = np.asarray(found.valid), size
        boxes, scores, classes = (np.asarray(column)[valid] for column in (found.boxes, found.scores, found.classes))
        rles = None
        if found.masks is not None:
            probabilities, threshold = found.masks[valid], self._mask_threshold
            rles = tuple(masks.encode(probabilities, boxes, height=height, width=width, threshold=threshold))
        return Result(
            boxes,
            scores,
            classes,
            names=tuple(self.class_names[number] for number in classes),
            size=(height, width),
            rles=rles,
            category_ids=tuple(self.category_ids[number] for number in classes),
            device=device,
            seconds=seconds,
        )
