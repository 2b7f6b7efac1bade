"""Videos by OpenCV: frames one after the other, and pictures as a video."""

import math
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

# Neither FFmpeg's messages nor OpenCV's name the file. OpenCV reads the variable when it opens its first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from diou_jax.data.dataset import BadImageError
from diou_jax.errors import UserError
from diou_jax.files import printable, regular_file
from diou_jax.reporting import picture_files
from diou_jax.reporting.picture_files import MARK

# Suffix and code of the codecs that are tried in this order: opencv-python-headless has no H.264 encoder.
CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))
# Frames per second where a file states none, and the largest number that is believed.
USUAL_FPS, LARGEST_FPS = 25.0, 1000.0
# Frames by which damage is skipped first; each further step is twice as long. OpenCV starts to decode 16 frames before.
STEP = 32

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
      number: its place among all frames, from 0.
      seconds: its time from the start of the video.
      image: uint8 (H, W, 3), BGR, turned as the video's metadata say.
    """

    number: int
    seconds: float
    image: np.ndarray


class VideoReader:
    """The frames of a video file; a context manager. One thread at a time may use it.

    Attributes:
      fps: frames per second as the file states them, `USUAL_FPS` if it states none.
      fps_known: whether it states them.
      count: number of frames by the file's header, None if it has none.
      unread: number of frames that could not be read, so far; those that the header counts but the file lacks are
        added at the end.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a file; raises BadImageError if it is no video that OpenCV can open."""
        self._path = pathlib.Path(path)
        try:
            regular_file(path)
        except UserError as error:
            raise BadImageError(str(error)) from None
        self._capture = _open(self._path)
        if not self._capture.isOpened():
            raise BadImageError(f"{printable(path)}: not a video that can be opened; its end may be missing")
        fps, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.fps_known = math.isfinite(fps) and 0 < fps <= LARGEST_FPS
        self.fps = fps if self.fps_known else USUAL_FPS
        self.count = round(count) if math.isfinite(count) and count > 0 else None
        self.unread = 0

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Every `every`-th frame, from the first on.

        Frames that cannot be decoded are left out and counted. FFmpeg leaves some out by itself, which only the
        header's count reveals. Where OpenCV gives up, reading goes on behind the damage if the file can be searched.
        """
        number, grabbed, failed = -1, 0, 0
        seconds = -1.0
        while True:
            if self._capture.grab():
                number += 1
            else:
                behind = self._behind_damage(number + 1, seconds)
                if behind is None:
                    break
                number = behind
            grabbed += 1
            seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if number % every:
                continue
            readable, image = self._capture.retrieve()
            if not readable or image is None:
                failed += 1
                self.unread = failed
                continue
            yield Frame(number, seconds, image)
        self.unread = failed + max((self.count or 0) - grabbed, 0)

    def _behind_damage(self, missing: int, seconds: float) -> int | None:
        """The number of the next frame that can be grabbed, now grabbed, after the frame `missing` could not be.

        `seconds` is the time of the last frame; the next one must be later.
        """
        step = STEP
        while self.count is not None and missing + step < self.count:
            self._capture.release()  # an opened file stays at its damage
            self._capture = _open(self._path)
            target = missing + step
            later = self._capture.set(cv2.CAP_PROP_POS_FRAMES, target) and self._capture.grab()
            if later and self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 > seconds:
                return target
            step *= 2
        return None


class VideoWriter:
    """Writes pictures as a video file; a context manager that finishes the file however it is left.

    The file has a draft name until it is finished. OpenCV writes even heights and widths only, so that a picture with
    an odd side gets its last row or column twice.

    Attributes:
      path: the file.
      written: number of pictures in it.
    """

    def __init__(self, path: pathlib.Path, *, fps: float, size: tuple[int, int]):
        """Opens the first of `CODECS` that works.

        Args:
          path: the file, to which the codec's suffix is appended.
          fps: frames per second.
          size: height and width of the pictures in pixels.

        Raises:
          UserError: if no codec can write there.
        """
        self._size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self.written = 0
        for suffix, code in CODECS:
            self.path = pathlib.Path(picture_files.beside(path, suffix))
            self._draft = pathlib.Path(picture_files.beside(path, f".tmp{suffix}"))
            self._writer = cv2.VideoWriter(
                os.path.abspath(self._draft), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), fps, self._size[::-1]
            )
            if self._writer.isOpened():
                return
            self._writer.release()
            self._draft.unlink(missing_ok=True)
        codes = " and ".join(code for _, code in CODECS)
        raise UserError(
            f"--output {printable(path)}: OpenCV can write no video of {size[1]}x{size[0]} pixels at {fps:g} frames "
            f"per second; it was tried with {codes}. --novideo writes the json alone"
        )

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, picture: np.ndarray) -> None:
        """Appends a picture, uint8 (H, W, 3) BGR; one of another size is resized."""
        height, width = picture.shape[:2]
        below, right = self._size[0] - height, self._size[1] - width
        if (below, right) != (0, 0):
            if 0 <= below <= 1 and 0 <= right <= 1:
                picture = cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE)
            else:
                picture = cv2.resize(picture, self._size[::-1])
        self._writer.write(picture)
        self.written += 1

    def close(self) -> None:
        """Finishes the file and marks it as drawn; without pictures there is none.

        Raises:
          UserError: if fewer pictures can be read than were written, as on a full disk.
        """
        if not self._writer.isOpened():
            return
        self._writer.release()
        if not self.written:
            self._draft.unlink(missing_ok=True)
            return
        check = _open(self._draft)
        complete = check.isOpened() and round(check.get(cv2.CAP_PROP_FRAME_COUNT)) >= self.written
        check.release()
        if not complete:
            raise UserError(f"{printable(self._draft)} cannot be written completely; the disk may be full")
        with open(self._draft, "ab") as file:
            file.write(_mark(self._draft.suffix))
        os.replace(self._draft, self.path)


def opens(path: pathlib.Path) -> bool:
    """Whether OpenCV finds a frame in a regular file."""
    capture = _open(path)
    try:
        return capture.isOpened() and capture.grab()
    finally:
        capture.release()


def is_drawn(path: pathlib.Path) -> bool:
    """Whether `VideoWriter` has written a regular file."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            file.seek(max(path.stat().st_size - len(MARK), 0))
            return file.read() == MARK
    except OSError:
        return False


def _open(path: pathlib.Path) -> cv2.VideoCapture:
    # An absolute path is no address of a network, and FFmpeg reads no numbered series of images.
    return cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)


def _mark(suffix: str) -> bytes:
    """A block at the end of the file that players skip: MP4's "free", or "JUNK" as in AVI."""
    if suffix == ".mp4":
        return struct.pack(">I", 8 + len(MARK)) + b"free" + MARK
    return b"JUNK" + struct.pack("<I", len(MARK)) + MARK
