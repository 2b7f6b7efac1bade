"""``--sweep``: the settings that it names."""

import math

import pytest

from diou_jax.command.arguments import parse
from diou_jax.configs import base
from diou_jax.errors import UserError
from diou_jax.nested_config import flatten
from diou_jax.option_groups import AFTER_NETWORK


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """``settings(*texts)``: the settings of ``--sweep`` for each text."""
    monkeypatch.chdir(tmp_path)
    return lambda *texts: parse(["--config", "ciou", "--mode", "eval", *(f"--sweep={text}" for text in texts)]).settings


def test_values_are_read_as_those_of_options(settings):
    found = settings("test.diou_nms.beta1=0.70, 0.8,1,inf")
    assert list(found) == [f"test.diou_nms.beta1={value}" for value in ("0.7", "0.8", "1.0", "inf")]
    assert [one.test.diou_nms.beta1 for one in found.values()] == [0.7, 0.8, 1.0, math.inf]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("test.soft_nms.enabled=True,False", [True, False]),
        ("test.soft_nms.method=gaussian,linear", ["gaussian", "linear"]),
        ("test.detections_per_im=100,300", [100, 300]),
        ("config.TEST.NMS=0.4,0.6", [0.4, 0.6]),
        ("test.nms=0.5,0.50", [0.5]),
    ],
)
def test_kinds_and_spellings(settings, text, values):
    name = text.partition("=")[0].removeprefix("config.").lower()
    found = [flatten(one)[name] for one in settings(text).values()]
    assert found == values and [type(value) for value in found] == [type(value) for value in values]


def test_several_options_are_combined_and_nothing_else_changes(settings):
    found = settings("test.nms=0.4,0.5", "test.diou_nms.enabled=True,False")
    assert list(found) == [
        f"test.nms={nms},test.diou_nms.enabled={enabled}" for nms in (0.4, 0.5) for enabled in (True, False)
    ]
    default = flatten(parse(["--config", "ciou", "--mode", "eval"]).config)
    for one in found.values():
        changed = {name for name, value in flatten(one).items() if value != default[name]}
        assert changed <= {"test.nms", "test.diou_nms.enabled"}


def test_without_a_sweep_there_are_no_settings(settings):
    assert settings() == {}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["test.scale=600,800"], "test.scale: the network would have to run again.*test.diou_nms.beta1"),
        (["test.nsm=0.4"], "no such option; the nearest is --config.test.nms"),
        (["test.nms"], "write --sweep NAME=VALUE,VALUE"),
        (["test.nms=0.4,,0.5"], "write --sweep NAME=VALUE,VALUE"),
        (["test.nms=0.4,high"], "test.nms"),
        (["test.nms=0.4,1.5"], r"test.nms=1.5: it must be a number from 0 to 1"),
        (["test.soft_nms.method=linaer"], "the nearest is linear"),
        (["test.nms=0.4", "test.nms=0.5"], "test.nms: it is named twice"),
    ],
)
def test_mistakes_are_named(settings, texts, words):
    with pytest.raises(UserError, match=words):
        settings(*texts)


def test_only_an_evaluation_sweeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--sweep belongs to --mode eval, not to --mode train"):
        parse(["--config", "ciou", "--mode", "train", "--sweep", "test.nms=0.4"])


def test_the_listed_options_exist():
    assert set(AFTER_NETWORK) <= {option.name for option in base.OPTIONS}
