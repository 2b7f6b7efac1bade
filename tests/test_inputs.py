import io
import os
import pathlib
import socket

import numpy as np
import pytest
from bad_images import PICTURE, by_pillow, claiming, encoded
from diou_jax.prediction.image_folder import find_images
from PIL import Image

from diou_jax.data.decoding import FORMATS
from diou_jax.errors import UserError
from diou_jax.reporting import picture_files


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.images]


def in_format(kind):
    return by_pillow(Image.fromarray(np.ascontiguousarray(PICTURE[..., ::-1])), kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_takes_each_format_that_a_single_file_may_have_whatever_its_name(tmp_path, kind):
    for name in ("photo", "photo.IMG", "photo.txt", "photo.mp4", f"photo.{kind.lower()}"):
        (tmp_path / name).write_bytes(in_format(kind))
        assert find_images(tmp_path / name).images == [tmp_path / name]
    assert len(find_images(tmp_path).images) == 5


def test_files_of_other_kinds_are_counted_and_videos_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(PICTURE))
    for name in ("clip.mp4", "clip.MOV", "notes.txt", "Thumbs.db", "README", "empty.txt"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"\0\0\0\x18ftypisom nothing")
    found = find_images(tmp_path)
    assert names(found, tmp_path) == ["a.jpg"]
    assert found.passed_over == [
        "2 videos, which are not read (.mov 1, .mp4 1)",
        "4 files of other kinds (.txt 2, readme 1, .db 1)",
    ]
    with pytest.raises(UserError, match=r"clip\.mp4 is a video: only images are read; ffmpeg"):
        find_images(tmp_path / "clip.mp4")
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"holds no image files.*2 videos, which are not read"):
        find_images(tmp_path)


def test_what_its_name_calls_an_image_is_one_even_if_it_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {
        "broken.jpg": b"\xff\xd8 no more",
        "empty.png": b"",
        "text.webp": b"no",
        "bomb.png": claiming(9**5, 9**5),
    }
    for name, content in contents.items():
        pathlib.Path(name).write_bytes(content)
    os.mkfifo("pipe.jpg")
    os.mkfifo("pipe")
    os.symlink("nowhere", "link.gif")
    os.symlink("/dev/zero", "zero.bmp")
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind("socket.avif")
        found = find_images(pathlib.Path("."))
    wanted = [*contents, "pipe.jpg", "link.gif", "zero.bmp", "socket.avif"]
    assert sorted(path.name for path in found.images) == sorted(wanted)
    assert found.passed_over == ["1 file of another kind (pipe 1)"]
    with pytest.raises(UserError, match="a pipe"):
        find_images(pathlib.Path("pipe"))
    assert find_images(pathlib.Path("empty.png")).images, "read, and then said to be unreadable"


def test_drawn_pictures_are_no_images_wherever_they_lie(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.jpg").write_bytes(encoded(PICTURE))
    for name in ("a.jpg.jpg", "deep/b.jpg", "deep/renamed.png"):
        (tmp_path / name).write_bytes(picture_files.encode(PICTURE))
    found = find_images(tmp_path)
    assert names(found, tmp_path) == ["a.jpg"]
    assert found.passed_over == ["3 pictures with detections drawn in them (.jpg 2, .png 1)"]
    with pytest.raises(UserError, match="with detections drawn in it: give the image"):
        find_images(tmp_path / "deep" / "b.jpg")
    with pytest.raises(UserError, match=r"holds no image files.*2 pictures with detections"):
        find_images(tmp_path / "deep")


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jpg").write_bytes(encoded(PICTURE))
    (tmp_path / "in" / "below" / "a.jpg").write_bytes(encoded(PICTURE))
    (tmp_path / "in" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "there").symlink_to(tmp_path / "elsewhere")
    assert names(find_images(tmp_path / "in"), tmp_path / "in") == ["below/a.jpg", "there/b.jpg"]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").write_bytes(encoded(PICTURE))
    scan = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = find_images(tmp_path)
    assert names(found, tmp_path) == ["a.jpg"]
    assert found.unreadable == [f"{tmp_path}/closed: this folder cannot be read (Permission denied)"]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"holds no image files.*Permission denied"):
        find_images(tmp_path)


def test_an_empty_folder_and_none(tmp_path):
    with pytest.raises(UserError, match=r"holds no image files.*it is empty"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        find_images(tmp_path / "missing")


def test_any_name_is_taken(tmp_path):
    content = io.BytesIO(encoded(PICTURE)).getvalue()
    wanted = sorted(os.fsdecode(name) for name in (b"\xc3\xa4 \xe7\x94\xbb.jpg", b"\xff\xfe.jpg", b"new\nline.jpg"))
    for name in wanted:
        (tmp_path / name).write_bytes(content)
    assert sorted(names(find_images(tmp_path), tmp_path)) == wanted
