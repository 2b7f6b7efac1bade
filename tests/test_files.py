"""A path that is no regular file is refused before anybody waits for it; folders that cannot be written are named."""

import os
import pathlib
import pickle
import socket

import pytest

from diou_jax.command.export_weights import export_torch
from diou_jax.compilation import cache_compilations
from diou_jax.data import annotations
from diou_jax.errors import UserError
from diou_jax.files import (
    LONGEST,
    draft_of,
    make_folder,
    possible_name,
    printable,
    regular_file,
    replacing,
    shortened,
    writable_file,
    writable_folder,
)
from diou_jax.weights import files


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_file_and_a_link_to_one_are_taken(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    assert regular_file(tmp_path / "file").read_text() == regular_file(str(tmp_path / "link")).read_text() == "x"


def test_what_is_no_file_is_named(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "empty").touch()
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind("socket")
        for name, reason in {
            "pipe": "a pipe",
            "link": "a pipe",
            "socket": "a socket",
            "/dev/zero": "a device",
            ".": "a folder",
            "nowhere": "No such file",
            "round": "symbolic links",
            "missing": "No such file",
            "empty": "it is empty",
            "/proc/kmsg": "",
            "pipe/below": "Not a directory",
            "nul\0": "null",
        }.items():
            with pytest.raises(UserError, match=f"cannot be read .*{reason}"):
                regular_file(name)


def test_no_reader_waits_for_a_pipe(pipe, tmp_path):
    for read in (files.read, annotations.read_json):
        with pytest.raises(UserError, match="no regular file but a pipe"):
            read(pipe)
        (tmp_path / "empty").touch()
        with pytest.raises(UserError, match="it is empty"):
            read(tmp_path / "empty")


def test_a_pipe_is_no_place_to_export_to(tiny_config, pipe, tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(UserError, match="no regular file"):
        export_torch(tiny_config(), tmp_path, pipe)
    with pytest.raises(UserError, match="there is no folder"):
        export_torch(tiny_config(), tmp_path, tmp_path / "missing" / "model.pth")
    with pytest.raises(UserError, match="cannot be written"):
        writable_file("/proc/model.pth", "--output")
    (tmp_path / "before.pth").write_text("replaced")
    assert writable_file(tmp_path / "before.pth", "--output").read_text() == "replaced"


def test_weights_are_read_as_before(tmp_path):
    import numpy as np

    (tmp_path / "blobs.pkl").write_bytes(pickle.dumps({"blobs": {"w": np.ones(2)}}))
    assert files.read(tmp_path / "blobs.pkl").tensors.keys() == {"w"}


@pytest.mark.parametrize("place", ["/proc/none/of/these", "file/below", "file", "nul\0"])
def test_folders_that_cannot_be_made_are_named_with_their_option(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").touch()
    with pytest.raises(UserError, match=r"log\.compilation_cache .* cannot be made"):
        cache_compilations(place)
    with pytest.raises(UserError, match=r"--output .* cannot be made"):
        make_folder(place, "--output")


def test_a_folder_is_tried_by_writing(tmp_path):
    with pytest.raises(UserError, match="--output /proc cannot be written"):
        writable_folder("/proc", "--output")
    assert list(writable_folder(tmp_path / "a" / "b", "--output").iterdir()) == []


def test_any_path_is_one_printable_line():
    name = b"caf\xc3\xa9 \xff\n\x1b[31m.jpg"
    assert printable(os.fsdecode(name)) == r"café \udcff\n\x1b[31m.jpg"


def test_files_of_a_user_and_of_another_process_are_no_drafts(tmp_path, monkeypatch):
    file = tmp_path / "file"
    (tmp_path / "file.tmp").write_text("the user's")
    with replacing(file) as mine:
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with replacing(file) as other:
            mine.write_text("mine")
            other.write_text("other")
        monkeypatch.undo()
        assert file.read_text() == "other" and draft_of(file) == mine
    assert file.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "file.tmp"}


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "file"
    for text in ("first", "second"):
        with replacing(file) as draft:
            draft.write_text(text)
            assert not file.exists() or file.read_text() == "first"
        assert file.read_text() == text
    with pytest.raises(KeyboardInterrupt), replacing(file) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "second" and list(file.parent.iterdir()) == [file]
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "new") as draft:
        draft.write_text("a file has no folder's name")
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


@pytest.mark.parametrize("name", ["n" * 300, "n" * 252, "n" * 300 + "/below"])
def test_names_that_are_too_long_are_refused_at_once(tmp_path, name):
    with pytest.raises(UserError, match=r"--output .*nnn.*: the name is too long; name a shorter one"):
        writable_file(tmp_path / name, "--output")
    with pytest.raises(UserError, match=r"cannot be read .(File name too long|No such file)"):
        regular_file(tmp_path / name)


def test_a_name_must_be_possible(tmp_path):
    possible_name(tmp_path / "new", "--workdir")
    possible_name(tmp_path, "--workdir")
    possible_name(pathlib.Path(__file__) / "below", "--workdir")  # another check says what is wrong there
    for name, words in (
        ("n" * 256, "the name is too long"),
        ("missing/" + "n" * 256 + "/below", "the name is too long"),
        (str(tmp_path / "missing" / ("n" * 256)), "the name is too long"),
        ("missing/" * 600, "the name is too long"),
        ("a\0b", "no file can have this name"),
        ("missing/a\0b/below", "no file can have this name"),
    ):
        with pytest.raises(UserError, match=f"--workdir .*{words}"):
            possible_name(name, "--workdir")


def test_shortened_names_fit_and_differ():
    assert shortened("a", ".jpg") == "a.jpg"
    long = [shortened("é" * 200 + last, ".jpg") for last in "ab"]
    assert long[0] != long[1] and all(len(os.fsencode(name)) <= LONGEST and name.endswith(".jpg") for name in long)
    assert shortened("x" * LONGEST) == "x" * LONGEST and len(shortened("x" * 99, longest=50)) == 50
