"""The page of a run, from the files of its folder."""

import json
import os
import types

import pytest
from test_report_page import Page

from diou_jax.configs import base
from diou_jax.reporting import run_page
from diou_jax.reporting.rendering import render
from diou_jax.reporting.run_log import Progress, RunLog
from diou_jax.reporting.run_page import index_page, run_document, write_index
from diou_jax.training.hooks import Evaluate, Journal
from diou_jax.training.loop import Moment
from diou_jax.workdir.metrics_file import append_row


def write_run(folder, *, steps=6, total=8):
    config = base.get_config()
    config.solver.max_iter, config.model.loss_type = total, "diou"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    rows = [
        {"step": s, "loss": 3 - s / 4, "loss_cls": 1.5, "rate": 0.1, "images_per_second": 20.0}
        for s in range(1, steps + 1)
    ]
    rows += [{"step": s, "dataset": "val", "eval/AP": s / 10, "eval/AP50": 0.5} for s in (2, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "events.jsonl").write_text(json.dumps({"step": 3, "event": "<update> skipped"}) + "\n")
    for step, ap in ((2, 0.9), (4, 0.4), (6, None)):
        metadata = {"best_by": {"dataset": "val", "metric": "eval/AP"}}
        if ap is not None:
            metadata["evaluation"] = [{"dataset": "val", "eval/AP": ap}]
        (folder / "checkpoints" / str(step) / "metadata").mkdir(parents=True)
        (folder / "checkpoints" / str(step) / "metadata" / "metadata").write_text(json.dumps(metadata))
    (folder / "pictures").mkdir()
    for name in ("0000002_val_a.jpg", "0000004_val_b#.jpg", "0000004_val_c.jpg", "notes.txt"):
        (folder / "pictures" / name).write_bytes(b"")


def page_of(folder, *, training=False):
    return Page(render(run_document(folder, training=training)))


def test_the_page_has_what_the_folder_says(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("")
    page = page_of(tmp_path / "run")
    text = page.text()
    for words in (
        "Run run",
        "Faster R-CNN, diou loss",
        "step 6 of 8",
        "AP, val 0.400 step 4",
        "loss 1.500",
        "loss cls 1.500",
        "images per second 20.0",
        "last checkpoint 6",
        "best checkpoint 2 eval/AP 0.900 on val",
        "<update> skipped",
        "model.loss_type diou smooth_l1",
        "solver.max_iter 8 90000",
        "jax",
    ):
        assert words in text
    assert [one["src"] for one in page.all("img")] == ["pictures/0000004_val_b%23.jpg", "pictures/0000004_val_c.jpg"]
    links = [one.get("href") for one in page.all("a")]
    assert {"report.html", "metrics.jsonl", "config.json"} <= set(links) and "sweep.html" not in links


@pytest.mark.parametrize(
    ("steps", "training", "words"),
    [
        (6, True, "The run is training: step 6 of 8."),
        (6, False, "The run stands at step 6 of 8 and was not training when this page was written."),
        (8, False, "The run is finished: all 8 steps are done."),
    ],
)
def test_only_the_page_of_a_training_run_is_loaded_again(tmp_path, steps, training, words):
    write_run(tmp_path / "run", steps=steps)
    page = page_of(tmp_path / "run", training=training)
    assert words in page.text()
    assert any(one.get("http-equiv") == "refresh" for one in page.all("meta")) == training


def test_a_folder_without_a_run_has_a_page_too(tmp_path):
    assert "no config" in page_of(tmp_path).text()
    (tmp_path / "checkpoints" / "3" / "metadata").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3" / "metadata" / "metadata").write_text("[")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n')
    assert "last checkpoint 3" in page_of(tmp_path).text()


def test_numbers_of_an_evaluation_name_its_options(tmp_path):
    write_run(tmp_path / "run")
    options = {"test.nms": 0.7, "data.workers": 2, "test.diou_nms.beta1": "inf", "log.images": 0}
    options |= {"test.scale": 640, "test.max_size": 1000}
    for given in ({"test.nms": 0.7}, options, "damaged"):
        row = {"step": 6, "dataset": "val", "eval/AP": 0.25, "options": given}
        append_row(tmp_path / "run" / "metrics.jsonl", row)
        text = page_of(tmp_path / "run").text()
        words = "0.250 step 6 with test.nms=0.7" + (
            ", test.diou_nms.beta1=inf, test.scale=640 and 1 more" if given is options else ""
        )
        assert "AP, val 0.250 step 6" in text and (words in text) == (given != "damaged")


def test_the_newest_pictures_may_be_those_of_an_earlier_checkpoint(tmp_path):
    write_run(tmp_path / "run")
    pictures = tmp_path / "run" / "pictures"
    for name in ("0000004_val_b#.jpg", "0000004_val_c.jpg"):
        os.utime(pictures / name, (1, 1))
    assert [one["src"] for one in page_of(tmp_path / "run").all("img")] == ["pictures/0000002_val_a.jpg"]


def test_training_begins_and_ends_with_a_page(tmp_path):
    write_run(tmp_path / "run")
    index = tmp_path / "run" / "index.html"
    with RunLog(tmp_path / "run") as log:
        with pytest.raises(KeyboardInterrupt), index_page(log, active=True):
            assert "The run is training" in index.read_text()
            raise KeyboardInterrupt
        assert "was not training" in index.read_text()
        index.unlink()
        with index_page(log, active=False):
            pass
        assert not index.exists()


@pytest.mark.parametrize("error", [OSError("full"), ValueError("a fault of ours")])
def test_a_page_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(run_page, "write", fail)
    with RunLog(tmp_path / "run") as log:
        write_index(log, training=True)
    assert "index.html cannot be written, and the run goes on without" in caplog.text and str(error) in caplog.text


def test_the_page_is_written_anew_at_every_evaluation(tmp_path):
    write_run(tmp_path / "run", steps=4)
    index, evaluated = tmp_path / "run" / "index.html", []
    with RunLog(tmp_path / "run") as log:
        journal = Journal(log, Progress(start=0, total=8, images_per_step=1))
        evaluator = lambda variables, step, log: [evaluated.append((step, index.exists()))][:0]  # noqa: E731
        selection = types.SimpleNamespace(record=lambda step, rows, counts: {})
        hook = Evaluate(evaluator, journal, every=2, save=None, selection=selection, page=True)
        for step in (1, 2, 3):
            hook(Moment(step, False, True, types.SimpleNamespace(averaged={}), {}))
            assert index.exists() == (step > 1)
    assert evaluated == [(2, False)], "after the evaluation, not before"
    assert "The run is training: step 4 of 8." in index.read_text()
