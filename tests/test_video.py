"""Videos that OpenCV has written, whole, damaged and turned."""

import pathlib
import struct

import cv2
import numpy as np
import pytest

from diou_jax.data.dataset import BadImageError
from diou_jax.errors import UserError
from diou_jax.prediction import video
from diou_jax.prediction.video import VideoReader, VideoWriter

SIZE = (48, 80)


def picture(number, size=SIZE):
    """A picture with a bright top left corner; its lower half shows the number's eight bits, from left to right."""
    height, width = size
    image = np.full((*size, 3), 60, np.uint8)
    image[: height // 4, : width // 4] = 255
    for bit in range(8):
        image[height // 2 :, bit * width // 8 : (bit + 1) * width // 8] = 250 if number >> bit & 1 else 5
    return image


def number_of(image, size=SIZE):
    """The number in a picture of this size, which compression may have blurred."""
    height, width = size
    middles = [(2 * bit + 1) * width // 16 for bit in range(8)]
    return sum(int(image[3 * height // 4, x].mean() > 128) << bit for bit, x in enumerate(middles))


def numbers(frames):
    return [number_of(frame.image) for frame in frames]


def write(path, count=40, *, code="mp4v", fps=25.0, noise=False):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, SIZE[::-1])
    rng = np.random.default_rng(0)
    for number in range(count):
        image = picture(number)
        if noise:
            image[:20] = rng.integers(0, 255, (20, SIZE[1], 3), np.uint8)
        writer.write(image)
    writer.release()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("videos") / "clip.mp4")


def test_all_frames_come_in_order_with_their_times(clip):
    with VideoReader(clip) as reader:
        frames = list(reader.frames())
    assert (reader.fps, reader.fps_known, reader.count, reader.unread) == (25, True, 40, 0)
    assert [frame.number for frame in frames] == list(range(40))
    assert numbers(frames) == list(range(40))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(40) / 25, atol=1e-3)
    assert frames[0].image.shape == (*SIZE, 3) and frames[0].image.dtype == np.uint8


def test_every_third_frame(clip):
    with VideoReader(clip) as reader:
        frames = list(reader.frames(3))
    assert [frame.number for frame in frames] == list(range(0, 40, 3))
    assert numbers(frames) == list(range(0, 40, 3))
    assert reader.unread == 0


@pytest.mark.parametrize(("degrees", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_a_turned_video_is_read_upright(clip, tmp_path, degrees, corner):
    """The matrix in the header of the track says by how many degrees a player turns the pictures."""
    content = bytearray(clip.read_bytes())
    cosine, sine = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    start = content.find(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", *matrix)
    (tmp_path / "turned.mp4").write_bytes(content)
    with VideoReader(tmp_path / "turned.mp4") as reader:
        image = next(reader.frames()).image
    assert image.shape[:2] == (SIZE if degrees == 180 else SIZE[::-1])
    corners = {(y, x): image[y, x].mean() for y in (0, -1) for x in (0, -1)}
    assert max(corners, key=corners.get) == corner


@pytest.mark.parametrize("code", ["MJPG", "mp4v"])
def test_a_truncated_video_gives_the_frames_that_are_left(tmp_path, code):
    whole = write(tmp_path / "whole.avi", code=code, noise=True).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: 2 * len(whole) // 3])
    with VideoReader(tmp_path / "cut.avi") as reader:
        frames = list(reader.frames())
    assert 15 <= len(frames) < 35 and [frame.number for frame in frames] == list(range(len(frames)))
    assert reader.count == 40 and reader.unread == 40 - len(frames)


def test_reading_goes_on_behind_damage(tmp_path):
    content = bytearray(write(tmp_path / "whole.mp4", 100, noise=True).read_bytes())
    start, length = int(0.2 * len(content)), len(content) // 20
    content[start : start + length] = np.random.default_rng(0).integers(0, 256, length, np.uint8).tobytes()
    (tmp_path / "damaged.mp4").write_bytes(content)
    with VideoReader(tmp_path / "damaged.mp4") as reader:
        frames = list(reader.frames())
    shown = [frame.number for frame in frames]
    assert shown == sorted(set(shown)) and shown[-1] == 99 and 40 <= len(shown) < 99
    assert numbers(frames[-20:]) == shown[-20:]
    assert reader.unread == 100 - len(shown)


def test_a_stream_of_pictures_has_no_known_length(tmp_path):
    content = b"".join(cv2.imencode(".jpg", picture(number))[1].tobytes() for number in range(12))
    (tmp_path / "camera.mjpeg").write_bytes(content)
    with VideoReader(tmp_path / "camera.mjpeg") as reader:
        assert reader.count is None
        assert numbers(reader.frames()) == list(range(12))
    assert reader.unread == 0


def test_what_is_no_video_is_named(clip, tmp_path):
    (tmp_path / "junk.mp4").write_bytes(bytes(1000))
    (tmp_path / "headless.mp4").write_bytes(clip.read_bytes()[:3000])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, words in (("junk", "not a video"), ("headless", "its end may be missing"), ("empty", "it is empty")):
        with pytest.raises(BadImageError, match=rf"{name}\.mp4: .*{words}"):
            VideoReader(tmp_path / f"{name}.mp4")
    assert video.opens(clip) and not video.opens(tmp_path / "junk.mp4")


@pytest.mark.parametrize("size", [(48, 80), (47, 79), (1, 1), (50, 33)])
@pytest.mark.parametrize("fps", [25.0, 29.97, 25 / 7, 1000 / 3])
def test_a_written_video_keeps_rate_pictures_and_an_even_size(tmp_path, size, fps):
    with VideoWriter(tmp_path / "v", fps=fps, size=size) as writer:
        for number in range(10):
            writer.write(picture(10 * number, size))
        assert not writer.path.exists()
    assert [path.name for path in tmp_path.iterdir()] == [writer.path.name]
    with VideoReader(writer.path) as reader:
        frames = list(reader.frames())
    assert reader.fps == pytest.approx(fps, rel=1e-3) and len(frames) == 10
    height, width = frames[0].image.shape[:2]
    assert (height, width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    if min(size) > 1:
        assert [number_of(frame.image, size) for frame in frames] == list(range(0, 100, 10))
        # The last column and row of an odd size are there twice.
        assert abs(frames[-1].image[-1].mean() - frames[-1].image[-2].mean()) < 8
    assert video.is_drawn(writer.path) and not video.is_drawn(tmp_path / "none.mp4")


def test_without_the_first_codec_the_next_one_writes_and_without_any_an_error_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "CODECS", ((".mp4", "NOPE"), *video.CODECS[1:]))
    with VideoWriter(tmp_path / "v", fps=25, size=SIZE) as writer:
        writer.write(picture(50))
    assert writer.path == tmp_path / "v.avi" and video.is_drawn(writer.path)
    with VideoReader(writer.path) as reader:
        assert len(list(reader.frames())) == 1
    monkeypatch.setattr(video, "CODECS", ((".mp4", "NOPE"),))
    with pytest.raises(UserError, match=r"v: OpenCV can write no video of 80x48 .* tried with NOPE\. --novideo"):
        VideoWriter(tmp_path / "v", fps=25, size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["v.avi"]


def test_an_error_leaves_the_pictures_so_far_and_a_full_disk_is_named(tmp_path, monkeypatch):
    with pytest.raises(KeyError), VideoWriter(tmp_path / "v", fps=25, size=SIZE) as writer:
        writer.write(picture(1))
        raise KeyError
    with VideoReader(writer.path) as reader:
        assert len(list(reader.frames())) == 1
    with VideoWriter(tmp_path / "nothing", fps=25, size=SIZE):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    with pytest.raises(UserError, match="the disk may be full"), VideoWriter(tmp_path / "w", fps=25, size=SIZE) as full:
        full.write(picture(1))
        full.written += 1  # as if the second picture had not reached the disk
    assert not pathlib.Path(full.path).exists()
