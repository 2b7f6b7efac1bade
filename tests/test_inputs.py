import io
import os
import pathlib
import socket

import numpy as np
import pytest
from bad_images import PICTURE, by_pillow, claiming, encoded
from PIL import Image

from diou_jax.data.decoding import FORMATS
from diou_jax.errors import UserError
from diou_jax.prediction.inputs import DRAWN, find_files, kind_of
from diou_jax.reporting import picture_files


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.images]


def in_format(kind):
    return by_pillow(Image.fromarray(np.ascontiguousarray(PICTURE[..., ::-1])), kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_takes_each_format_that_a_single_file_may_have_whatever_its_name(tmp_path, kind):
    for name in ("photo", "photo.IMG", "photo.txt", "photo.mp4", f"photo.{kind.lower()}"):
        (tmp_path / name).write_bytes(in_format(kind))
        assert find_files([tmp_path / name]).images == [tmp_path / name]
    assert len(find_files([tmp_path]).images) == 5


def test_files_of_other_kinds_are_counted_and_videos_are_taken(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(PICTURE))
    for name in ("clip.mp4", "clip.MOV", "notes.txt", "Thumbs.db", "README", "empty.txt"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"\0\0\0\x18ftypisom nothing")
    found = find_files([tmp_path])
    assert names(found, tmp_path) == ["a.jpg"]
    assert [path.name for path in found.videos] == ["clip.MOV", "clip.mp4"]
    assert found.passed_over == ["4 files of other kinds (.txt 2, readme 1, .db 1)"]
    for name in ("a.jpg", "clip.mp4", "clip.MOV"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"holds no image files.*or videos: 4 files of other kinds"):
        find_files([tmp_path])


@pytest.fixture
def days(tmp_path, monkeypatch):
    """Three folders with images, of which one also holds a video; the current folder is above them."""
    for name in ("day1/a.jpg", "day1/b.png", "day2/a.jpg", "day2/deep/c.jpg", "night/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(PICTURE))
    (tmp_path / "day2" / "v.avi").write_bytes(b"RIFF")
    (tmp_path / "day1" / "notes.txt").write_text("none")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "wanted", "folder"),
    [
        (["day1"], ["a.jpg", "b.png"], "day1"),
        (["day1/b.png"], ["b.png"], "day1"),
        (["day?/*.jpg"], ["day1/a.jpg", "day2/a.jpg"], ""),
        (["day2/**/*.jpg"], ["a.jpg", "deep/c.jpg"], "day2"),
        (["day?"], ["day1/a.jpg", "day1/b.png", "day2/a.jpg", "day2/deep/c.jpg", "day2/v.avi"], ""),
        (["day1/*"], ["a.jpg", "b.png"], "day1"),
        (["day1/b.png", "night", "day1"], ["day1/b.png", "night/a.jpg", "day1/a.jpg"], ""),
        (["day2", "day2/deep", "day2/a.jpg"], ["a.jpg", "deep/c.jpg", "v.avi"], "day2"),
    ],
)
def test_inputs_may_be_several_and_patterns_and_each_file_counts_once(days, inputs, wanted, folder):
    found = find_files(inputs)
    assert [found.name(path).as_posix() for path in [*found.images, *found.videos]] == wanted
    assert found.folder == days / folder


def test_an_input_that_stands_for_nothing_is_named(days):
    (days / "empty").mkdir()
    for inputs, words in (
        (["day1", "week*"], r"--input week\*: no file or folder matches"),
        (["day1", "nowhere"], "--input nowhere does not exist"),
        (["day1", "empty"], "--input empty holds no image files .*: it is empty"),
        (["day1/*.txt"], r"--input day1/\*\.txt holds no image files .* 1 file of another kind"),
    ):
        with pytest.raises(UserError, match=words):
            find_files(inputs)
    (days / "a[1].jpg").write_bytes(encoded(PICTURE))
    assert [path.name for path in find_files(["a[1].jpg"]).images] == ["a[1].jpg"]


def test_a_drawn_video_is_told_by_its_mark(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(PICTURE))
    (tmp_path / "v.mp4").write_bytes(b"..." + picture_files.MARK)
    assert kind_of(tmp_path / "v.mp4") == DRAWN
    assert find_files([tmp_path]).videos == []


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
        found = find_files(["."])
    wanted = [*contents, "pipe.jpg", "link.gif", "zero.bmp", "socket.avif"]
    assert sorted(path.name for path in found.images) == sorted(wanted)
    assert found.passed_over == ["1 file of another kind (pipe 1)"]
    with pytest.raises(UserError, match="a pipe"):
        find_files(["pipe"])
    assert find_files(["empty.png"]).images, "read, and then said to be unreadable"


def test_drawn_pictures_are_no_images_wherever_they_lie(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.jpg").write_bytes(encoded(PICTURE))
    for name in ("a.jpg.jpg", "deep/b.jpg", "deep/renamed.png"):
        (tmp_path / name).write_bytes(picture_files.encode(PICTURE))
    found = find_files([tmp_path])
    assert names(found, tmp_path) == ["a.jpg"]
    assert found.passed_over == ["3 pictures or videos with detections drawn in them (.jpg 2, .png 1)"]
    with pytest.raises(UserError, match="with detections drawn in it: give the file"):
        find_files([tmp_path / "deep" / "b.jpg"])
    with pytest.raises(UserError, match=r"holds no image files.*2 pictures or videos with detections"):
        find_files([tmp_path / "deep"])


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jpg").write_bytes(encoded(PICTURE))
    (tmp_path / "in" / "below" / "a.jpg").write_bytes(encoded(PICTURE))
    (tmp_path / "in" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "there").symlink_to(tmp_path / "elsewhere")
    assert names(find_files([tmp_path / "in"]), tmp_path / "in") == ["below/a.jpg", "there/b.jpg"]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").write_bytes(encoded(PICTURE))
    scan = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = find_files([tmp_path])
    assert names(found, tmp_path) == ["a.jpg"]
    assert found.unreadable == [f"{tmp_path}/closed: this folder cannot be read (Permission denied)"]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"holds no image files.*Permission denied"):
        find_files([tmp_path])


def test_an_empty_folder_and_none(tmp_path):
    with pytest.raises(UserError, match=r"holds no image files.*it is empty"):
        find_files([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        find_files([tmp_path / "missing"])


def test_any_name_is_taken(tmp_path):
    content = io.BytesIO(encoded(PICTURE)).getvalue()
    wanted = sorted(os.fsdecode(name) for name in (b"\xc3\xa4 \xe7\x94\xbb.jpg", b"\xff\xfe.jpg", b"new\nline.jpg"))
    for name in wanted:
        (tmp_path / name).write_bytes(content)
    assert sorted(names(find_files([tmp_path]), tmp_path)) == wanted
