"""Detection in image files and videos, with pictures, videos and json as results."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diou_jax.checkpoint.checkpoints import LAST
from diou_jax.compilation import prepare
from diou_jax.data.dataset import BadImageError
from diou_jax.errors import UserError
from diou_jax.files import printable, writable_folder
from diou_jax.options.open_options import settle
from diou_jax.prediction import entries
from diou_jax.prediction.ahead import mapped
from diou_jax.prediction.detector import Detector
from diou_jax.prediction.inputs import Found, find_files
from diou_jax.prediction.pixels import read_image
from diou_jax.prediction.thresholds import check_draw_threshold
from diou_jax.prediction.video import CODECS
from diou_jax.prediction.video_prediction import VideoPrediction
from diou_jax.reporting import picture_files
from diou_jax.reporting.progress import images_progress
from diou_jax.reporting.run_log import print_line

# Images in memory that are decoded ahead of detection, and as many that are drawn behind it; threads for either.
LIMIT, THREADS = 16, 4


@dataclasses.dataclass(frozen=True)
class Wishes:
    """The options of a call of prediction.

    Attributes:
      draw_threshold: pictures and videos show detections with higher scores.
      score_threshold: detections have higher scores, a number or numbers by class; None: the config's.
      classes: names of the classes to detect; None: all.
      every: of a video every such frame.
      write_video: whether videos with detections are written, besides the json.
    """

    draw_threshold: float = 0.5
    score_threshold: float | Mapping[str, float] | None = None
    classes: Sequence[str] | None = None
    every: int = 1
    write_video: bool = True


def predict(
    config: ConfigDict,
    workdir: str | os.PathLike,
    source: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    output: str | os.PathLike,
    wishes: Wishes | None = None,
    checkpoint: str = LAST,
) -> bool:
    """Detects with a checkpoint of `workdir` in images and videos.

    Args:
      config: config of the network.
      workdir: the run's folder.
      source: a file, a folder, which is searched with all folders below it, a pattern, or several of these; see
        `inputs.find_files`.
      output: folder for a JPEG picture of each image, named as the image with ``.jpg`` appended; for each video a
        video, and a file with a json object for each frame, ``.jsonl``; and for ``detections.json``. The json has for
        each image its path, its picture, and boxes in inclusive pixels, scores, classes, names and, if the detector has
        masks, COCO's run lengths of all detections; for each video its files and numbers of frames; and the files that
        could not be read.
      wishes: thresholds, classes, and frames of videos.
      checkpoint: "last", "best" or the step of one; see `Detector.from_checkpoint`.

    Returns:
      Whether at least one image or video could be read.

    Raises:
      UserError: if there is no checkpoint or nothing to detect in, the only input is a video without a readable frame,
        a class is unknown, or `output` cannot be written or would overwrite the inputs.
    """
    wishes = wishes or Wishes()
    if wishes.every < 1:
        raise UserError(f"--every={wishes.every}: it must be a whole number, 1 or more")
    check_draw_threshold(wishes.draw_threshold)
    output = pathlib.Path(output)
    found = find_files([source] if isinstance(source, str | os.PathLike) else source)
    pictures = {path: picture_files.beside(found.name(path)) for path in found.images}
    _keep_inputs(found, pictures, output)
    prepare(config.log.compilation_cache)
    detector = Detector.from_checkpoint(workdir, settle(config, workdir), checkpoint=checkpoint)
    wanted: dict[str, Any] = {"score_threshold": wishes.score_threshold, "classes": wishes.classes}
    detector.stream((), **wanted)  # unknown classes are reported before anything is written
    writable_folder(output, "--output")
    for line in found.passed_over:
        print_line(f"passed over: {line}")

    images: list[dict[str, Any]] = []
    videos: list[dict[str, Any]] = []
    unreadable = list(found.unreadable)
    with _stopped_by_signals():
        try:
            for entry in _images(found, detector, wanted, pictures=pictures, output=output, wishes=wishes):
                if isinstance(entry, dict):
                    images.append(entry)
                else:
                    unreadable.append(str(entry))
            for path in found.videos:
                one = VideoPrediction(path, name=found.name(path), output=output)
                try:
                    one.run(
                        detector,
                        wanted=wanted,
                        draw_threshold=wishes.draw_threshold,
                        every=wishes.every,
                        write_video=wishes.write_video,
                    )
                except BadImageError as error:
                    if not found.images and len(found.videos) == 1:
                        raise UserError(f"--input {error}") from None
                    unreadable.append(str(error))
                finally:
                    if one.entry.get("predicted"):
                        videos.append(one.entry)
        except OSError as error:
            raise UserError(f"--output {printable(output)} cannot be written: {error.strerror}") from None
        finally:
            # An interrupted run writes the results so far, too.
            entries.write_results(output / entries.RESULTS_FILE, images, videos=videos, unreadable=unreadable)
            _summarise(images, videos, unreadable, output / entries.RESULTS_FILE)
    return bool(images or videos)


def _images(
    found: Found, detector: Detector, wanted: dict[str, Any], *, pictures: dict, output: pathlib.Path, wishes: Wishes
) -> Iterator[dict | BadImageError]:
    """The entry of each image, in their order, or the error if it cannot be read."""
    if not found.images:
        return

    def read(path):
        try:
            return path, read_image(path)
        except BadImageError as error:
            return path, error

    def show(one):
        path, image, result = one
        if isinstance(image, BadImageError):
            return image
        picture = result.draw(image, score_threshold=wishes.draw_threshold, enlarge=True)
        picture_files.write(output / pictures[path], picture)
        return entries.image_entry(path, result, name=found.name(path), picture=pictures[path])

    def detected():
        waiting = []

        def readable():
            for path, image in mapped(read, found.images, threads=THREADS, limit=LIMIT):
                waiting.append((path, image))
                if isinstance(image, np.ndarray):
                    yield image

        for result in detector.stream(readable(), **wanted):
            while isinstance(waiting[0][1], BadImageError):
                yield *waiting.pop(0), None
            yield *waiting.pop(0), result
        for path, error in waiting:
            yield path, error, None

    with (
        images_progress(len(found.images), title="prediction") as progress,
        contextlib.closing(mapped(show, detected(), threads=THREADS, limit=LIMIT)) as shown,
    ):
        for entry in shown:
            progress.update()
            yield entry


def _summarise(images, videos, unreadable, path):
    detections = sum(len(entry["scores"]) for entry in images) + sum(entry["detections"] for entry in videos)
    frames = sum(entry["predicted"] for entry in videos)
    seen = [_counted(len(images), "image")] if images or not videos else []
    seen += [f"{_counted(len(videos), 'video')} with {_counted(frames, 'frame')}"] if videos else []
    print_line(f"{', '.join(seen)}, {detections} detections: {printable(path)}")
    for line in unreadable:
        print_line(f"not read: {line}")


def _counted(number, noun):
    # Pages group digits by a narrow space, see `document.plural`, which not every console has.
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the program by way of all ``finally``; a second one acts at once.

    Python can catch signals in the main thread only; in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def stop(number, frame):
        del frame
        restore()
        print_line(f"stopped by {signal.Signals(number).name}; the results so far are kept")
        sys.exit(128 + number)

    def restore():
        while before:
            signal.signal(*before.popitem())

    before |= {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        restore()


def _keep_inputs(found: Found, pictures: Mapping, output: pathlib.Path) -> None:
    """Raises UserError if a result would overwrite an input or lie among the inputs."""
    if output.resolve() in {root.resolve() for root in (*found.roots, found.folder)}:
        raise UserError(f"--output {printable(output)} is where the images are; name another, or they would be mixed")
    results = [output / picture for picture in pictures.values()]
    for path in found.videos:
        suffixes = (".jsonl", *(suffix for suffix, _ in CODECS))
        results += [output / picture_files.beside(found.name(path), suffix) for suffix in suffixes]
    taken = {path.resolve() for path in (*found.images, *found.videos)} & {path.resolve() for path in results}
    if taken:
        raise UserError(f"--output {printable(output)}: the image {printable(min(taken))} would be overwritten")
