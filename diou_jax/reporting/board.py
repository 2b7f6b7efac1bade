"""TensorBoard's events of a run, without TensorFlow."""

import contextlib
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

VERSION = "brain.Event:2"  # that of the format, which begins each file


class Board:
    """A file of events, written at once.

    tensorboardX's own writer hands events to a thread by a queue of ten. On a full disk the thread dies, and the next
    events block the run for ever, or its end.
    """

    def __init__(self, folder: pathlib.Path, *, start_step: int | None = None):
        """Begins a new file in `folder`; TensorBoard hides events of steps after `start_step` in earlier files.

        Raises:
          OSError: if it cannot be written; so do the other methods.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # The number of files tells apart those of one second.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{len(list(folder.glob('*')))}"
        self._file = open(folder / name, "ab")  # noqa: SIM115  it stays open as long as the log
        self._write(Event(file_version=VERSION))
        if start_step is not None:
            # TensorBoard hides the named step itself, too.
            self._write(Event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, points: Mapping[str, float]) -> None:
        """Adds a point to each of the named curves."""
        for tag, value in points.items():
            self._write(Event(step=step, summary=scalar(tag, value)))

    def image(self, step: int, tag: str, encoded: bytes, *, size: tuple[int, int]) -> None:
        """Adds an encoded picture in colour; `size` is its width and height."""
        width, height = size
        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=picture)])))

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        parts = length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content))
        try:
            self._file.write(b"".join(parts))
            self._file.flush()
        except OSError:
            # A record that is cut off ends a file for TensorBoard. What is left in the buffer cannot be written either.
            with contextlib.suppress(OSError):
                self._file.close()
            raise
