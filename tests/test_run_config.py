import json
import pathlib
import re

import jax
import pytest

from diou_jax.checkpoint.seal import seal
from diou_jax.errors import UserError
from diou_jax.workdir.run_config import keep_config, read_config

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


DAMAGE = {
    "gone": None,
    "emptied": b"",
    "cut off": b'{"model": {',
    "a list": b"[1]",
    "null": b"null",
    "zeros": b"\0" * 99,
}


def save(workdir, step, config):
    """A checkpoint's files, as far as a config is concerned."""
    folder = workdir / "checkpoints" / str(step)
    (folder / "metadata").mkdir(parents=True)
    (folder / "metadata" / "metadata").write_text(json.dumps({"class_names": ["a"]} | config))
    seal(folder, workdir / "checkpoints.sealed" / f"{step}.json")


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_without_its_file_the_config_is_the_newest_checkpoints(tmp_path, content, caplog):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert read_config(tmp_path) is None
    save(tmp_path, 9, {"config": CONFIG})
    save(tmp_path, 10, {"config": CONFIG | {"model": {"loss_type": "diou"}}})
    assert read_config(tmp_path)["model"] == {"loss_type": "diou"}
    harmed = tmp_path / "checkpoints" / "10" / "metadata" / "metadata"
    harmed.write_text(harmed.read_text().replace("diou", "giou"))
    assert read_config(tmp_path)["model"] == {"loss_type": "ciou"}
    with pytest.raises(UserError, match=r"model\.loss_type was 'ciou', now 'iou'"):
        keep_config(tmp_path, CONFIG | {"model": {"loss_type": "iou"}}, resuming=True)
    keep_config(tmp_path, CONFIG, resuming=True)
    assert "is missing or damaged; the newest checkpoint's was compared" in caplog.text
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(CONFIG))


def test_checkpoints_of_before_hold_no_config(tmp_path, caplog):
    save(tmp_path, 9, {})
    (tmp_path / "config.json").mkdir()
    keep_config(tmp_path, CONFIG, resuming=True)
    assert read_config(tmp_path)["test"] == {"nms": 0.5} and "no checkpoint holds one" in caplog.text


def test_the_refusal_names_the_way_to_start_from_these_weights(tmp_path):
    keep_config(tmp_path, CONFIG, resuming=False)
    with pytest.raises(UserError, match=re.escape(f"--config.init.checkpoint={tmp_path}")):
        keep_config(tmp_path, CONFIG | {"rng_seed": 4}, resuming=True)


def test_an_option_that_is_younger_than_the_run_had_its_default(tmp_path):
    keep_config(tmp_path, CONFIG, resuming=False)
    younger = {"mrcnn": {"resolution": 28}, "model": {**CONFIG["model"], "mask_on": False}}
    keep_config(tmp_path, CONFIG | younger, resuming=True, write=False)
    with pytest.raises(UserError, match=r"model\.mask_on was False, now True"):
        keep_config(tmp_path, CONFIG | {"model": {**CONFIG["model"], "mask_on": True}}, resuming=True)


def test_the_length_of_a_run_may_change(tmp_path):
    keep_config(tmp_path, CONFIG | {"solver": {"steps": [0, 10], "max_iter": 20}}, resuming=False)
    keep_config(tmp_path, CONFIG | {"solver": {"steps": [0, 30], "max_iter": 40}}, resuming=True, write=False)
    assert read_config(tmp_path)["solver"]["max_iter"] == 20


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
