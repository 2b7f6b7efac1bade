"""Detection in a video: a video with the detections drawn, and a json for each frame."""

import contextlib
import itertools
import json
import os
import pathlib
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

from diou_jax.data.dataset import BadImageError
from diou_jax.files import draft_of, printable
from diou_jax.prediction import entries
from diou_jax.prediction.ahead import mapped, read_ahead
from diou_jax.prediction.detector import Detector
from diou_jax.prediction.result import Result
from diou_jax.prediction.video import Frame, VideoReader, VideoWriter
from diou_jax.reporting import picture_files
from diou_jax.reporting.progress import images_progress
from diou_jax.reporting.run_log import print_line

# Frames that are decoded ahead, and frames that are drawn and written behind, at once.
AHEAD, BEHIND, THREADS = 8, 8, 4


class VideoPrediction:
    """Detection in one video; the results so far are complete files, however it ends.

    Attributes:
      entry: the video's entry in the json, with the numbers so far. ``frames`` is a file with a json object for each
        frame, a line each.
    """

    def __init__(self, path: pathlib.Path, *, name: pathlib.PurePath, output: pathlib.Path):
        """Prepares the prediction of the video at `path`; its results are named `name` below the folder `output`."""
        self._path, self._target = path, output / name
        self._frames_file = pathlib.Path(picture_files.beside(self._target, ".jsonl"))
        self._output = output
        self.entry: dict[str, Any] = {"file": name.as_posix(), "path": path.as_posix(), "video": None}

    def run(
        self, detector: Detector, *, wanted: dict[str, Any], draw_threshold: float, every: int, write_video: bool
    ) -> None:
        """Detects in every `every`-th frame.

        Args:
          detector: the detector.
          wanted: keyword arguments of `Detector.stream`.
          draw_threshold: detections with higher scores are drawn.
          every: 1 for all frames; the video that is written is as long as the original, with fewer frames per second.
          write_video: whether a video is written at all.

        Raises:
          BadImageError: if no frame can be read.
          UserError: if the results cannot be written.
        """
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(VideoReader(self._path))
            frames = stack.enter_context(read_ahead(reader.frames(every), limit=AHEAD))
            first = next(frames, None)
            if first is None:
                raise BadImageError(f"{printable(self._path)}: a video without a frame that can be read")
            if not reader.fps_known:
                print_line(f"{printable(self._path)} does not state its frames per second; {reader.fps:g} are assumed")
            height, width = first.image.shape[:2]
            self.entry |= {"width": width, "height": height, "fps": reader.fps, "every": every, "detections": 0}
            self.entry |= {"predicted": 0, "unread": 0, "complete": False, "frames": None}
            self._target.parent.mkdir(parents=True, exist_ok=True)
            lines = stack.enter_context(_finished(self._frames_file))
            writer = None
            if write_video:
                writer = VideoWriter(self._target, fps=reader.fps / every, size=(height, width))
                stack.enter_context(writer)
            total = None if reader.count is None else -(-reader.count // every)
            title = f"prediction of {printable(self._path.name)}"
            progress = stack.enter_context(images_progress(total, title=title, unit="frame"))
            self.entry["frames"] = self._frames_file.relative_to(self._output).as_posix()
            if writer is not None:
                self.entry["video"] = writer.path.relative_to(self._output).as_posix()

            def drawn(pair: tuple[Frame, Result]):
                frame, result = pair
                picture = None
                if writer is not None:
                    picture = result.draw(frame.image, score_threshold=draw_threshold)
                about = {"frame": frame.number, "seconds": round(frame.seconds, 6)}
                return json.dumps(about | entries.detections(result)), picture, len(result)

            results = self._results(detector, itertools.chain([first], frames), wanted)
            try:
                with contextlib.closing(mapped(drawn, results, threads=THREADS, limit=BEHIND)) as finished:
                    for line, picture, count in finished:
                        lines.write(line + "\n")
                        if writer is not None:
                            writer.write(picture)
                        self.entry["predicted"] += 1
                        self.entry["detections"] += count
                        progress.update()
                self.entry["complete"] = True
            finally:
                self.entry["unread"] = reader.unread
        self._say_unread(reader)

    def _results(self, detector, frames, wanted) -> Iterator[tuple[Frame, Result]]:
        """Each frame with its result."""
        waiting: deque[Frame] = deque()

        def images():
            for frame in frames:
                waiting.append(frame)
                yield frame.image

        for result in detector.stream(images(), **wanted):
            yield waiting.popleft(), result

    def _say_unread(self, reader: VideoReader) -> None:
        if reader.unread:
            of = "" if reader.count is None else f" of the {reader.count} that its header counts"
            frames = "frame" if reader.unread == 1 else "frames"
            print_line(f"{printable(self._path)}: {reader.unread} {frames}{of} could not be read")


@contextlib.contextmanager
def _finished(path: pathlib.Path) -> Iterator[TextIO]:
    """A text file to write, which gets its name when it is closed, even if an error ends the writing."""
    draft = draft_of(path)
    draft.write_bytes(b"")  # if this fails, there is nothing to rename, and the error says why
    try:
        with open(draft, "w", encoding="utf-8") as file:
            yield file
    finally:
        os.replace(draft, path)
