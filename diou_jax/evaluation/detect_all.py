"""Detection in every image of a test set, on all local devices, and the programs for it."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.detection.staged import StagedDetection
from diou_jax.devices import AXIS, to_devices
from diou_jax.evaluation.found import Collector, Found
from diou_jax.options import build
from diou_jax.programs import Programs, shapes
from diou_jax.structures import Batch


def detect_function(detector: FasterRCNN, config: ConfigDict | None = None) -> Programs | StagedDetection:
    """``detect(variables, batch)`` on all local devices, which share the batch; with augmented testing by `config`."""
    if config is not None and build.passes(config) is not None:
        return build.staged_detection(config, detector, on_devices)
    return on_devices("detection", detector.detect)


def on_devices(title: str, function: Callable) -> Programs:
    """A function of variables and a batch on all local devices, which share the batch; `title` is for messages."""
    return Programs(title, jax.pmap(function, AXIS, in_axes=(None, 0)))


def missing_programs(
    detect: Programs | StagedDetection, readers: Sequence, variables: Callable[[], dict]
) -> list[tuple[Programs, Any, Any]]:
    """The programs of `detect` for all batches of the readers that are not yet compiled, for `compile_ahead`.

    Args:
      detect: the function that is compiled for each shape of a batch.
      readers: readers of evaluation batches.
      variables: makes the network's variables, if they are needed.
    """
    blanks = [blank for reader in readers for blank in reader.blanks(0, reader.steps)]
    missing = [batch for batch in to_devices(blanks, ahead=0) if not detect.has(batch)]
    if not missing:
        return []
    placed = variables()
    wanted = [each for batch in missing for each in detect.programs(placed, batch)]
    return list({(each[0].title, shapes(each[2])): each for each in wanted}.values())


def detect_all(
    detect: Callable,
    variables: dict,
    stream: Iterable[Batch],
    *,
    progress: Callable[[int], object] = lambda images: None,
    mask_threshold: float = 0.5,
) -> dict[int, Found]:
    """The valid detections in every present image of a stream of host batches.

    Args:
      detect: result of `detect_function`.
      variables: the network's variables.
      stream: batches of this process.
      progress: a function that is called after each batch with its number of images over all processes.
      mask_threshold: MRCNN.THRESH_BINARIZE.

    Returns:
      The detections by the image's row in its data set; every process gets those of all.
    """
    (found,) = detect_each(
        lambda variables, batch: (detect(variables, batch),),
        variables,
        stream,
        progress=progress,
        mask_thresholds=(mask_threshold,),
    )
    return found


def detect_each(
    detect: Callable,
    variables: dict,
    stream: Iterable[Batch],
    *,
    progress: Callable[[int], object] = lambda images: None,
    mask_thresholds: Sequence[float],
) -> tuple[dict[int, Found], ...]:
    """As `detect_all`, for a `detect` that returns several selections of detections, each with its mask threshold."""
    with contextlib.ExitStack() as stack:
        collectors = [stack.enter_context(Collector(mask_threshold=threshold)) for threshold in mask_thresholds]

        def collect(images, results):
            counts = [
                collector.add(*images, detections=one) for collector, one in zip(collectors, results, strict=True)
            ]
            progress(counts[0])

        waiting = None
        for batch in to_devices(stream, ahead=1):
            result = (batch.index, batch.present, batch.original_size), detect(variables, batch)
            # The device computes this batch while the host collects the one before.
            if waiting is not None:
                collect(*waiting)
            waiting = result
        if waiting is not None:
            collect(*waiting)
        return tuple(collector.all() for collector in collectors)
