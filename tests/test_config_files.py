"""The argument of --config."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diou_jax.command import config_files
from diou_jax.command.config_files import ConfigFile, find, load, names
from diou_jax.errors import UserError

OWN = """
from diou_jax.configs import base
def get_config(size="64"):
    config = base.get_config()
    config.test.scale = int(size)
    return config
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_config_of_the_program_is_found_by_its_name_from_any_folder():
    assert {"ciou", "smooth_l1", "shapes"} <= set(names())
    for name in names():
        config, lines = load(find(name))
        assert config.model.loss_type
        assert lines == []


@pytest.mark.parametrize("typed", ["own/mine.py", "own/mine"])
def test_a_file_of_the_user_s_and_its_argument(typed):
    pathlib.Path("own").mkdir()
    pathlib.Path("own/mine.py").write_text(OWN)
    assert load(find(typed))[0].test.scale == 64
    file = find(f"{typed}:96")
    assert load(file)[0].test.scale == 96
    assert file.workdir == "runs/mine_96"


def test_a_file_that_is_there_goes_before_the_program_s_and_a_colon_may_be_in_its_name():
    pathlib.Path("configs").mkdir()
    pathlib.Path("configs/ciou.py").write_text(OWN)
    pathlib.Path("a:b.py").write_text(OWN)
    assert load(find("configs/ciou.py"))[0].test.scale == 64
    assert load(find("ciou"))[0].test.scale == 800
    assert load(find("a:b.py"))[0].test.scale == 64


@pytest.mark.parametrize("typed", ["cioo", "configs/cio.py", "configs/cioo.py", "CIOU", "./configs/ciu.py:r101"])
def test_a_config_that_does_not_exist_is_answered_with_the_nearest_and_the_list(typed):
    with pytest.raises(UserError, match=r"does not exist; the nearest is configs/ciou\.py; there are ciou, diou"):
        find(typed)


def test_the_user_s_own_files_are_among_the_nearest():
    pathlib.Path("mine").mkdir()
    pathlib.Path("mine/bottles.py").write_text(OWN)
    pathlib.Path("mine/helpers.py").write_text("")
    with pytest.raises(UserError, match=r"the nearest is mine/bottles\.py") as error:
        find("mine/botles.py")
    assert "helpers" not in str(error.value)
    with pytest.raises(UserError, match=r"mine is a folder; the nearest is mine/bottles\.py"):
        find("mine")


@pytest.mark.parametrize(
    ("text", "argument", "words"),
    [
        ("x = 1", None, "no function get_config"),
        ("def get_config(): return {}", None, "gives a dict, not a ConfigDict"),
        ("def get_config(): return 1 / 0", None, "ZeroDivisionError: division by zero"),
        ("def get_config(", None, "SyntaxError"),
        ("import nowhere_at_all", None, "ModuleNotFoundError"),
        ("def get_config(): pass", "r101", "takes no argument, 'r101' was given"),
    ],
)
def test_a_file_that_fails_is_one_error(text, argument, words):
    pathlib.Path("own.py").write_text(text)
    with pytest.raises(UserError, match=words):
        load(ConfigFile(pathlib.Path("own.py"), argument))


@given(st.text(), st.text())
def test_the_default_workdir_is_a_plain_folder_below_runs(stem, argument):
    path = pathlib.Path("runs/x").with_name("x" + "".join(letter for letter in stem if letter not in "/\0") + ".py")
    runs, name = ConfigFile(path, argument).workdir.split("/")
    assert runs == "runs"
    assert 0 < len(name) <= 100
    assert name not in (".", "..")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@given(st.text())
def test_whatever_is_typed_is_a_file_or_one_error(text):
    try:
        assert find(text).path.is_file()
    except UserError as error:
        assert "the nearest is" in str(error)


@pytest.mark.parametrize("text", ["", ":", "ciou:", "configs/", "/", "x" * 5000, "no/folder/a.yaml", "a.py/b", "../.."])
def test_odd_names_are_answered_too(text):
    with pytest.raises(UserError):
        load(find(text))


def test_what_is_missing_is_answered_with_the_user_s_own_command():
    assert "--config configs/ciou.py" in str(config_files.missing())
