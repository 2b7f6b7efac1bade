import json
import pathlib

import jax
import pytest

from diou_jax.errors import UserError
from diou_jax.run_config import keep_config

CONFIG = {"model": {"loss_type": "ciou"}, "solver": {"steps": (0, 10)}, "test": {"nms": 0.5}, "data": {"workers": 2}}


def test_the_config_is_kept_and_free_options_may_change(tmp_path):
    keep_config(tmp_path / "run", CONFIG, resuming=True)
    file = tmp_path / "run" / "config.json"
    assert json.loads(file.read_text())["solver"]["steps"] == [0, 10]
    keep_config(tmp_path / "run", CONFIG | {"test": {"nms": 0.3}, "data": {"workers": 0}}, resuming=True)
    assert json.loads(file.read_text())["test"]["nms"] == 0.3


def test_another_config_is_refused_and_nothing_is_written(tmp_path):
    keep_config(tmp_path, CONFIG, resuming=True)
    before = {path: path.read_bytes() for path in pathlib.Path(tmp_path).rglob("*")}
    with pytest.raises(UserError, match=r"model\.loss_type was 'ciou', now 'iou'; model\.new was None, now 1"):
        keep_config(tmp_path, CONFIG | {"model": {"loss_type": "iou", "new": 1}}, resuming=True)
    assert {path: path.read_bytes() for path in pathlib.Path(tmp_path).rglob("*")} == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file"):
        keep_config(tmp_path / "run", CONFIG, resuming=True)
    with pytest.raises(UserError, match="cannot be written"):
        keep_config(tmp_path / "run" / "below", CONFIG, resuming=True)


@pytest.mark.parametrize("text", ["", '{"model": {', "[1]", "null"])
def test_a_damaged_config_is_named_and_kept(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not a config"):
        keep_config(tmp_path, CONFIG, resuming=True)
    assert (tmp_path / "config.json").read_text() == text


def test_only_the_first_process_writes_the_config_and_all_compare_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_index", lambda: 1)
        keep_config(tmp_path / "run", CONFIG, resuming=True)
        assert not (tmp_path / "run").exists()
    keep_config(tmp_path / "run", CONFIG, resuming=True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(UserError, match=r"model\.loss_type was 'ciou', now 'iou'"):
        keep_config(tmp_path / "run", CONFIG | {"model": {"loss_type": "iou"}}, resuming=True)


def test_a_config_without_a_checkpoint_binds_nobody(tmp_path):
    keep_config(tmp_path, CONFIG, resuming=True)
    keep_config(tmp_path, CONFIG | {"model": {"loss_type": "iou"}}, resuming=False)
    assert json.loads((tmp_path / "config.json").read_text())["model"] == {"loss_type": "iou"}
